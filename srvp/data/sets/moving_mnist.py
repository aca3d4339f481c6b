"""Stochastic and Deterministic Moving MNIST: two digits that move and bounce in a frame.

A digit moves in a straight line at a whole number of pixels per frame. Where it meets a wall, the
stochastic variant (SM-MNIST) redraws its speed, the deterministic one (DM-MNIST) reflects it.
Bounces happen at the exact point of contact, within a frame.

There are two implementations of the one process. `test_set` follows the official generator draw by
draw, so that the test sequences are those of the paper, bit for bit. `MovingMNIST` draws whole
training batches as tensors, on the device that trains.

Both compute paths in a box of 64 pixels, in which a digit is 28 pixels wide. Frames of another size
show the same scenes, finer or coarser.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count as count_from
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from srvp.data.config import DataConfig
from srvp.data.prepared import PreparedVideos, train_validation_split
from srvp.data.sets import mnist
from srvp.data.staging import Fold, Video, write_prepared
from srvp.models import interface
from srvp.models.interface import Clips

DETERMINISTIC = {"smmnist": False, "dmmnist": True}  # by name of the data set
DIGITS = 2  # per video
# In pixels of a frame of 64x64:
BOX = 64
DIGIT = 28
LIMIT = BOX - DIGIT  # largest row or column of a digit's upper left corner
MAX_SPEED = 4  # per frame, on each axis; zero is allowed
TOLERANCE = 1e-8  # outside the box that does not yet count as a bounce


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Write the training digits, as the frames of one video, and the test set."""
    digits, _ = mnist.load(raw, "train")
    test = test_set(raw, config)
    videos = (
        Video(f"{i:04d}", x[:, None], {"positions": test.positions[i], "speeds": test.speeds[i]})
        for i, x in enumerate(test.sequences)
    )
    clips = Fold(clips=[(i, 0) for i in range(config.test_videos)], clip_frames=config.test_frames)
    about = {"settings": {"dataset": config.dataset, "size": config.size, "seed": config.seed}}
    digits = Video("digits", resized(digits, config.size)[:, None])
    write_prepared(out / "train", [digits], Fold(), **about)
    write_prepared(out / "test", videos, clips, **about)


def open_training(config: DataConfig, folder: Path, device: torch.device) -> list["MovingMNIST"]:
    """Return a source of training and one of validation videos, which share no digit."""
    prepared = PreparedVideos.open(Path(folder) / "train", config)
    digits = torch.from_numpy(prepared.clip(0, 0, prepared.lengths[0])[:, 0])
    folds = train_validation_split(len(digits), config.seed)
    deterministic = DETERMINISTIC[config.dataset]
    return [MovingMNIST(digits[f].to(device), deterministic=deterministic) for f in folds]


def resized(digits: np.ndarray, size: int) -> np.ndarray:
    """Scale digits, uint8 `(digits, 28, 28)`, for frames of `size` pixels (Lanczos)."""
    if size == BOX:
        return digits
    from PIL import Image  # only other sizes than the paper's need it

    side = DIGIT * size // BOX
    resize = partial(Image.Image.resize, size=(side, side), resample=Image.Resampling.LANCZOS)
    return np.stack([resize(Image.fromarray(digit)) for digit in digits])


@dataclass(frozen=True)
class TestSet:
    """Moving MNIST test videos with the latent factors that made them (N videos of T frames)."""

    sequences: np.ndarray  # uint8 (N, T, size, size)
    positions: np.ndarray  # int64 (N, T, 2 digits, 2): row, column of the upper left corner, pixels
    speeds: np.ndarray  # int64 (N, T, 2 digits, 2): of row and column, 64ths of the size per frame
    labels: np.ndarray  # uint8 (N, 2): the class of each digit


def test_set(folder: Path, config: DataConfig) -> TestSet:
    """Return the test videos of the official protocol, bit for bit.

    One permutation of the 10,000 MNIST test digits is drawn first. Video i shows digits 2i and
    2i + 1 of it, so that no digit is used twice. Fewer videos are the first ones of the full set of
    5,000. The paper uses 25 frames for the stochastic variant and 100 for the deterministic one.

    Args:
        folder: where the MNIST files lie.
        config: number and length of the videos, size of their frames, and the seed of the NumPy
            random state that draws everything.
    """
    count, frames = config.test_videos, config.test_frames
    digits, classes = mnist.load(folder, "test")
    if not 1 <= count <= len(digits) // DIGITS:
        raise ValueError(
            f"data.test_videos is {count}: the test digits make 1 to {len(digits) // DIGITS}"
        )
    random = np.random.RandomState(config.seed)
    chosen = random.permutation(len(digits))[: count * DIGITS]
    deterministic = DETERMINISTIC[config.dataset]
    paths = np.array([_trajectory(random, frames, deterministic) for _ in chosen])
    paths = paths.reshape(count, DIGITS, frames, 4).transpose(0, 2, 1, 3)
    # Half to even, as Python's round.
    positions = np.rint(paths[..., :2] * (config.size / BOX)).astype(np.int64)
    shapes = resized(digits[chosen], config.size)
    return TestSet(
        sequences=_render(shapes.reshape(count, DIGITS, *shapes.shape[1:]), positions),
        positions=positions,
        speeds=paths[..., 2:].astype(np.int64),
        labels=classes[chosen].reshape(count, DIGITS),
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
        shapes: uint8 `(N, digits, n, n)`.
        positions: integers `(N, T, digits, 2)`.
    """
    side = shapes.shape[-1]
    size = side * BOX // DIGIT
    sequences = np.zeros((*positions.shape[:2], size, size), dtype=np.uint8)
    for video, digits, path in zip(sequences, shapes, positions.tolist(), strict=True):
        for frame, corners in zip(video, path, strict=True):
            for digit, (row, column) in zip(digits, corners, strict=True):
                window = frame[row : row + side, column : column + side]
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
        return self._render(*self._draw_scenes(count, frames, generator))

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
                    batches = self._render(*part).frames.split(count)
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
        if not self.deterministic:  # of all bounces at once
            all_bounces = (frames, self.bounces, *shape)
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

    def _render(self, chosen: Tensor, positions: Tensor) -> Clips:
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
