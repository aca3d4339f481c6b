"""How layers move: on by themselves, and with new velocities, which z tells, after collisions.

A state y begins with numbers of K layers: places and velocities, 2K coordinates each; then K of
`hit`, from 0 to 1, whether a layer collides in this step, and K of `still`, in how many more steps
its velocity may change. A coordinate of a place is 0 in the middle of the frame and 1 at `UNIT` of
its size from there.

z begins with the velocities of the layers. It has a say when they collide; in the next step, as
what is seen of a collision depends on when in the step it was; and in the first two steps of a
video. At other times layers move uniformly, whatever z is.
"""

import torch
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
        states, residuals, y = [], [], self.begin(y)
        for _ in range(euler_steps):
            force = self.forced * self.f(torch.cat([y, z], dim=-1))
            residuals.append(force / euler_steps)
            y = self.collide(*self.drift(y, 1 / euler_steps), z) + residuals[-1]
            states.append(y)
        return torch.stack(states, dim=1), torch.stack(residuals, dim=1)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """Split a state: places, velocities `(..., 2K)`, hit, still `(..., K)` and the rest."""
        k = self.layers
        return y.split([2 * k, 2 * k, k, k, y.shape[-1] - 6 * k], dim=-1)

    def begin(self, y: Tensor) -> Tensor:
        """Begin a frame, in which nothing has collided yet."""
        place, velocity, hit, still, rest = self.split(y)
        still = torch.maximum(hit, (still - 1).clamp(min=0))
        return torch.cat([place, velocity, torch.zeros_like(hit), still, rest], dim=-1)

    def drift(self, y: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Move the layers for a part of a frame; walls reflect them.

        Returns:
            The state, and the time left after a collision, or all of it `(..., 2K)`.
        """
        place, velocity, hit, still, rest = self.split(y)
        place, left = place + time * SPEED * velocity, torch.full_like(place, time)
        near = torch.ones_like(hit)
        if self.wall is not None:
            outside = place * velocity.sign() - self.wall
            place = place - 2 * outside.clamp(min=0) * velocity.sign()
            passed = outside.clamp(min=0) / (SPEED * velocity.abs()).clamp(min=1e-3)
            passed = self._pair(passed.unflatten(-1, (-1, 2)).amax(dim=-1).clamp(max=time))
            left = torch.where(passed > 0, passed, left)
            # Places are seen rounded to pixels: training has to explain collisions a little early.
            near = (outside + NEAR * self.training) / SOFT
            near = near.unflatten(-1, (-1, 2)).amax(dim=-1).sigmoid()
            velocity = torch.where(outside > 0, -velocity, velocity)
        hit = torch.maximum(hit, near)
        return torch.cat([place, velocity, hit, still, rest], dim=-1), left

    def collide(self, y: Tensor, left: Tensor, z: Tensor) -> Tensor:
        """Give layers whose velocities may change those of z, for the time that was left."""
        place, velocity, hit, still, rest = self.split(y)
        wanted = z[..., : 2 * self.layers].clamp(-FASTEST, FASTEST)
        change = self._gate(hit, still) * (wanted - velocity)
        place, velocity = place + left * SPEED * change, velocity + change
        return torch.cat([place, velocity, hit, still, rest], dim=-1)

    def _gate(self, hit: Tensor, still: Tensor) -> Tensor:
        return self._pair(torch.maximum(hit, still.clamp(0, 1)))

    def start(self, places: Tensor) -> Tensor:
        """Tell the first state from places seen `(B, T, 2K)`, T at least 2: `(B, 6K)`."""
        place, velocity = places[:, 0], (places[:, 1] - places[:, 0]) / SPEED
        still = torch.full_like(place[..., : self.layers], 3.0)  # a step of it ends at once
        return torch.cat([place, velocity, torch.zeros_like(still), still], dim=-1)

    def velocities(self, places: Tensor) -> Tensor:
        """Tell velocities from places seen, as z has them.

        Args:
            places: coordinates in frames 1, ..., T, `(B, T, 2K)`.

        Returns:
            Velocities after frames 2, ..., T, `(B, T - 1, 2K)`: where they may change, those that
            lead to the places seen, in collisions in this frame, else in the next few; elsewhere
            those that layers have anyway.
        """
        velocities, y = [], self.start(places)
        for t in range(1, places.shape[1]):
            y, left = self.drift(self.begin(y), 1)
            place, velocity, hit, still, _ = self.split(y)
            now = velocity + (places[:, t] - place) / (SPEED * left.clamp(min=LEFT))
            later = self._ahead(places[:, t - 1 :], place - SPEED * velocity)
            wanted = torch.where(self._pair(hit) > 0.5, now, later).clamp(-FASTEST, FASTEST)
            velocities.append(torch.lerp(velocity, wanted, self._gate(hit, still)))
            y = self.collide(y, left, velocities[-1])
        return torch.stack(velocities, dim=1) if velocities else places[:, 1:]

    def _ahead(self, places: Tensor, place: Tensor) -> Tensor:
        """Return the velocities `(B, 2K)` from a place to the last of places seen in a line.

        Args:
            places: seen in the frame of that place and after it, `(B, at least 2, 2K)`.
            place: coordinates that motion begins from, `(B, 2K)`.
        """
        moved = places.diff(dim=1)[:, :AHEAD]
        velocity, line = places[:, 1] - place, torch.ones_like(place).bool()
        for step in range(1, moved.shape[1]):
            line = line & self._alike(moved[:, step], moved[:, 0])
            mean = (places[:, step + 1] - place) / (step + 1)
            velocity = torch.where(line, mean, velocity)
        return velocity / SPEED

    def _alike(self, one: Tensor, other: Tensor) -> Tensor:
        """Whether displacements `(..., 2K)` of a frame are the same but for rounding, by layer."""
        difference = (one - other).unflatten(-1, (-1, 2)).norm(dim=-1)
        return self._pair(difference < JUMP * SPEED)

    def _pair(self, numbers: Tensor) -> Tensor:
        """Repeat numbers of layers `(..., K)` for both coordinates `(..., 2K)`."""
        return numbers.repeat_interleave(2, dim=-1)
