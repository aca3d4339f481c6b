"""Writing prepared sets: in parallel, resumable, and whole or absent.

Every raw source (a video file, a member of an archive, a file of records) is a `Job`. Jobs run in a
pool of processes; each leaves a finished part in `OUT/.staging`. When all are done, the parts of a
fold are moved into its arrays, in the order of the jobs' names, and the folder of the fold is
renamed into place. A run that was killed, or stopped at a bad file, goes on where it was.
"""

import errno
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from operator import length_hint
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from srvp.files import write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Video:
    """A video to store.

    Attributes:
        name: unique in its fold.
        frames: uint8 (T, C, H, W), or an iterable of frames (C, H, W).
        extras: further arrays with a row per frame, such as `{"actions": (T, 4)}`.
        source: the raw file it came from, with the member if that is an archive.
        sha256: of the file or member.
    """

    name: str
    frames: Iterable[np.ndarray]
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    source: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Fold:
    """What a manifest says of a fold besides its videos.

    Attributes:
        validation: numbers of the videos set aside for validation.
        clips: (video, first frame) of each test clip.
        clip_frames: frames of a test clip.
        frame_step: distance of a test clip's frames in the video.
        notes: sentences on what is odd in the raw data.
    """

    validation: Sequence[int] = ()
    clips: Sequence[tuple[int, int]] = ()
    clip_frames: int = 0
    frame_step: int = 1
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """A raw source of videos.

    Attributes:
        fold: that the videos belong to.
        name: unique in its fold; the fold keeps the order of the jobs' names.
        source: the raw file, for messages.
        size: of the raw file, in bytes: a file that has changed is read again.
        read: yields the videos. It is called in another process, so it must be picklable.
        fetch: if given, called before, in the process that iterates over the jobs.
    """

    fold: str
    name: str
    source: str
    size: int
    read: Callable[[], Iterable[Video]]
    fetch: Callable[[], None] | None = None


Describe = Callable[[str, list[str], list[int]], Fold]  # of fold, names of its videos, lengths


def write_prepared(folder: Path, videos: Iterable[Video], fold: Fold, **manifest: Any) -> None:
    """Write a fold of videos at hand, replacing the one there.

    Args:
        folder: of the fold, such as `data/smmnist/test`.
        videos: in order.
        fold: what to list besides them.
        manifest: further entries of the manifest, of JSON types, such as `dataset` and `settings`.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".staging-") as staging:
        job = Job(folder.name, "", str(folder), 0, lambda: videos)
        _stage(job, Path(staging))
        _assemble(_collect(folder, [job], Path(staging), lambda *_: fold), Path(staging), manifest)


def prepare(
    out: Path,
    jobs: Iterable[Job],
    describe: Describe,
    *,
    manifest: dict[str, Any],
    folds: Sequence[str] = ("train", "test"),
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write the folds of a set from its raw files; do nothing if they are there already.

    Args:
        out: folder for the folds.
        jobs: the raw sources; iterated over only if there is something to do.
        describe: returns what a fold's manifest lists besides the videos; may raise a `ValueError`
            if some are missing.
        manifest: `dataset`, `settings` and `raw`, the bytes of each raw file. A set with the same
            entries is up to date.
        folds: to write.
        workers: processes that decode, by default one per core; 1 is this process.
        progress: show a progress bar and, at the end, the notes.

    Raises:
        ValueError: a raw file is damaged or missing. What is finished is kept for the next run.
        OSError: the disk is full, likewise.
    """
    out = Path(out)
    if all(_has_entries(out / fold / MANIFEST, manifest) for fold in folds):
        return
    for fold in folds:
        _check_replaceable(out / fold)
    staging = _open_staging(out, manifest)
    done = _stage_all(jobs, staging, workers or os.cpu_count() or 1, progress)
    complete = [_collect(out / fold, done, staging, describe) for fold in folds]
    for parts in complete:
        same = {"settings": manifest["settings"], "videos": parts.videos}
        if _has_entries(parts.folder / MANIFEST, same):  # by an earlier run that was killed
            write_json(parts.folder / MANIFEST, _manifest(parts, manifest))
        else:
            _assemble(parts, staging, manifest)
        if progress:
            tqdm.write("\n".join([f"{parts.folder} is ready", *parts.fold.notes]))
    shutil.rmtree(staging)


