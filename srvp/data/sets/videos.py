"""Your own videos: a folder of video files and of folders of numbered frames, of any size.

`python -m srvp.data.sets.videos FOLDER` tells what a folder holds, and writes nothing.

Each video belongs to the training, validation or test fold for good: by the name of its top-level
folder if that is `train`, `validation` or `test`, else by a hash of its path in the folder, which
stays the same when other videos are added.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from srvp.data.config import DataConfig
from srvp.data.jobs import Job, Video
from srvp.data.raw import REPLACE, decode, resized
from srvp.data.staging import Fold, Staged, stage, write

FOLDS = ("train", "validation", "test")
VIDEO_SUFFIXES = {".mp4", ".avi", ".webm", ".gif", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}

Crop = tuple[int, int, int, int] | Literal["center"] | None


@dataclass(frozen=True)
class RawVideo:
    """A video as found.

    Attributes:
        name: path in the folder searched, with `/`.
        fold: `train`, `validation` or `test`.
        files: the video file, or the images of the frames in the order of their numbers.
    """

    name: str
    fold: str
    files: tuple[Path, ...]

    @property
    def is_frames(self) -> bool:
        return self.files[0].suffix.lower() in IMAGE_SUFFIXES

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class Facts:
    """What the header of a video tells.

    Attributes:
        frames: how many, as the header has it.
        width, height: of the first frame, in pixels.
        rate: frames per second; None for numbered frames.
        problem: why it cannot be read, or empty.
    """

    frames: int = 0
    width: int = 0
    height: int = 0
    rate: float | None = None
    problem: str = ""


def find_videos(
    raw: Path, *, test_fraction: float = 0.1, validation_fraction: float = 0.05
) -> list[RawVideo]:
    """Return the videos of a folder, at any depth, by name. Hidden files are skipped.

    Args:
        raw: the folder. One that directly holds images is a video of numbered frames.
        test_fraction: of the videos that the hash of their name puts into the test fold.
        validation_fraction: likewise for the validation fold.

    Raises:
        FileNotFoundError: there is none.
    """
    raw = Path(raw)
    files: dict[str, list[Path]] = {}
    for path in raw.rglob("*"):
        inside = path.relative_to(raw)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                files[inside.as_posix()] = [path]
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                files.setdefault(inside.parent.as_posix(), []).append(path)
    if not files:
        raise FileNotFoundError(
            f"{raw} holds no videos: it needs files such as .mp4, .avi, .webm or .gif, or folders "
            "of numbered images"
        )
    fold = partial(fold_of, test_fraction=test_fraction, validation_fraction=validation_fraction)
    return [
        RawVideo(name, fold(name), tuple(sorted(paths, key=_numbers_as_numbers)))
        for name, paths in sorted(files.items())
    ]


def _numbers_as_numbers(path: Path) -> list[str | int]:
    """Sort key that puts frame 10 after frame 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def fold_of(name: str, *, test_fraction: float, validation_fraction: float) -> str:
    """Return the fold of a video, which depends on nothing but its name and the fractions."""
    if (top := name.split("/")[0]) in FOLDS and top != name:
        return top
    uniform = int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13  # in [0, 1)
    if uniform < test_fraction:
        return "test"
    return "validation" if uniform < test_fraction + validation_fraction else "train"


def inspect(video: RawVideo) -> Facts:
    """Return what the header of a video tells, without decoding it."""
    try:
        if video.is_frames:
            with Image.open(video.files[0]) as image:
                return Facts(len(video.files), *image.size)
        with av.open(video.files[0]) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            frames = stream.frames or round((container.duration or 0) / av.time_base * rate)
            return Facts(frames, stream.width, stream.height, rate)
    except (OSError, ValueError, IndexError) as error:
        return Facts(problem=f"{error}" or type(error).__name__)


def report(videos: list[RawVideo]) -> str:
    """Return a table of what was found, a line per video, and the size of each fold."""
    lines = [f"{'video':40} {'fold':10} {'frames':>7} {'size':>9} {'rate':>6} {'seconds':>8}"]
    for video in videos:
        facts = inspect(video)
        told = f"{facts.frames:7} {f'{facts.width}x{facts.height}':>9}"
        if facts.rate:
            told += f" {facts.rate:6g} {facts.frames / facts.rate:8.1f}"
        if facts.problem:
            told = f"cannot be read: {facts.problem}"
        lines.append(f"{video.name:40} {video.fold:10} {told}")
    counts = [f"{sum(video.fold == fold for video in videos)} {fold}" for fold in FOLDS]
    return "\n".join([*lines, f"{len(videos)} videos: {', '.join(counts)}"])


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Write the set from a folder of videos (see `find_videos`).

    Frames are cropped, then resized (Lanczos). Test videos are cut into clips that do not overlap;
    if they are more than `config.test_videos`, as many are taken at even distances.
    """
    fractions = {
        "test_fraction": config.test_fraction,
        "validation_fraction": config.validation_fraction,
    }
    videos = find_videos(raw, **fractions)
    for fold in FOLDS:
        if all(video.fold != fold for video in videos):
            raise ValueError(
                f"none of the {len(videos)} videos of {raw} falls into the {fold} fold: put some "
                f"into a folder {fold} in it, or change data.test_fraction or "
                "data.validation_fraction"
            )
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
    if video.is_frames:
        frames = map(_read_image, video.files)
    else:
        frames = decode(video.files[0], video.name, rate=config.frame_rate)
    size = (config.size, config.size)
    stored = (
        resized(
            frame,
            size,
            channels=config.channels,
            crop=_box(frame, size, config.crop, video.name),
        )
        for frame in frames
    )
    yield Video(video.name, stored)


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path} is damaged or no image ({error}): {REPLACE}") from None


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


def main() -> None:
    """Print what a folder holds."""
    parser = argparse.ArgumentParser(
        prog="python -m srvp.data.sets.videos", description="Tell which videos a folder holds."
    )
    parser.add_argument("folder", type=Path)
    try:
        print(report(find_videos(parser.parse_args().folder)))
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
