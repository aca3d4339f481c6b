"""Data sets: from the raw files to training batches and the published test sets."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from srvp.data.config import DataConfig
from srvp.data.prepared import ClipSampler, PreparedVideos, train_validation_split
from srvp.data.sets import mnist, moving_mnist
from srvp.data.sets.moving_mnist import MovingMNIST
from srvp.data.staging import Fold, Video, write_prepared
from srvp.files import atomic_write


class VideoSource(Protocol):
    """Endless random videos to train on."""

    def draw(self, videos: int, frames: int, generator: torch.Generator) -> Tensor:
        """Return float32 `(videos, frames, C, 64, 64)` in [0, 1], on the device that trains."""

    def batches(self, videos: int, frames: int, seed: int, first: int = 0) -> Iterator[Tensor]:
        """Yield such videos for training steps `first`, `first` + 1, ... without end.

        They depend on the seed and the step alone: not on the model, nor on where a run began.

        Args:
            videos: batch size B.
            frames: length T.
            seed: of all batches.
            first: number of the first step, from 0.
        """


class TrainingVideos(NamedTuple):
    """The two folds of the training data."""

    train: VideoSource
    validation: VideoSource


MOVING_MNIST = {"smmnist": False, "dmmnist": True}  # name: whether bounces are deterministic


def prepare(config: DataConfig, raw: Path, out: Path) -> None:
    """Prepare a data set: read the owners' files once, check them, write what training reads.

    Args:
        config: which data set, and its test clips.
        raw: folder of the raw data sets, `data/`; a set lies in the folder of its name, both
            Moving MNIST in `mnist`.
        out: folder of the prepared set; left out if it could not be completed.

    Raises:
        FileNotFoundError, ValueError: a raw file is missing or damaged; the message names it.
    """
    if config.dataset in MOVING_MNIST:
        _prepare_moving_mnist(config, raw / "mnist", out)
    else:
        _prepare_videos(config, raw / config.dataset, out)


def _prepare_moving_mnist(config: DataConfig, raw: Path, out: Path) -> None:
    digits, _ = mnist.load(raw, "train")
    test = moving_mnist.test_set(
        raw,
        frames=config.test_frames,
        deterministic=MOVING_MNIST[config.dataset],
        seed=config.seed,
        videos=config.test_videos,
    )
    with atomic_write(out / "train" / "digits.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, digits)
    videos = (
        Video(f"{i:04d}", x[:, None], {"positions": test.positions[i], "speeds": test.speeds[i]})
        for i, x in enumerate(test.sequences)
    )
    clips = Fold(clips=[(i, 0) for i in range(config.test_videos)], clip_frames=config.test_frames)
    write_prepared(out / "test", videos, clips, dataset=config.dataset)


def _prepare_videos(config: DataConfig, raw: Path, out: Path) -> None:
    # Decoding needs PyAV, which a machine that only trains can do without.
    from srvp.data.sets import bair, human36m, kth, videos

    length = {"clip_frames": config.test_frames, "clips": config.test_videos}
    step = {"frame_step": config.frame_step}
    if config.dataset == "kth":
        kth.prepare(raw, out, seed=config.seed, **length)
    elif config.dataset == "human36m":
        human36m.prepare(raw, out, seed=config.seed, **length, **step)
    elif config.dataset == "bair":
        bair.prepare(raw, out, seed=config.seed)
    else:
        own = {"channels": config.channels, "crop": config.crop, "rate": config.frame_rate}
        videos.prepare(raw, out, **length, **step, **own)


def open_training(config: DataConfig, folder: Path, device: torch.device) -> TrainingVideos:
    """Open the training data of a prepared set.

    Args:
        config: that the set was prepared with.
        folder: of the prepared set.
        device: that trains; Moving MNIST is drawn there, and other videos are brought there.

    Raises:
        FileNotFoundError: there is no prepared set.
    """
    if config.dataset not in MOVING_MNIST:
        videos = PreparedVideos.open(folder / "train")
        _check_channels(videos, config)
        folds = (videos.training, videos.validation)
        step = config.frame_step
        return TrainingVideos(*(ClipSampler(videos, fold, step, device) for fold in folds))
    digits = np.load(folder / "train" / "digits.npy")
    deterministic = MOVING_MNIST[config.dataset]
    folds = (torch.from_numpy(digits[f]) for f in train_validation_split(len(digits), config.seed))
    return TrainingVideos(
        *(MovingMNIST(fold.to(device), deterministic=deterministic) for fold in folds)
    )


def open_test(config: DataConfig, folder: Path) -> PreparedVideos:
    """Open the test clips of a prepared set: the first `test_videos` in the published order.

    Raises:
        FileNotFoundError: there is no prepared set.
        ValueError: it has too few clips, or clips of another length or colour.
    """
    videos = PreparedVideos.open(folder / "test")
    _check_channels(videos, config)
    found = (len(videos.clips), videos.clip_frames)
    if found[0] < config.test_videos or found[1] != config.test_frames:
        raise ValueError(
            f"{videos.folder} holds {found[0]} clips of {found[1]} frames, but data.test_videos "
            f"is {config.test_videos} and data.test_frames {config.test_frames}: change these, or "
            "run the prepare stage again"
        )
    videos.clips = videos.clips[: config.test_videos]
    return videos


def _check_channels(videos: PreparedVideos, config: DataConfig) -> None:
    if videos.channels != config.channels:
        raise ValueError(
            f"{videos.folder} has {videos.channels} channel(s), but data.channels is "
            f"{config.channels}: change it, or run the prepare stage again"
        )
