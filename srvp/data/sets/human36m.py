"""Human3.6M: people who act out everyday scenes. RGB, 50 frames per second, every 8th is used.

From the `.tgz` archives of the owner (one a subject) or the `S*/Videos/*.mp4` in them to the
published sets: subjects 1, 5, 6, 7 and 8 to train on, and 1000 clips of 53 frames of subjects 9 and
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

from srvp.data import staging
from srvp.data.prepared import train_validation_split
from srvp.data.raw import decode, intact, resized, tar_files
from srvp.files import atomic_write, sha256

SUBJECTS = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}
CROP = (100, 100, 900, 900)  # left, upper, right, lower
FRAME_STEP = 8
SOURCE = "http://vision.imar.ro/human3.6m (on request)"
VIDEO = re.compile(r"(?:.*/)?S(\d+)/Videos/([^_/][^/]*)\.mp4")


def prepare(
    raw: Path,
    out: Path,
    *,
    size: int = 64,
    clip_frames: int = 53,
    frame_step: int = FRAME_STEP,
    clips: int = 1000,
    seed: int = 42,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write `out/train` and `out/test` from the raw files.

    An archive is read once, from its start to its end; no more of its videos than are being decoded
    lie unpacked on the disk.

    Args:
        raw: folder that holds, at any depth, the `.tgz` archives or `S*/Videos/*.mp4`.
        out: folder for the two folds.
        size: height and width of the frames.
        clip_frames: length of a test clip; another than 53 gives other clips.
        frame_step: distance of a test clip's frames, in raw frames.
        clips: number of test clips; fewer are the first of the published ones.
        seed: of the test clips and of the split into training and validation.
        workers: processes that decode, by default one per core.
        progress: show a progress bar and notes on the raw data.

    Raises:
        FileNotFoundError: there is nothing, or no video of a subject.
        ValueError: a raw file is damaged. What is finished is kept for the next run.
    """
    raw, out = Path(raw), Path(out)
    archives = sorted([*raw.rglob("*.tgz"), *raw.rglob("*.tar.gz")])
    videos = sorted(path for path in raw.rglob("*.mp4") if VIDEO.fullmatch(path.as_posix()))
    if not archives and not videos:
        raise FileNotFoundError(
            f"{raw} holds no videos: it needs the .tgz archives of the videos of subjects 1, 5, 6, "
            f"7, 8, 9 and 11 from {SOURCE}, or S*/Videos/*.mp4 in them"
        )
    drawing = {"clip_frames": clip_frames, "frame_step": frame_step, "clips": clips, "seed": seed}
    staging.prepare(
        out,
        _jobs(archives, videos, out / ".staging" / "unpacked", size),
        partial(_describe, raw=raw, **drawing),
        manifest={
            "dataset": "human36m",
            "settings": {"size": size, **drawing},
            "raw": staging.raw_sizes(raw, [*archives, *videos]),
        },
        workers=workers,
        progress=progress,
    )


def test_clips(
    lengths: Sequence[int],
    *,
    clip_frames: int = 53,
    frame_step: int = FRAME_STEP,
    clips: int = 1000,
    seed: int = 42,
) -> list[tuple[int, int]]:
    """Return the published test clips, as (number of the video, first raw frame).

    For each, NumPy draws the video, then the first frame.

    Args:
        lengths: raw frames of the test videos, in the order of their names as strings.
        clip_frames: length of a clip, in used frames.
        frame_step: distance of the used frames, in raw frames.
        clips: how many.
        seed: of the random state.
    """
    random = np.random.RandomState(seed)
    span = (clip_frames - 1) * frame_step + 1
    drawn = []
    for _ in range(clips):
        video = int(random.randint(len(lengths)))
        if lengths[video] < span:
            raise ValueError(f"test video {video} has {lengths[video]} frames: fewer than {span}")
        drawn.append((video, int(random.randint(lengths[video] - span + 1))))
    return drawn


def _jobs(
    archives: list[Path], videos: list[Path], unpacked: Path, size: int
) -> Iterator[staging.Job]:
    """Yield a job per video; one that is both in an archive and unpacked counts once."""
    seen = set()
    for archive in archives:
        for job in _archive_jobs(archive, unpacked, size):
            seen.add(job.name)
            yield job
    for path in videos:
        fold, name = _fold_and_name(path.as_posix())
        if fold and name not in seen:
            read = partial(_read, name, path, path.name, size)
            yield staging.Job(fold, name, path.name, path.stat().st_size, read)


def _archive_jobs(archive: Path, unpacked: Path, size: int) -> Iterator[staging.Job]:
    with intact(archive), gzip.open(archive) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar_files(archive, tar):
            fold, name = _fold_and_name(member.name)
            if fold:
                path, label = unpacked / f"{name}.mp4", f"{archive.name}:{member.name}"
                read = partial(_read_unpacked, name, path, label, size)
                fetch = partial(_unpack, archive, tar, member, path)
                yield staging.Job(fold, name, label, member.size, read, fetch)


def _fold_and_name(path: str) -> tuple[str | None, str]:
    """Return the fold of a raw file, or None if it is not used, and the name of the video."""
    match = VIDEO.fullmatch(path)
    subject = int(match[1]) if match else 0
    fold = next((fold for fold, used in SUBJECTS.items() if subject in used), None)
    return fold, f"S{subject}-{match[2]}" if match else ""


def _unpack(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    with (
        staging.room_for(path),
        intact(archive),
        atomic_write(path) as temporary,
        open(temporary, "wb") as file,
    ):
        shutil.copyfileobj(tar.extractfile(member), file, 2**20)


def _read_unpacked(name: str, path: Path, label: str, size: int) -> Iterator[staging.Video]:
    try:
        yield from _read(name, path, label, size)
    finally:
        path.unlink()


def _read(name: str, path: Path, label: str, size: int) -> Iterator[staging.Video]:
    frames = (_cropped(frame, label, size) for frame in decode(path, label))
    yield staging.Video(name, frames, source=label, sha256=sha256(path))


def _cropped(frame: np.ndarray, label: str, size: int) -> np.ndarray:
    height, width = frame.shape[:2]
    if width < CROP[2] or height < CROP[3]:
        raise ValueError(
            f"{label} has frames of {width}x{height}: Human3.6M has about 1000x1000, from which "
            f"the box {CROP} is cropped"
        )
    return resized(frame, (size, size), crop=CROP)


def _describe(
    fold: str, names: list[str], lengths: list[int], *, raw: Path, seed: int, **drawing: int
) -> staging.Fold:
    per_subject = {f"S{subject}": 0 for subject in SUBJECTS[fold]}
    for name in names:
        per_subject[name.split("-")[0]] += 1
    missing = [subject for subject, videos in per_subject.items() if videos == 0]
    if missing:
        raise FileNotFoundError(
            f"{raw} holds no video of subject {', '.join(missing)}: add its archive from {SOURCE}, "
            f"or the folder {missing[0]}/Videos, and run again; what is finished is kept"
        )
    counts = ", ".join(f"{videos} of {subject}" for subject, videos in per_subject.items())
    notes = [f"{len(names)} videos: {counts} (about 120 a subject are expected)"]
    if fold == "train":
        validation = train_validation_split(len(names), seed)[1].tolist()
        return staging.Fold(validation=validation, notes=notes)
    return staging.Fold(
        clips=test_clips(lengths, seed=seed, **drawing),
        clip_frames=drawing["clip_frames"],
        frame_step=drawing["frame_step"],
        notes=notes,
    )
