"""Moving digits as tensors: whole batches of paths and frames, on the device that trains.

The process is that of `srvp.data.sets.moving_mnist`, whose test videos are drawn one by one.
"""

from collections.abc import Iterator
from itertools import count as count_from

import torch
from torch import Tensor

from srvp.models import interface
from srvp.models.interface import Clips

DIGITS = 2  # per video
# In pixels of a frame of 64x64:
BOX = 64
DIGIT = 28
LIMIT = BOX - DIGIT  # largest row or column of a digit's upper left corner
MAX_SPEED = 4  # per frame, on each axis; zero is allowed
TOLERANCE = 1e-8  # outside the box that does not yet count as a bounce


def steps_at_once(device: torch.device) -> tuple[int, int]:
    """Return how many training batches have their paths drawn together, and how many their frames.

    A GPU launches every kernel apart, whatever its size.
    """
    return (64, 1) if device.type == "cpu" else (256, 8)


class MovingMNIST:
    """Endless training videos, drawn as tensors on the device that holds the digits.

    Every digit is drawn with replacement, its position and speed afresh. A bounce may lead to
    another within the same frame, in a corner. Reflections need two at most. With redrawn speeds
    each further one is rarer; a digit still outside after five is put on the wall.

    Args:
        digits: uint8 `(digits, n, n)`, on any device; videos are made on that device. Frames have
            64 / 28 times their size.
        deterministic: reflect at walls rather than redraw the speed.
    """

    def __init__(self, digits: Tensor, *, deterministic: bool):
        self.digits = digits.flatten(1)
        self.size = digits.shape[-1] * BOX // DIGIT
        self.deterministic = deterministic
        self.bounces = 2 if deterministic else 5
        self.device = digits.device
        pixel = torch.arange(digits.shape[-1], device=self.device)
        # A digit's pixels in a flat frame.
        self.window = (self.size * pixel[:, None] + pixel).flatten()

    def draw(self, count: int, frames: int, generator: torch.Generator) -> Clips:
        """Return `count` grey videos of `frames` frames.

        Args:
            count: batch size B.
            frames: length T.
            generator: of random numbers, on the device of the digits.
        """
        return self.render(*self._draw_scenes(count, frames, generator))

    def batches(self, count: int, frames: int, seed: int, first: int = 0) -> Iterator[Clips]:
        """Yield training batches from step `first` on, as `srvp.data.VideoSource` says."""
        at_once, rendered = steps_at_once(self.device)
        for block in count_from(first // at_once):
            generator = interface.generator(seed, block, self.device)
            scenes = self._draw_scenes(at_once * count, frames, generator)
            parts = zip(*(part.split(rendered * count) for part in scenes), strict=True)
            starts = range(block * at_once, (block + 1) * at_once, rendered)
            for start, part in zip(starts, parts, strict=True):
                if start + rendered > first:
                    batches = self.render(*part).frames.split(count)
                    yield from map(Clips, batches[max(first - start, 0) :])

    def _draw_scenes(
        self, count: int, frames: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the digits `(count, 2)`, by number, and their positions."""
        positions = self.draw_positions(count, frames, generator)
        shape = (count, DIGITS)
        chosen = torch.randint(len(self.digits), shape, generator=generator, device=self.device)
        return chosen, positions

    def draw_positions(self, count: int, frames: int, generator: torch.Generator) -> Tensor:
        """Return rows and columns of the digits in pixels, int64 `(count, frames, 2 digits, 2)`."""
        shape = (count, DIGITS, 2)
        position = self._draw_whole(0, LIMIT, shape, generator)
        speed = self._draw_whole(-MAX_SPEED, MAX_SPEED, shape, generator)
        return self.follow(position, speed, frames, generator)

    def follow(
        self, position: Tensor, speed: Tensor, frames: int, generator: torch.Generator
    ) -> Tensor:
        """Return the positions in `frames` frames, as `draw_positions`, from those of the first.

        Args:
            position: rows and columns in a frame of 64x64 before any bounce, `(count, 2, 2)`.
            speed: `(count, 2, 2)`.
            frames: how many.
            generator: of the speeds after bounces.
        """
        if not self.deterministic:  # of all bounces at once
            all_bounces = (frames, self.bounces, *speed.shape)
            new_speeds = self._draw_whole(-MAX_SPEED, MAX_SPEED, all_bounces, generator)
        path = []
        for t in range(frames):
            for bounce in range(self.bounces):
                if self.device.type == "cpu" and not _outside(position).any():
                    break  # on a GPU, to ask would take longer than to go on
                new_speed = speed if self.deterministic else new_speeds[t, bounce]
                position, speed = self._bounce(position, speed, new_speed)
            position = position.clamp(0, LIMIT)
            path.append(position)
            position = position + speed
        return torch.stack(path, dim=1).mul(self.size / BOX).round().long()

    def _bounce(self, position: Tensor, speed: Tensor, new_speed: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions and speeds after the first wall each digit met, if it met one."""
        overshoot, outside = _overshoot(position), _outside(position)
        # The wall met first is the one that the path crossed longest ago.
        since = torch.where(outside, overshoot / speed.abs().clamp(min=1), 0.0)
        remaining = since.amax(dim=-1, keepdim=True)
        hit_wall = outside & (since == remaining)
        contact = position - speed * remaining
        inwards = torch.where(position < 0, 1.0, -1.0)
        new_speed = torch.where(hit_wall, inwards * new_speed.abs(), new_speed)
        bounced = outside.any(dim=-1, keepdim=True)
        position = torch.where(bounced, contact + new_speed * remaining, position)
        return position, torch.where(bounced, new_speed, speed)

    def _draw_whole(self, low: int, high: int, shape: tuple, generator: torch.Generator) -> Tensor:
        """Return whole numbers from `low` to `high`, float32."""
        x = torch.randint(low, high + 1, shape, generator=generator, device=self.device)
        return x.float()

    def render(self, chosen: Tensor, positions: Tensor) -> Clips:
        """Add the digits `(B, 2)`, by number, up at `positions` `(B, T, 2, 2)`, saturating."""
        count, frames = positions.shape[:2]
        shapes = self.digits[chosen]
        canvas = torch.zeros(count, frames, self.size * self.size, device=self.device)
        for digit in range(DIGITS):
            row, column = positions[:, :, digit].unbind(-1)
            index = (self.size * row + column)[..., None] + self.window
            value = shapes[:, None, digit].expand(-1, frames, -1).float()
            canvas.scatter_add_(2, index, value)
        return Clips(canvas.clamp(max=255).div(255).view(count, frames, 1, self.size, self.size))


def _overshoot(position: Tensor) -> Tensor:
    return (position - position.clamp(0, LIMIT)).abs()


def _outside(position: Tensor) -> Tensor:
    return _overshoot(position) > TOLERANCE
