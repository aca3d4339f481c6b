"""Stochastic and Deterministic Moving MNIST: two digits that move and bounce in a 64x64 frame.

A digit moves in a straight line at a whole number of pixels per frame. Where it meets a wall, the
stochastic variant (SM-MNIST) redraws its speed, the deterministic one (DM-MNIST) reflects it.
Bounces happen at the exact point of contact, within a frame.

There are two implementations of the one process. `test_set` follows the published generator draw by
draw, so that the test sequences are those of the paper, bit for bit. `MovingMNIST` draws whole
training batches as tensors, on the device that trains.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from srvp.data.sets import mnist

SIZE = 64  # pixels, height and width of a frame
DIGITS = 2  # per video
MAX_SPEED = 4  # pixels per frame, on each axis; zero is allowed
TOLERANCE = 1e-8  # pixels outside the box that do not yet count as a bounce
DIGIT_SIZE = 28
LIMIT = SIZE - DIGIT_SIZE  # largest row or column of a digit's upper left corner


@dataclass(frozen=True)
class TestSet:
    """Moving MNIST test videos with the latent factors that made them (N videos of T frames)."""

    sequences: np.ndarray  # uint8 (N, T, 64, 64)
    positions: np.ndarray  # int64 (N, T, 2 digits, 2): row, column of the upper left corner
    speeds: np.ndarray  # int64 (N, T, 2 digits, 2): row and column speed, pixels per frame
    labels: np.ndarray  # uint8 (N, 2): the class of each digit


def test_set(
    folder: Path, *, frames: int, deterministic: bool, seed: int = 42, videos: int = 5000
) -> TestSet:
    """Return the test videos of the published protocol, bit for bit.

    One permutation of the 10,000 MNIST test digits is drawn first; video i shows digits 2i and
    2i + 1 of it, so that no digit is used twice. Fewer `videos` are the first ones of the full set.
    The paper uses 25 frames for the stochastic variant and 100 for the deterministic one.

    Args:
        folder: where the MNIST files lie.
        frames: length T of a video.
        deterministic: reflect at walls rather than redraw the speed.
        seed: of the NumPy random state that draws everything.
        videos: how many, at most 5000.
    """
    digits, classes = mnist.load(folder, "test")
    if not 1 <= videos <= len(digits) // DIGITS:
        raise ValueError(f"videos is {videos}: the test digits make 1 to {len(digits) // DIGITS}")
    random = np.random.RandomState(seed)
    chosen = random.permutation(len(digits))[: videos * DIGITS]
    paths = np.array([_trajectory(random, frames, deterministic) for _ in chosen])
    paths = paths.reshape(videos, DIGITS, frames, 4).transpose(0, 2, 1, 3)
    positions = np.rint(paths[..., :2]).astype(np.int64)  # half to even, as Python's round
    shapes = digits[chosen].reshape(videos, DIGITS, DIGIT_SIZE, DIGIT_SIZE)
    return TestSet(
        sequences=_render(shapes, positions),
        positions=positions,
        speeds=paths[..., 2:].astype(np.int64),
        labels=classes[chosen].reshape(videos, DIGITS),
    )


def bounces(speeds: np.ndarray) -> np.ndarray:
    """Tell from speeds `(N, T, 2, 2)` whether a digit bounced on the way to frames 2, ..., T.

    Returns:
        bool `(N, T - 1)`. A bounce that happened to redraw the same speed is not seen.
    """
    return (np.diff(speeds, axis=1) != 0).any(axis=(2, 3))


def _trajectory(
    random: np.random.RandomState, frames: int, deterministic: bool
) -> list[tuple[float, float, int, int]]:
    """Draw a digit's row, column, row speed and column speed at every frame."""
    row, column = (int(random.randint(0, LIMIT + 1)) for _ in range(2))
    speed = (_draw_speed(random), _draw_speed(random))
    path = []
    for _ in range(frames):
        while not (
            -TOLERANCE <= row <= LIMIT + TOLERANCE and -TOLERANCE <= column <= LIMIT + TOLERANCE
        ):
            row, column, speed = _bounce(row, column, speed, None if deterministic else random)
        path.append((row, column, *speed))
        row, column = row + speed[0], column + speed[1]
    return path


def _draw_speed(random: np.random.RandomState) -> int:
    return int(random.randint(-MAX_SPEED, MAX_SPEED + 1))


def _bounce(
    row: float, column: float, speed: tuple[int, int], random: np.random.RandomState | None
) -> tuple[float, float, tuple[int, int]]:
    """Move a digit that has left the box back to where it hit the wall, and on with a new speed.

    The arithmetic keeps the order of the published generator: positions after a bounce are
    fractions, and another rounding of them would move a digit by a pixel now and then.
    """
    hit_row, hit_column, row_wall, column_wall = _point_of_contact(row, column, speed)
    # The part of the last step that was spent outside, as a fraction of a frame.
    remaining = (row - hit_row) / speed[0] if speed[0] else (column - hit_column) / speed[1]
    if random is not None:
        speed = (_draw_speed(random), _draw_speed(random))
    speed = (_away_from(row_wall, speed[0]), _away_from(column_wall, speed[1]))
    return hit_row + speed[0] * remaining, hit_column + speed[1] * remaining, speed


