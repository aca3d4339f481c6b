"""Human3.6M: people who act out everyday scenes. RGB, 50 frames per second, every 8th is used.

From the `.tgz` archives of the owner (one per subject) or the `S*/Videos/*.mp4` in them to the sets
of the paper: subjects 1, 5, 6, 7 and 8 to train on, and 1000 clips of 53 frames of subjects 9 and
11 to test on. Frames are cropped to the box from (100, 100) to (900, 900), then resized (Lanczos).
All of them are stored, since a clip may start at any. Names of videos that start with `_` are
skipped. Videos are in the order of their names as strings.
"""

import gzip
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.jobs import Job, Video, room_for
from srvp.data.prepared import train_validation_split
from srvp.data.raw import decode, intact, resized, tar_files
from srvp.data.staging import Fold, Staged, stage, write
from srvp.files import atomic_write

SUBJECTS = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}
CROP = (100, 100, 900, 900)  # left, upper, right, lower
SOURCE = "http://vision.imar.ro/human3.6m (on request)"
VIDEO = re.compile(r"(?:.*/)?S(\d+)/Videos/([^_/][^/]*)\.mp4")


def prepare(raw: Path, out: Path, config: DataConfig) -> None:
    """Write the set from the `.tgz` archives or `S*/Videos/*.mp4`, at any depth in `raw`.

    An archive is read once, from its start to its end. Only the videos that are being decoded lie
    unpacked on the disk.
    """
    archives = sorted([*raw.rglob("*.tgz"), *raw.rglob("*.tar.gz")])
    videos = sorted(path for path in raw.rglob("*.mp4") if VIDEO.fullmatch(path.as_posix()))
    if not archives and not videos:
        raise FileNotFoundError(
            f"{raw} holds no videos: it needs the .tgz archives of the videos of subjects 1, 5, 6, "
            f"7, 8, 9 and 11 from {SOURCE}, or S*/Videos/*.mp4 in them"
        )
    jobs = _jobs(archives, videos, out / ".staging" / "unpacked", config.size)
    train, test = stage(raw, out, config, jobs, [*archives, *videos])
    notes = [_count_per_subject(raw, staged) for staged in (train, test)]
    _, validation = train_validation_split(len(train.names), config.seed)
    clips = test_clips(test.lengths, config)
    write(
        config,
        (train, Fold(validation.tolist(), notes=[notes[0]])),
        (test, Fold([], clips, config.test_frames, config.frame_step, [notes[1]])),
    )


def test_clips(lengths: Sequence[int], config: DataConfig) -> list[tuple[int, int]]:
    """Return the test clips of the official code, as (number of the video, first raw frame).

    For each, NumPy draws the video, then the first frame. Clips of another length than 53 frames
    are other clips.

    Args:
        lengths: raw frames of the test videos, in the order of their names as strings.
        config: number and length of the clips, distance of their frames, and the seed.

    Raises:
        ValueError: a clip falls on a video that is too short.
    """
    random = np.random.RandomState(config.seed)
    span = (config.test_frames - 1) * config.frame_step + 1
    drawn = []
    for _ in range(config.test_videos):
        video = int(random.randint(len(lengths)))
        if lengths[video] < span:
            raise ValueError(
                f"test video {video} has {lengths[video]} frames, but a test clip spans {span}: "
                "lower data.test_frames or data.frame_step"
            )
        drawn.append((video, int(random.randint(lengths[video] - span + 1))))
    return drawn


def _jobs(archives: list[Path], videos: list[Path], unpacked: Path, size: int) -> Iterator[Job]:
    """Yield a job per video; one that is both in an archive and unpacked counts once."""
    seen = set()
    for archive in archives:
        for job in _archive_jobs(archive, unpacked, size):
            seen.add(job.name)
            yield job
    for path in videos:
        fold, name = _fold_and_name(path.as_posix())
        if fold and name not in seen:
            yield Job(fold, name, path.name, [path], partial(_read, name, path, path.name, size))


def _archive_jobs(archive: Path, unpacked: Path, size: int) -> Iterator[Job]:
    with intact(archive), gzip.open(archive) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar_files(archive, tar):
            fold, name = _fold_and_name(member.name)
            if fold:
                path, label = unpacked / f"{name}.mp4", f"{archive.name}:{member.name}"
                read = partial(_read_unpacked, name, path, label, size)
                fetch = partial(_unpack, archive, tar, member, path)
                yield Job(fold, name, label, [archive], read, fetch)


def _fold_and_name(path: str) -> tuple[str | None, str]:
    """Return the fold of a raw file, or None if it is not used, and the name of the video."""
    match = VIDEO.fullmatch(path)
    subject = int(match[1]) if match else 0
    fold = next((fold for fold, used in SUBJECTS.items() if subject in used), None)
    return fold, f"S{subject}-{match[2]}" if match else ""


def _unpack(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    with (
        room_for(path),
        intact(archive),
        atomic_write(path) as temporary,
        open(temporary, "wb") as file,
    ):
        shutil.copyfileobj(tar.extractfile(member), file, 2**20)


def _read_unpacked(name: str, path: Path, label: str, size: int) -> Iterator[Video]:
    try:
        yield from _read(name, path, label, size)
    finally:
        path.unlink()


def _read(name: str, path: Path, label: str, size: int) -> Iterator[Video]:
    frames = (_cropped(frame, label, size) for frame in decode(path, label))
    yield Video(name, frames)


def _cropped(frame: np.ndarray, label: str, size: int) -> np.ndarray:
    height, width = frame.shape[:2]
    if width < CROP[2] or height < CROP[3]:
        raise ValueError(
            f"{label} has frames of {width}x{height}: Human3.6M has about 1000x1000, from which "
            f"the box {CROP} is cropped"
        )
    return resized(frame, (size, size), crop=CROP)


def _count_per_subject(raw: Path, staged: Staged) -> str:
    """Return a note on the videos of each subject.

    Raises:
        FileNotFoundError: a subject has none.
    """
    counts = {f"S{subject}": 0 for subject in SUBJECTS[staged.folder.name]}
    for name in staged.names:
        counts[name.split("-")[0]] += 1
    missing = [subject for subject, count in counts.items() if count == 0]
    if missing:
        raise FileNotFoundError(
            f"{raw} holds no video of subject {', '.join(missing)}: add its archive from {SOURCE}, "
            f"or the folder {missing[0]}/Videos, and run again; what is finished is kept"
        )
    listed = ", ".join(f"{count} of {subject}" for subject, count in counts.items())
    return f"{len(staged.names)} videos: {listed} (about 120 per subject are expected)"