def raw_sizes(root: Path, files: Iterable[Path]) -> dict[str, int]:
    """Return the bytes of raw files by their path in `root`: the entry `raw` of a manifest."""
    return {file.relative_to(root).as_posix(): file.stat().st_size for file in sorted(files)}


def _has_entries(path: Path, expected: dict[str, Any]) -> bool:
    """Tell whether a JSON file is there and has the expected entries."""
    expected = json.loads(json.dumps(expected))  # tuples become lists
    return path.is_file() and expected.items() <= json.loads(path.read_text()).items()


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise FileExistsError(
            f"{folder} exists and is not a prepared set: move it away, or prepare to another folder"
        )


def _open_staging(out: Path, manifest: dict[str, Any]) -> Path:
    """Return the folder of finished parts, emptied if they were made under other settings."""
    staging, settings = out / ".staging", {"settings": manifest["settings"]}
    if not _has_entries(staging / "settings.json", settings):
        shutil.rmtree(staging, ignore_errors=True)
        with room_for(staging):
            write_json(staging / "settings.json", settings)
    return staging


# Running the jobs


def _stage_all(jobs: Iterable[Job], staging: Path, workers: int, progress: bool) -> list[Job]:
    """Run the jobs that have left no part yet; return all."""
    seen: dict[tuple[str, str], Job] = {}
    running: set[Future] = set()
    total = length_hint(jobs) or None
    bar = tqdm(total=total, disable=not progress)
    with bar, _explain_killed_worker(), _executor(workers) as executor:
        for job in jobs:
            other = seen.setdefault((job.fold, job.name), job)
            if other is not job:
                raise ValueError(f"{job.source} and {other.source} are both {job.name}: remove one")
            if _record(job, staging).is_file():
                bar.update()
                continue
            if job.fetch:
                job.fetch()
            running.add(executor.submit(_stage, replace(job, fetch=None), staging))
            running = _wait(running, bar, at_most=2 * workers)
        _wait(running, bar, at_most=0)
    return list(seen.values())


def _wait(running: set[Future], bar: tqdm, at_most: int) -> set[Future]:
    """Wait until `at_most` jobs are left and return them; raise the error of one that failed."""
    while len(running) > at_most:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
            bar.update()
    return running


@contextmanager
def _explain_killed_worker() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise RuntimeError(
            "a process that decodes was killed, most often for want of memory: run again with "
            "fewer workers; what is finished is kept"
        ) from None


def _executor(workers: int) -> Executor:
    if workers == 1:
        return _SameProcess()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # import once, then fork
    return ProcessPoolExecutor(workers, context, initializer=_exit_with_parent)


class _SameProcess(Executor):
    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _exit_with_parent() -> None:
    """Let this process end when its parent is killed, rather than wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# A part is the rows of each array in KEY.ARRAY, then KEY.json, which makes it whole.


def _record(job: Job, staging: Path) -> Path:
    key = hashlib.sha256(f"{job.name}\n{job.source}\n{job.size}".encode()).hexdigest()[:24]
    return staging / job.fold / f"{key}.json"


def _stage(job: Job, staging: Path) -> None:
    """Write the part of a job."""
    record = _record(job, staging)
    record.parent.mkdir(parents=True, exist_ok=True)
    row_types: dict[str, list] = {}
    videos = []
    try:
        with room_for(record):
            for video in job.read():
                videos.append(_append(video, record, row_types))
            if not videos:
                raise ValueError(f"{job.source} holds no video: replace or remove it, run again")
            write_json(record, {"videos": videos, "arrays": row_types})
    finally:
        if not record.is_file():
            for name in row_types:
                record.with_suffix(f".{name}").unlink(missing_ok=True)


def _append(video: Video, record: Path, row_types: dict[str, list]) -> dict[str, Any]:
    """Append a video's rows to the arrays of a part; return its entry of the manifest."""
    counts = {}
    for name, rows in {"frames": video.frames, **video.extras}.items():
        counts[name] = 0
        with open(record.with_suffix(f".{name}"), "ab" if name in row_types else "wb") as file:
            for row in rows:
                row_type = [row.dtype.str, list(row.shape)]
                if row_types.setdefault(name, row_type) != row_type:
                    raise ValueError(
                        f"{video.source}: {name} of {row_type[1]} beside {row_types[name][1]}: "
                        "all must have one size"
                    )
                file.write(np.ascontiguousarray(row))
                counts[name] += 1
    if counts["frames"] == 0:
        raise ValueError(f"{video.source} holds no frame: replace or remove it, then run again")
    entry = {"name": video.name, "frames": counts["frames"]}
    return {**entry, "source": video.source, "sha256": video.sha256}


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Say which file could not be written, and what to do, when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"no room to write {path} ({error.strerror}): free some space and run again; what is "
            "finished is kept",
        ) from None


