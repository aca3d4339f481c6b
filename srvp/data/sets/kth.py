"""KTH: people who box, clap, wave, jog, run and walk. Grey, 25 frames per second.

From the six zip archives of the owner, or the `.avi` files in them, to the published sets: whole
videos of subjects 1-20 to train on, and 1000 clips of 40 frames of subjects 21-25 to test on.
Frames are scaled to 64x64 without keeping their aspect, as by the ffmpeg command, and their first
channel is kept. Videos are in the order of class, subject and trial.

The original data have two gaps, both of training subjects: one video was never there, one ends
early.
"""

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from srvp.data import staging
from srvp.data.prepared import train_validation_split
from srvp.data.raw import RawFile, decode, intact

CLASSES = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
TEST_SUBJECTS = range(21, 26)
NEVER_THERE = "person13_handclapping_d3"
ENDS_EARLY = "person01_boxing_d4"
RATE = 25  # frames per second
SOURCE = "https://www.csc.kth.se/cvap/actions"


def video_name(subject: int, action: str, trial: int) -> str:
    """Return the name of a video, such as `person07_jogging_d2`."""
    return f"person{subject:02d}_{action}_d{trial}"


def prepare(
    raw: Path,
    out: Path,
    *,
    size: int = 64,
    clip_frames: int = 40,
    clips: int = 1000,
    seed: int = 42,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write `out/train` and `out/test` from the raw files.

    Args:
        raw: folder that holds, at any depth, the six zip archives or the `.avi` files.
        out: folder for the two folds.
        size: height and width of the frames.
        clip_frames: length of a test clip; another than 40 gives other clips.
        clips: number of test clips; fewer are the first of the published ones.
        seed: of the test clips and of the split into training and validation.
        workers: processes that decode, by default one per core.
        progress: show a progress bar and notes on the raw data.

    Raises:
        FileNotFoundError: videos are missing, besides the one that never existed.
        ValueError: a raw file is damaged. What is finished is kept for the next run.
    """
    raw = Path(raw)
    found = find_videos(raw)
    describe = partial(_describe, clip_frames=clip_frames, clips=clips, seed=seed)
    settings = {"size": size, "clip_frames": clip_frames, "clips": clips, "seed": seed}
    files = {file.path for file in found.values()}
    staging.prepare(
        out,
        [_job(name, file, size) for name, file in found.items()],
        describe,
        manifest={
            "dataset": "kth",
            "settings": settings,
            "raw": staging.raw_sizes(raw, files),
        },
        workers=workers,
        progress=progress,
    )


def find_videos(raw: Path) -> dict[str, RawFile]:
    """Return the raw file of each of the 599 videos, by name; one in an archive comes first."""
    found = {}
    for path in sorted(raw.rglob("*.avi")):
        found[_name(path.name)] = RawFile(path, None, path.stat().st_size)
    for path in sorted(raw.rglob("*.zip")):
        with intact(path), zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                found[_name(member.filename)] = RawFile(path, member.filename, member.file_size)
    names = [
        video_name(subject, action, trial)
        for action in CLASSES
        for subject in range(1, 26)
        for trial in range(1, 5)
    ]
    names.remove(NEVER_THERE)
    missing = [name for name in names if name not in found]
    if missing:
        archives = ", ".join(f"{action}.zip" for action in CLASSES)
        raise FileNotFoundError(
            f"{raw} lacks {len(missing)} of the {len(names)} KTH videos, such as "
            f"{missing[0]}_uncomp.avi: it needs {archives} from {SOURCE}"
        )
    return {name: found[name] for name in names}


def _name(path: str) -> str | None:
    match = re.fullmatch(r"(?:.*/)?(person\d\d_[a-z]+_d\d)_uncomp\.avi", path)
    return match and match[1]


def test_clips(
    lengths: Mapping[str, int], *, clip_frames: int = 40, clips: int = 1000, seed: int = 42
) -> list[tuple[str, int]]:
    """Return the published test clips, as (name of the video, first frame).

    For each, NumPy draws class, subject, trial and first frame, in this order.

    Args:
        lengths: frames of each video of the test subjects.
        clip_frames: length of a clip.
        clips: how many.
        seed: of the random state.
    """
    random = np.random.RandomState(seed)
    drawn = []
    for _ in range(clips):
        action = CLASSES[random.randint(len(CLASSES))]
        subject = random.randint(TEST_SUBJECTS.start, TEST_SUBJECTS.stop)
        name = video_name(subject, action, random.randint(1, 5))
        if lengths[name] < clip_frames:
            raise ValueError(f"{name} has {lengths[name]} frames: too few for {clip_frames}")
        drawn.append((name, int(random.randint(lengths[name] - clip_frames + 1))))
    return drawn


def _job(name: str, file: RawFile, size: int) -> staging.Job:
    subject, action = int(name[6:8]), name.split("_")[1]
    fold = "test" if subject in TEST_SUBJECTS else "train"
    read = partial(_read, name, file, size)
    return staging.Job(fold, f"{action}/{name}", file.label, file.size, read)


def _read(name: str, file: RawFile, size: int) -> Iterator[staging.Video]:
    with file.open() as opened:
        content = opened.read()
    frames = decode(
        BytesIO(content),
        file.label,
        rate=RATE,
        size=(size, size),
        truncated=name == ENDS_EARLY,
    )
    grey = (frame[None, :, :, 0] for frame in frames)
    checksum = hashlib.sha256(content).hexdigest()
    yield staging.Video(name, grey, source=file.label, sha256=checksum)


def _describe(
    fold: str, names: list[str], lengths: list[int], *, clip_frames: int, clips: int, seed: int
) -> staging.Fold:
    length = dict(zip(names, lengths, strict=True))
    if fold == "train":
        notes = (
            f"{NEVER_THERE} is not in the original data",
            f"{ENDS_EARLY} ends early in the original data: {length[ENDS_EARLY]} frames",
        )
        validation = train_validation_split(len(names), seed)[1].tolist()
        return staging.Fold(validation=validation, notes=notes)
    number = {name: index for index, name in enumerate(names)}
    drawn = test_clips(length, clip_frames=clip_frames, clips=clips, seed=seed)
    listed = [(number[name], start) for name, start in drawn]
    return staging.Fold(clips=listed, clip_frames=clip_frames)