def _point_of_contact(
    row: float, column: float, speed: tuple[int, int]
) -> tuple[float, float, int | None, int | None]:
    """Return where the path left the box, and the wall (0 or LIMIT) it hit on either axis."""
    row_wall, column_wall = _wall_beyond(row), _wall_beyond(column)
    if speed[0] == 0:
        return row, column_wall, None, column_wall
    if speed[1] == 0:
        return row_wall, column, row_wall, None
    slope = speed[1] / speed[0]
    intercept = column - slope * row
    hit = (row, column)
    if row_wall is not None:
        crossing = slope * row_wall + intercept
        if -TOLERANCE <= crossing <= LIMIT + TOLERANCE:
            hit = (row_wall, crossing)
        else:
            row_wall = None  # the path left through the column's wall
    if column_wall is not None:
        crossing = (column_wall - intercept) / slope
        if -TOLERANCE <= crossing <= LIMIT + TOLERANCE:
            hit = (crossing, column_wall)
        else:
            column_wall = None
    return *hit, row_wall, column_wall


def _wall_beyond(coordinate: float) -> int | None:
    if coordinate < -TOLERANCE:
        return 0
    return LIMIT if coordinate > LIMIT + TOLERANCE else None


def _away_from(wall: int | None, speed: int) -> int:
    if wall is None:
        return speed
    return abs(speed) if wall == 0 else -abs(speed)


def _render(shapes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Add the digits up, saturating at 255.

    Args:
        shapes: uint8 `(N, digits, 28, 28)`.
        positions: integers `(N, T, digits, 2)`.
    """
    videos, frames = positions.shape[:2]
    sequences = np.zeros((videos, frames, SIZE, SIZE), dtype=np.uint8)
    for video, digits, path in zip(sequences, shapes, positions.tolist(), strict=True):
        for frame, corners in zip(video, path, strict=True):
            for digit, (row, column) in zip(digits, corners, strict=True):
                window = frame[row : row + DIGIT_SIZE, column : column + DIGIT_SIZE]
                window += np.minimum(digit, 255 - window)
    return sequences


def steps_at_once(device: torch.device) -> tuple[int, int]:
    """Return how many training batches have their paths drawn together, and how many their frames.

    A GPU launches every kernel apart, whatever its size.
    """
    return (64, 1) if device.type == "cpu" else (256, 8)


class MovingMNIST:
    """Endless training videos, drawn as tensors on the device that holds the digits.

    Every digit is drawn with replacement, its position and speed afresh. A bounce may lead to
    another within the same frame, in a corner. Two are the most that reflections need; with redrawn
    speeds each further one is rarer, and a digit still outside after five is put on the wall.

    Args:
        digits: uint8 `(digits, 28, 28)`, on any device; videos are made on that device.
        deterministic: reflect at walls rather than redraw the speed.
    """

    def __init__(self, digits: Tensor, *, deterministic: bool):
        self.digits = digits.flatten(1)
        self.deterministic = deterministic
        self.bounces = 2 if deterministic else 5
        self.device = digits.device
        pixel = torch.arange(DIGIT_SIZE, device=self.device)
        self.window = (SIZE * pixel[:, None] + pixel).flatten()  # a digit's pixels in a flat frame

    def draw(self, videos: int, frames: int, generator: torch.Generator) -> Tensor:
        """Return videos, float32 `(videos, frames, 1, 64, 64)` in [0, 1].

        Args:
            videos: batch size B.
            frames: length T.
            generator: of random numbers, on the digits' device.
        """
        return self._render(*self._draw_scenes(videos, frames, generator))

    def batches(self, videos: int, frames: int, seed: int, first: int = 0) -> Iterator[Tensor]:
        """Yield training batches from step `first` on, as `srvp.data.VideoSource` says."""
        at_once, rendered = steps_at_once(self.device)
        for block in count(first // at_once):
            generator = torch.Generator(self.device).manual_seed(seed * 1_000_003 + block)
            scenes = self._draw_scenes(at_once * videos, frames, generator)
            parts = zip(*(part.split(rendered * videos) for part in scenes), strict=True)
            starts = range(block * at_once, (block + 1) * at_once, rendered)
            for start, part in zip(starts, parts, strict=True):
                if start + rendered > first:
                    yield from self._render(*part).split(videos)[max(first - start, 0) :]

    def _draw_scenes(
        self, videos: int, frames: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the digits `(videos, 2)`, by number, and their positions."""
        positions = self.draw_positions(videos, frames, generator)
        shape = (videos, DIGITS)
        chosen = torch.randint(len(self.digits), shape, generator=generator, device=self.device)
        return chosen, positions

    def draw_positions(self, videos: int, frames: int, generator: torch.Generator) -> Tensor:
        """Return the rows and columns of the digits, int64 `(videos, frames, 2 digits, 2)`."""
        shape = (videos, DIGITS, 2)
        position = self._randint(0, LIMIT, shape, generator).float()
        speed = self._draw_speed(shape, generator)
        if not self.deterministic:  # of all bounces at once
            new_speeds = self._draw_speed((frames, self.bounces, *shape), generator)
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
        return torch.stack(path, dim=1).round().long()

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

    def _draw_speed(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return self._randint(-MAX_SPEED, MAX_SPEED, shape, generator).float()

    def _randint(
        self, low: int, high: int, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator, device=self.device)

    def _render(self, chosen: Tensor, positions: Tensor) -> Tensor:
        """Add the digits `(B, 2)`, by number, up at `positions` `(B, T, 2, 2)`, saturating."""
        videos, frames = positions.shape[:2]
        shapes = self.digits[chosen]
        canvas = torch.zeros(videos, frames, SIZE * SIZE, device=self.device)
        for digit in range(DIGITS):
            row, column = positions[:, :, digit].unbind(-1)
            index = (SIZE * row + column)[..., None] + self.window
            value = shapes[:, None, digit].expand(-1, frames, -1).float()
            canvas.scatter_add_(2, index, value)
        return canvas.clamp(max=255).div(255).view(videos, frames, 1, SIZE, SIZE)


def _overshoot(position: Tensor) -> Tensor:
    return (position - position.clamp(0, LIMIT)).abs()


def _outside(position: Tensor) -> Tensor:
    return _overshoot(position) > TOLERANCE