# Putting a fold together


class _Parts(NamedTuple):
    """All parts of a fold, in order."""

    folder: Path
    records: list[Path]
    contents: list[dict]
    fold: Fold

    @property
    def videos(self) -> list[dict]:
        return [video for content in self.contents for video in content["videos"]]


def _collect(folder: Path, jobs: list[Job], staging: Path, describe: Describe) -> _Parts:
    """Return the parts that the jobs left for a fold, in the order of the jobs' names."""
    members = sorted((job for job in jobs if job.fold == folder.name), key=lambda job: job.name)
    records = [_record(job, staging) for job in members]
    parts = _Parts(folder, records, [json.loads(r.read_text()) for r in records], Fold())
    if not parts.videos:
        raise ValueError(f"the raw files hold no video for {folder}")
    names = [video["name"] for video in parts.videos]
    lengths = [video["frames"] for video in parts.videos]
    return parts._replace(fold=describe(folder.name, names, lengths))


def _assemble(parts: _Parts, staging: Path, manifest: dict[str, Any]) -> None:
    """Move the parts of a fold to its arrays, and the whole into place."""
    order = hashlib.sha256("".join(record.name for record in parts.records).encode()).hexdigest()
    whole = staging / f"{parts.folder.name}-{order[:24]}"
    whole.mkdir(exist_ok=True)
    for name, row_type in _common_types(parts.contents).items():
        counts = [sum(v["frames"] for v in part["videos"]) for part in parts.contents]
        files = [record.with_suffix(f".{name}") for record in parts.records]
        _concatenate(whole / f"{name}.npy", row_type, list(zip(files, counts, strict=True)))
    with room_for(whole / MANIFEST):
        write_json(whole / MANIFEST, _manifest(parts, manifest))
    if parts.folder.exists():
        parts.folder.rename(staging / f"{parts.folder.name}-{os.getpid()}-old")
    whole.rename(parts.folder)


def _manifest(parts: _Parts, manifest: dict[str, Any]) -> dict[str, Any]:
    listed = {**asdict(parts.fold), "versions": _versions(), "videos": parts.videos}
    return {**manifest, **listed}


def _versions() -> dict[str, str]:
    """Return the versions of the packages that what is stored may depend on."""
    versions = {}
    for name in ("srvp", "numpy", "pillow", "av"):
        with suppress(PackageNotFoundError):  # Moving MNIST needs neither of the last two
            versions[name] = version(name)
    return versions


def _common_types(parts: list[dict]) -> dict[str, list]:
    """Return the type and shape of the rows of each array, which must not differ among parts."""
    common = parts[0]["arrays"]
    for part in parts:
        if part["arrays"] != common:
            source = part["videos"][0]["source"]
            raise ValueError(f"{source} has arrays {part['arrays']}; others have {common}")
    return common


def _concatenate(path: Path, row_type: list, pieces: list[tuple[Path, int]]) -> None:
    """Write an .npy file of pieces (file, rows), removing each piece once it is in.

    So at no time is more than one piece on the disk twice. A second call goes on where a killed one
    was, at the first piece that is still there.
    """
    dtype, shape = np.dtype(row_type[0]), tuple(row_type[1])
    with room_for(path), open(path, "r+b" if path.exists() else "w+b") as file:
        file.write(_npy_header(dtype, (sum(rows for _, rows in pieces), *shape)))
        for piece, rows in pieces:
            end = file.tell() + rows * dtype.itemsize * math.prod(shape)
            if piece.exists():
                with open(piece, "rb") as source:
                    shutil.copyfileobj(source, file, 2**20)
                file.flush()
                piece.unlink()
            elif path.stat().st_size < end:
                raise RuntimeError(
                    f"the raw files changed while {path.name} was being put together: remove "
                    f"{path.parents[1]} and run again"
                )
            file.seek(end)


def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()
