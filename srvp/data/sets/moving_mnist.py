"""Stochastic and Deterministic Moving MNIST: two digits that move and bounce in a frame.

A digit moves in a straight line at a whole number of pixels per frame. Where it meets a wall, the
stochastic variant (SM-MNIST) redraws its speed, the deterministic one (DM-MNIST) reflects it.
Bounces happen at the exact point of contact, within a frame.

There are two implementations of the one process. `test_set` follows the official generator draw by
draw, so that the test sequences are those of the paper, bit for bit. `MovingMNIST`, in
`moving_digits.py`, draws whole training batches as tensors, on the device that trains.

Both compute paths in a box of 64 pixels, in which a digit is 28 pixels wide. Frames of another size
show the same scenes, finer or coarser.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from srvp.data.config import DataConfig
from srvp.data.prepared import PreparedVideos, train_validation_split
from srvp.data.sets import mnist
from srvp.data.sets.moving_digits import (
    BOX,
    DIGIT,
    DIGITS,
    LIMIT,
    MAX_SPEED,
    TOLERANCE,
    MovingMNIST,
)
from srvp.data.staging import Fold, Video, write_prepared

DETERMINISTIC = {"smmnist": False, "dmmnist": True}  # by name of the data set


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
    scenes = test_scenes(folder, config)
    # Half to even, as Python's round.
    positions = np.rint(scenes.states[..., :2] * (config.size / BOX)).astype(np.int64)
    return TestSet(
        sequences=_render(scenes.digits, positions),
        positions=positions,
        speeds=scenes.states[..., 2:].astype(np.int64),
        labels=scenes.labels,
    )


class Scenes(NamedTuple):
    """The digits and paths that test videos are drawn from (N videos of T frames)."""

    digits: np.ndarray  # uint8 (N, 2, n, n), as large as they are in the frames
    labels: np.ndarray  # uint8 (N, 2): the class of each digit
    # float64 (N, T, 2 digits, 4): row, column and their speeds, in pixels of a frame of 64x64. Row
    # and column are fractions after a bounce within a frame.
    states: np.ndarray


def test_scenes(folder: Path, config: DataConfig) -> Scenes:
    """Return the scenes of the test videos, arguments as for `test_set`."""
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
    shapes = resized(digits[chosen], config.size)
    return Scenes(
        digits=shapes.reshape(count, DIGITS, *shapes.shape[1:]),
        labels=classes[chosen].reshape(count, DIGITS),
        states=paths.reshape(count, DIGITS, frames, 4).transpose(0, 2, 1, 3),
    )


class PerfectModel:
    """The generator as a model of its test videos: true digits, true state, bounces drawn anew.

    No model that sees only frames can predict better.

    Args:
        raw: where the MNIST files lie.
        config: of the test videos.
        device: where to draw frames.
    """

    def __init__(self, raw: Path, config: DataConfig, device: torch.device):
        scenes = test_scenes(raw, config)
        self.states = torch.from_numpy(scenes.states)
        self.deterministic = DETERMINISTIC[config.dataset]
        digits = torch.from_numpy(scenes.digits).flatten(0, 1)
        self.world = MovingMNIST(digits.to(device), deterministic=self.deterministic)
        # Paths are drawn on the CPU, so that they are the same anywhere.
        self.paths = MovingMNIST(digits[:1], deterministic=self.deterministic)

    def draw_paths(
        self, number: int, given: int, frames: int, samples: int, generator: torch.Generator
    ) -> Tensor:
        """Return rows and columns of the digits in futures of a video `(samples, frames, 2, 2)`.

        Args:
            number: of the video.
            given: frames that are known: the last of them has the true state.
            frames: to predict.
            samples: how many futures.
            generator: of the speeds after bounces, on the CPU.
        """
        last = self.states[number, given - 1].expand(samples, -1, -1)
        position, speed = last.split(2, dim=-1)
        return self.paths.follow(position + speed, speed, frames, generator)

    def render(self, numbers: list[int], paths: Tensor) -> Tensor:
        """Return the frames `(B, s, F, 1, H, W)` of paths `(B, s, F, 2, 2)` of some videos."""
        chosen = DIGITS * torch.tensor(numbers)[:, None] + torch.arange(DIGITS)
        chosen = chosen.repeat_interleave(paths.shape[1], dim=0).to(self.world.device)
        frames = self.world.render(chosen, paths.flatten(0, 1).to(self.world.device)).frames
        return frames.unflatten(0, paths.shape[:2])


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
