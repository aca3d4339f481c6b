"""A toy: a bright square that moves as its actions say, from `{train,test}/NAME.npz`.

A raw file has `frames` uint8 (T, H, W) and `actions` (T, 2), pixels down and to the right.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.jobs import Job, Video
from srvp.data.prepared import train_validation_split
from srvp.data.staging import Fold, stage, write


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Write the set with the actions of every frame."""
    files = sorted(raw.glob("*/*.npz"))
    jobs = [Job(f.parent.name, f.stem, f.name, [f], partial(_read, f)) for f in files]
    train, test = stage(raw, out, config, jobs, files)
    _, validation = train_validation_split(len(train.names), config.seed)
    clips = [(video, 0) for video in range(len(test.names))]
    write(
        config,
        (train, Fold(validation.tolist())),
        (test, Fold([], clips, config.test_frames, config.frame_step)),
    )


def _read(file: Path) -> Iterator[Video]:
    with np.load(file, allow_pickle=False) as content:
        actions = content["actions"].astype(np.float32)
        yield Video(file.stem, content["frames"][:, None], {"actions": actions})
