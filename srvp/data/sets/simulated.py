"""What the simulated sets share: their folds, and how these are stored.

There are 5,000 training videos, as in the sets of KVAE (Fraccaro et al., 2017); a part of them
validates. Training and test videos have random numbers of their own, from one seed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.prepared import train_validation_split
from srvp.data.staging import Fold, Video, write_prepared

TRAINING_VIDEOS = 5000
TRAINING_FRAMES = 20  # of a video, `frame_step` stored frames apart


class Request(NamedTuple):
    """The videos that a fold needs."""

    fold: str
    random: np.random.Generator  # that draws them, one after the other
    count: int  # N
    frames: int  # T, all to be stored


def requests(config: DataConfig) -> list[Request]:
    """Return what has to be simulated for the two folds."""
    sizes = {
        "train": (TRAINING_VIDEOS, TRAINING_FRAMES),
        "test": (config.test_videos, config.test_frames),
    }
    return [
        Request(
            fold,
            np.random.default_rng((config.seed, i)),
            count,
            (frames - 1) * config.frame_step + 1,
        )
        for i, (fold, (count, frames)) in enumerate(sizes.items())
    ]


def write(
    out: Path,
    request: Request,
    config: DataConfig,
    videos: Iterable[np.ndarray],
    **extras: np.ndarray,
) -> None:
    """Store a fold.

    Args:
        out: folder of the prepared set.
        request: what was asked for.
        config: of the set.
        videos: N videos of pixels 0 and 1 (bool): `(T, H, W)`.
        extras: what is known of every frame, by name: `(N, T, ...)`.
    """
    stored = (
        Video(f"{i:04d}", 255 * x[:, None].astype(np.uint8), {k: v[i] for k, v in extras.items()})
        for i, x in enumerate(videos)
    )
    if request.fold == "train":
        _, validation = train_validation_split(request.count, config.seed)
        fold = Fold(validation=validation.tolist())
    else:
        clips = [(i, 0) for i in range(request.count)]
        fold = Fold(clips=clips, clip_frames=config.test_frames, frame_step=config.frame_step)
    settings = {key: getattr(config, key) for key in ("dataset", "size", "seed")}
    write_prepared(out / request.fold, stored, fold, settings=settings)


def pixel_centres(size: int, units: float) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column `(size, 1)`, `(1, size)` of the pixels of a frame `units` long."""
    centres = (np.arange(size) + 0.5) * units / size
    return centres[:, None], centres[None, :]
