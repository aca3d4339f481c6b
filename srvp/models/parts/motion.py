"""How layers move: on by themselves, and with new velocities, which z tells, after collisions.

A state y begins with numbers of K layers (`Motion`): places and velocities, 2K coordinates each;
then K of `hit`, from 0 to 1, whether a layer collides in this frame, and K of `still`, in how many
more frames its velocity may change. A coordinate of a place is 0 in the middle of the frame and 1
at `UNIT` of its size from there.

z begins with the velocities of the layers. It has a say when they collide; in the next step, as
what is seen of a collision depends on when in the step it was; and in the first two steps of a
video. At other times layers move uniformly, whatever z is.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srvp.models.ablations import MLPTransition

UNIT = 10 / 64  # of the frame's size: how far from its middle a coordinate of 1 is
SPEED = 0.25  # coordinates per frame: what a velocity of 1 is
NEAR = 0.1  # coordinates: how near to a wall layers already collide in training
SOFT = 0.02  # coordinates: how sharply layers collide at a wall
AHEAD = 3  # frames that a velocity after a collision is told from, if they are there
JUMP = 1.2  # change of a velocity that places rounded to pixels do not explain
LEFT = 0.25  # part of a frame that a velocity is told from, at least
FASTEST = 2.0  # a velocity after a collision, at most


class Motion(NamedTuple):
    """The parts of states `(..., ny)` with K layers."""

    place: Tensor  # (..., K, 2)
    velocity: Tensor  # (..., K, 2)
    hit: Tensor  # (..., K, 1)
    still: Tensor  # (..., K, 1)
    rest: Tensor  # (..., ny - 6K)

    def join(self) -> Tensor:
        """Return the states."""
        return torch.cat([*(part.flatten(-2) for part in self[:4]), self.rest], dim=-1)


class MovingTransition(MLPTransition):
    """dy/dt = f(y, z), and the motion of the layers.

    Args:
        f: as in SRVP.
        layers: K.
        wall: where walls are, a coordinate and its negative. None: there are none, and velocities
            change in every step.
    """

    def __init__(self, f: nn.Module, layers: int, wall: float | None):
        super().__init__(f)
        self.layers, self.wall = layers, wall
        forced = torch.ones(f[-1].out_features)
        forced[4 * layers : 6 * layers] = 0  # no force tells what has collided
        self.register_buffer("forced", forced, persistent=False)

    def forward(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """As `srvp.ResidualTransition`; the residuals are those of f alone."""
        states, residuals, motion = [], [], self.begin(self.split(y))
        wanted = pairs(z[..., : 2 * self.layers]).clamp(-FASTEST, FASTEST)
        for _ in range(euler_steps):
            force = self.f(torch.cat([motion.join(), z], dim=-1))
            residuals.append(self.forced / euler_steps * force)
            moved = self.collide(*self.drift(motion, 1 / euler_steps), wanted)
            states.append(moved.join() + residuals[-1])
            motion = self.split(states[-1])
        return torch.stack(states, dim=1), torch.stack(residuals, dim=1)

    def split(self, y: Tensor) -> Motion:
        """Split states `(..., ny)` into their parts."""
        k = self.layers
        place, velocity, hit, still, rest = y.split([2 * k, 2 * k, k, k, y.shape[-1] - 6 * k], -1)
        return Motion(pairs(place), pairs(velocity), hit[..., None], still[..., None], rest)

    def begin(self, motion: Motion) -> Motion:
        """Begin a frame, in which nothing has collided yet."""
        still = torch.maximum(motion.hit, F.relu(motion.still - 1))
        return motion._replace(hit=torch.zeros_like(motion.hit), still=still)

    def drift(self, motion: Motion, time: float) -> tuple[Motion, Tensor]:
        """Move the layers for a part of a frame; walls reflect them.

        Returns:
            The motion, and the time left after a collision, or all of it `(..., K, 1)`.
        """
        place, velocity, hit, *_ = motion
        place = place + time * SPEED * velocity
        if self.wall is None:
            hit, left = torch.ones_like(hit), torch.full_like(hit, time)
            return motion._replace(place=place, hit=hit), left
        direction = velocity.detach().sign()
        outside = place * direction - self.wall
        beyond = F.relu(outside)
        passed = beyond / (SPEED * velocity * direction).clamp(min=1e-3)
        passed = passed.amax(dim=-1, keepdim=True).clamp(max=time)
        # Places are seen rounded to pixels: training has to explain collisions a little early.
        near = (outside + NEAR * self.training) / SOFT
        near = near.amax(dim=-1, keepdim=True).sigmoid()
        moved = motion._replace(
            place=place - 2 * beyond * direction,
            velocity=velocity * torch.where(outside > 0, -1.0, 1.0),
            hit=torch.maximum(hit, near),
        )
        return moved, torch.where(passed > 0, passed, time)

    def collide(self, motion: Motion, left: Tensor, velocity: Tensor) -> Motion:
        """Give layers whose velocities may change others `(..., K, 2)`, for the time left."""
        change = self.changes(motion) * (velocity - motion.velocity)
        return motion._replace(
            place=motion.place + left * SPEED * change, velocity=motion.velocity + change
        )

    def changes(self, motion: Motion) -> Tensor:
        """Return, from 0 to 1, whether velocities may change: `(..., K, 1)`."""
        return torch.maximum(motion.hit, motion.still.clamp(max=1))

    def start(self, places: Tensor) -> Motion:
        """Tell the first motion `(B, K, ...)` from places seen `(B, T, K, 2)`, T at least 2."""
        place, velocity = places[:, 0], (places[:, 1] - places[:, 0]) / SPEED
        hit = torch.zeros_like(place[..., :1])
        still = torch.full_like(hit, 3.0)  # a frame of it ends at once
        return Motion(place, velocity, hit, still, place.new_empty(len(place), 0))

    def velocities(self, places: Tensor) -> Tensor:
        """Tell velocities from places seen, as z has them.

        Args:
            places: coordinates in frames 1, ..., T, `(B, T, K, 2)`.

        Returns:
            Velocities after frames 2, ..., T, `(B, T - 1, 2K)`: where they may change, those that
            lead to the places seen, in collisions in this frame, else in the next few; elsewhere
            those that layers have anyway.
        """
        if places.shape[1] < 2:
            return places[:, 1:].flatten(2)
        velocities, motion = [], self.start(places)
        goals, frames = lines(places)
        for t in range(1, places.shape[1]):
            motion, left = self.drift(self.begin(motion), 1)
            place, velocity = motion.place, motion.velocity
            now = velocity + (places[:, t] - place) / (SPEED * left.clamp(min=LEFT))
            before = place - SPEED * velocity
            later = (goals[:, t - 1] - before) / (SPEED * frames[:, t - 1])
            wanted = torch.where(motion.hit > 0.5, now, later).clamp(-FASTEST, FASTEST)
            velocities.append(torch.lerp(velocity, wanted, self.changes(motion)))
            motion = self.collide(motion, left, velocities[-1])
        return torch.stack(velocities, dim=1).flatten(2)


def lines(places: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far layers go on in a line from every frame but the last, at most `AHEAD` frames.

    Args:
        places: coordinates seen, `(B, T, K, 2)`.

    Returns:
        The last places in a line `(B, T - 1, K, 2)`, and in how many frames `(B, T - 1, K, 1)`.
    """
    moved = F.pad(places.diff(dim=1), (0, 0, 0, 0, 0, AHEAD - 1), value=torch.inf)
    moved = moved.unfold(1, AHEAD, 1)  # (B, T - 1, K, 2, AHEAD)
    difference = (moved[..., 1:] - moved[..., :1]).norm(dim=-2)
    alike = difference < JUMP * SPEED  # but for rounding to pixels
    frames = 1 + alike.cumprod(dim=-1).sum(dim=-1, keepdim=True)
    last = frames + torch.arange(frames.shape[1], device=places.device)[:, None, None]
    return places.gather(1, last.expand(-1, -1, -1, 2)), frames


def pairs(numbers: Tensor) -> Tensor:
    """Turn coordinates `(..., 2K)` into those of each layer `(..., K, 2)`."""
    return numbers.unflatten(-1, (-1, 2))
