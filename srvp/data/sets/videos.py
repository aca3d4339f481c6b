"""Your own videos: a folder of video files and of folders of numbered pictures, of any size.

`python -m srvp videos FOLDER` lists what a folder holds, and writes nothing. `srvp.data.folders`
tells what counts as a video, and to which fold it belongs.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.folders import (
    FOLDS,
    HIDDEN,
    PICTURE_SUFFIXES,
    RawVideo,
    find_videos,
    printable,
    search,
)
from srvp.data.jobs import Job, Video
from srvp.data.pictures import count_pictures
from srvp.data.raw import resized
from srvp.data.staging import Fold, Staged, stage, write

Crop = tuple[int, int, int, int] | Literal["center"] | None


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Write the set from a folder of videos (see `find_videos`).

    Frames are cropped, then resized (Lanczos). Test videos are cut into clips that do not overlap;
    if they are more than `config.test_videos`, as many are taken at even distances.
    """
    videos, left_out = search(raw, **config.split)
    for fold in FOLDS:
        if all(video.fold != fold for video in videos):
            raise ValueError(
                f"none of the {len(videos)} videos of {printable(raw)} falls into the {fold} fold: "
                f"put some into a folder {fold} in it, or change data.test_fraction or "
                "data.validation_fraction"
            )
    if unused := sum(why != HIDDEN for why in left_out.values()):
        print(f"{unused} files are left out: `python -m srvp videos {printable(raw)}` says why")
    jobs = [
        Job(
            "test" if video.fold == "test" else "train",
            video.name,
            video.name,
            video.files,
            partial(_read, video, config),
        )
        for video in videos
    ]
    files = [file for video in videos for file in video.files]
    train, test = stage(raw, out, config, jobs, files)
    held_out = {video.name for video in videos if video.fold == "validation"}
    validation = [i for i, name in enumerate(train.names) if name in held_out]
    write(config, (train, Fold(validation)), (test, _test_fold(test, config)))


def _read(video: RawVideo, config: DataConfig) -> Iterator[Video]:
    frames = video.frames(config.frame_rate)
    yield Video(video.name, _stored(frames, config.size, config.channels, config.crop, video.name))


def _stored(
    frames: Iterable[np.ndarray], size: int, channels: int, crop: Crop, name: str
) -> Iterator[np.ndarray]:
    """Crop and resize frames: uint8 `(C, size, size)`."""
    for frame in frames:
        box = _box(frame, (size, size), crop, name)
        yield resized(frame, (size, size), channels=channels, crop=box)


def read_clip(
    path: Path,
    *,
    size: int,
    channels: int,
    crop: Crop = None,
    rate: float | None = None,
    frames: int | None = None,
) -> tuple[np.ndarray, str]:
    """Read a video as a model takes it.

    Args:
        path: a video file, a file of several pictures, or a folder that holds one of these or a
            sequence of numbered pictures.
        size: height and width of the result.
        channels: 3, or 1 for grey.
        crop: left, upper, right and lower edge in pixels; or `center`, for the largest square.
        rate: frames per second to read; by default every frame.
        frames: most frames to read; by default all.

    Returns:
        uint8 `(T, channels, size, size)`, and a sentence on how they were made.

    Raises:
        FileNotFoundError: there is no video.
        ValueError: it is damaged or truncated, or there are several.
    """
    video = _only_video(Path(path))
    found = video.frames(rate)
    first = next(found, None)
    if first is None:
        raise ValueError(f"{video.name} tells no times: leave the rate out")
    stored = _stored(chain([first], found), size, channels, crop, video.name)
    clip = np.stack(list(islice(stored, frames)))
    told = f"{video.name}: {len(clip)} frames of {first.shape[1]}x{first.shape[0]} pixels"
    told += f" at {rate:g} a second" if rate else ""
    told += f", cropped ({crop if crop == 'center' else list(crop)})" if crop else ""
    told += f", resized to {size}x{size} (Lanczos), {'grey' if channels == 1 else 'RGB'}"
    return clip, told


def _only_video(path: Path) -> RawVideo:
    name = printable(path)
    if path.is_dir():
        videos = find_videos(path)
        if len(videos) > 1:
            some = ", ".join(video.name for video in videos[:3])
            raise ValueError(f"{name} holds {len(videos)} videos, such as {some}: give one of them")
        return replace(videos[0], name=os.path.normpath(os.path.join(name, videos[0].name)))
    if path.suffix.lower() in PICTURE_SUFFIXES - {".gif"} and count_pictures(path, name) == 1:
        raise ValueError(f"{name} is a single picture: give the folder of a sequence, or a video")
    return RawVideo(name, "", (path,))


def _box(
    frame: np.ndarray, size: tuple[int, int], crop: Crop, name: str
) -> tuple[int, int, int, int] | None:
    """Return the edges to crop a frame to, or None."""
    height, width = frame.shape[:2]
    if crop == "center":
        scale = min(width / size[1], height / size[0])
        box_width, box_height = round(size[1] * scale), round(size[0] * scale)
        left, upper = (width - box_width) // 2, (height - box_height) // 2
        return left, upper, left + box_width, upper + box_height
    if crop and not (0 <= crop[0] < crop[2] <= width and 0 <= crop[1] < crop[3] <= height):
        raise ValueError(
            f"the crop {tuple(crop)} (left, upper, right, lower) does not fit {name}, whose frames "
            f"are {width}x{height}: change the crop, or remove the video"
        )
    return crop


def _test_fold(test: Staged, config: DataConfig) -> Fold:
    span = (config.test_frames - 1) * config.frame_step + 1
    cut = [
        (video, start)
        for video, length in enumerate(test.lengths)
        for start in range(0, length - span + 1, span)
    ]
    short = sum(length < span for length in test.lengths)
    notes = [f"{short} test videos are shorter than a test clip and not used"] if short else []
    chosen = np.linspace(0, len(cut) - 1, min(config.test_videos, len(cut))).round().astype(int)
    clips = [cut[i] for i in chosen]
    return Fold([], clips, config.test_frames, config.frame_step, notes)
