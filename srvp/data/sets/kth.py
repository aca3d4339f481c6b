"""KTH: people who box, clap, wave, jog, run and walk. Grey, 25 frames per second.

From the six zip archives of the owner, or the `.avi` files in them, to the sets of the paper: whole
videos of subjects 1-20 to train on, and 1000 clips of 40 frames of subjects 21-25 to test on.
Frames are scaled without keeping their aspect, as by the ffmpeg command, and their first channel is
kept. Videos are in the order of class, subject and trial.

The original data have two gaps, both of training subjects: one video was never there, one ends
early.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.jobs import Job, Video
from srvp.data.prepared import train_validation_split
from srvp.data.raw import RawFile, decode, intact
from srvp.data.staging import Fold, stage, write

CLASSES = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
TEST_SUBJECTS = range(21, 26)
NEVER_THERE = "person13_handclapping_d3"
ENDS_EARLY = "person01_boxing_d4"
RATE = 25  # frames per second
SOURCE = "https://www.csc.kth.se/cvap/actions"


def video_name(subject: int, action: str, trial: int) -> str:
    """Return the name of a video, such as `person07_jogging_d2`."""
    return f"person{subject:02d}_{action}_d{trial}"


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Write the set from the six zip archives or the `.avi` files, at any depth in `raw`."""
    found = find_videos(raw)
    jobs = [_job(name, file, config.size) for name, file in found.items()]
    train, test = stage(raw, out, config, jobs, {file.path for file in found.values()})
    length = dict(zip(train.names, train.lengths, strict=True))
    notes = (
        f"{NEVER_THERE} is not in the original data",
        f"{ENDS_EARLY} ends early in the original data: {length[ENDS_EARLY]} frames",
    )
    _, validation = train_validation_split(len(train.names), config.seed)
    number = {name: index for index, name in enumerate(test.names)}
    drawn = test_clips(dict(zip(test.names, test.lengths, strict=True)), config)
    clips = [(number[name], start) for name, start in drawn]
    write(
        config,
        (train, Fold(validation.tolist(), notes=notes)),
        (test, Fold([], clips, config.test_frames, config.frame_step)),
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


def test_clips(lengths: Mapping[str, int], config: DataConfig) -> list[tuple[str, int]]:
    """Return the test clips of the official code, as (name of the video, first frame).

    For each, NumPy draws class, subject, trial and first frame, in this order. Clips of another
    length than 40 frames are other clips.

    Args:
        lengths: frames of each video of the test subjects.
        config: number and length of the clips, distance of their frames, and the seed.

    Raises:
        ValueError: a clip falls on a video that is too short.
    """
    random = np.random.RandomState(config.seed)
    span = (config.test_frames - 1) * config.frame_step + 1
    drawn = []
    for _ in range(config.test_videos):
        action = CLASSES[random.randint(len(CLASSES))]
        subject = random.randint(TEST_SUBJECTS.start, TEST_SUBJECTS.stop)
        name = video_name(subject, action, random.randint(1, 5))
        if lengths[name] < span:
            raise ValueError(
                f"{name} has {lengths[name]} frames, but a test clip spans {span}: lower "
                "data.test_frames or data.frame_step"
            )
        drawn.append((name, int(random.randint(lengths[name] - span + 1))))
    return drawn


def _job(name: str, file: RawFile, size: int) -> Job:
    subject, action = int(name[6:8]), name.split("_")[1]
    fold = "test" if subject in TEST_SUBJECTS else "train"
    read = partial(_read, name, file, size)
    return Job(fold, f"{action}/{name}", file.label, [file.path], read)


def _read(name: str, file: RawFile, size: int) -> Iterator[Video]:
    with file.open() as opened:
        content = BytesIO(opened.read())
    frames = decode(content, file.label, rate=RATE, size=(size, size), truncated=name == ENDS_EARLY)
    yield Video(name, (frame[None, :, :, 0] for frame in frames))
