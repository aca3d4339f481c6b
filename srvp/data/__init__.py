"""Data sets: from the raw files to training batches and the paper's test clips."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from srvp.data.config import DataConfig
from srvp.data.prepared import ClipSampler, PreparedVideos
from srvp.data.sets import SETS
from srvp.models.interface import Clips

if TYPE_CHECKING:
    from srvp.data.sets.moving_mnist import PerfectModel


class VideoSource(Protocol):
    """Endless random clips to train on."""

    def draw(self, count: int, frames: int, generator: torch.Generator) -> Clips:
        """Return `count` clips of `frames` frames, on the device that trains."""

    def batches(self, count: int, frames: int, seed: int, first: int = 0) -> Iterator[Clips]:
        """Yield such clips for training steps `first`, `first` + 1, ... without end.

        They depend only on the seed and the step: not on the model, nor on where a run began.

        Args:
            count: batch size B.
            frames: length T.
            seed: of all batches.
            first: number of the first step, from 0.
        """


class TrainingVideos(NamedTuple):
    """The two folds of the training data."""

    train: VideoSource
    validation: VideoSource


def prepare(config: DataConfig, data_root: Path, out: Path) -> None:
    """Prepare a data set: read the owners' files once, check them, write what training reads.

    Args:
        config: which data set, the form of its frames, and its test clips.
        data_root: folder of all raw data, `data/`; `SETS` names the folder of a set in it.
        out: folder of the prepared set. A set of files that is up to date is left as it is; a set
            that is drawn is drawn again.

    Raises:
        FileNotFoundError, ValueError: a raw file is missing or damaged, which the message names; or
            there are fewer test clips than `config` asks for.
    """
    raw = Path(data_root) / SETS[config.dataset].raw
    _import_file(config).prepare(raw, Path(out), config)


def open_training(config: DataConfig, folder: Path, device: torch.device) -> TrainingVideos:
    """Open the training data of a prepared set.

    Args:
        config: that the set was prepared with.
        folder: of the prepared set.
        device: that trains. Moving MNIST is drawn there; other videos are brought there.

    Raises:
        FileNotFoundError: there is no prepared set.
        ValueError: it is damaged, or was prepared with other settings.
    """
    if SETS[config.dataset].drawn:
        return TrainingVideos(*_import_file(config).open_training(config, folder, device))
    videos = PreparedVideos.open(Path(folder) / "train", config)
    folds = (videos.training, videos.validation)
    return TrainingVideos(*(ClipSampler(videos, f, config.frame_step, device) for f in folds))


def open_test(config: DataConfig, folder: Path) -> PreparedVideos:
    """Open the test clips of a prepared set: the first `test_videos` in the paper's order.

    Raises:
        FileNotFoundError: there is no prepared set.
        ValueError: it is damaged, was prepared with other settings, or has too few clips.
    """
    videos = PreparedVideos.open(Path(folder) / "test", config)
    videos.check_setting("frame_step", videos.frame_step, config.frame_step)
    videos.check_setting("test_frames", videos.clip_frames, config.test_frames)
    if len(videos.clips) < config.test_videos:
        videos.check_setting("test_videos", len(videos.clips), config.test_videos)
    videos.clips = videos.clips[: config.test_videos]
    return videos


def perfect_model(
    config: DataConfig, data_root: Path, videos: PreparedVideos, device: torch.device
) -> "PerfectModel | None":
    """Return the simulator of a test set, if it was simulated and its raw files are at hand.

    Args:
        config: of the data.
        data_root: folder of all raw data, `data/`.
        videos: the test set.
        device: where to draw frames.
    """
    row = SETS[config.dataset]
    raw, states = Path(data_root) / row.raw, videos.folder / "positions.npy"
    if not (row.simulated and raw.is_dir() and states.is_file()):
        return None
    return _import_file(config).PerfectModel(raw, config, device)


def _import_file(config: DataConfig) -> ModuleType:
    """Import the file of a data set: most need PyAV, which a machine that only trains lacks."""
    return importlib.import_module(f"srvp.data.sets.{SETS[config.dataset].module}")
