"""Jobs: raw sources, each decoded by a process of a pool into a part on the disk.

A part is the rows of each array in KEY.ARRAY, then KEY.json, which makes it whole. Its key tells
the content of the raw files and the settings, so a part that is there need not be made again.

The environment variable `SRVP_WORKERS` sets the number of processes, by default one per core;
`TQDM_DISABLE=1` turns the progress bar off.
"""

import errno
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from srvp.data.checksums import digest
from srvp.files import write_json


@dataclass(frozen=True)
class Video:
    """A video to store.

    Attributes:
        name: unique in its fold.
        frames: uint8 (T, C, H, W), or an iterable of frames (C, H, W).
        extras: further arrays with a row per frame, such as `{"actions": (T, 4)}`.
    """

    name: str
    frames: Iterable[np.ndarray]
    extras: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A raw source of videos.

    Attributes:
        fold: that the videos belong to.
        name: unique in its fold; the fold keeps the order of the jobs' names.
        source: what messages and the manifest call the raw source.
        files: that hold it. If their content changes, the job runs again.
        read: yields the videos. It is called in another process, so it must be picklable.
        fetch: if given, called before, in the process that iterates over the jobs.
    """

    fold: str
    name: str
    source: str
    files: Sequence[Path]
    read: Callable[[], Iterable[Video]]
    fetch: Callable[[], None] | None = None


def run(
    jobs: Iterable[Job],
    folder: Path,
    settings: dict[str, Any],
    content: Mapping[Path, str],
    skip: Container[str],
) -> dict[Path, Job]:
    """Run the jobs that have left no part yet.

    Args:
        jobs: to run; a list lets the progress bar know how many.
        folder: for the parts.
        settings: all that the frames depend on besides the raw files.
        content: SHA-256 of each raw file.
        skip: folds whose jobs are left out.

    Returns:
        All jobs but these, by the file KEY.json of their part.

    Raises:
        ValueError: a raw file is damaged, or holds no video. What is finished is kept.
        OSError: the disk is full, likewise.
    """
    seen: dict[tuple[str, str], Job] = {}
    parts: dict[Path, Job] = {}
    running: set[Future] = set()
    workers = _workers()
    bar = tqdm(total=length_hint(jobs) or None, unit="file")
    with bar, _explain_killed_worker(), _executor(workers) as executor:
        for job in jobs:
            if job.fold in skip:
                continue
            other = seen.setdefault((job.fold, job.name), job)
            if other is not job:
                raise ValueError(f"{job.source} and {other.source} are both {job.name}: remove one")
            sha256 = _combined([content[file] for file in job.files])
            key = digest([settings, job.name, job.source, sha256])[:24]
            part = folder / job.fold / f"{key}.json"
            parts[part] = job
            if part.is_file():
                bar.update()
                continue
            if job.fetch:
                job.fetch()
            running.add(executor.submit(make_part, replace(job, fetch=None), sha256, part))
            running = _wait(running, bar, at_most=2 * workers)
        _wait(running, bar, at_most=0)
    return parts


def _workers() -> int:
    given = os.environ.get("SRVP_WORKERS", "")
    if given and not re.fullmatch("[1-9][0-9]*", given):
        raise ValueError(f"SRVP_WORKERS is {given!r}; expected a number of processes, at least 1")
    return int(given or os.cpu_count() or 1)


def _combined(checksums: list[str]) -> str:
    return checksums[0] if len(checksums) == 1 else digest(checksums)


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
            "a process that decodes was killed, most often for want of memory: set SRVP_WORKERS to "
            "fewer processes and run again; what is finished is kept"
        ) from None


@contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    if workers == 1:
        executor: Executor = ThreadPoolExecutor(1)  # of this process, which starts at once
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # import once, then fork
        executor = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    with executor:
        try:
            yield executor
        except KeyboardInterrupt:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Let this process end without a word when its parent is killed or interrupted."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()


def make_part(job: Job, sha256: str, part: Path) -> None:
    """Write the part of a job, whose raw files have that SHA-256."""
    row_types: dict[str, list] = {}
    videos = []
    try:
        with room_for(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            for video in job.read():
                source = job.source or video.name
                frames = _append(video, source, part, row_types)
                entry = {"name": video.name, "frames": frames}
                videos.append({**entry, "source": job.source, "sha256": sha256})
            if not videos:
                raise ValueError(f"{job.source} holds no video: replace or remove it, run again")
            write_json(part, {"videos": videos, "arrays": row_types})
    finally:
        if not part.is_file():
            for name in row_types:
                part.with_suffix(f".{name}").unlink(missing_ok=True)


def _append(video: Video, source: str, part: Path, row_types: dict[str, list]) -> int:
    """Append a video's rows to the arrays of a part; return the number of its frames."""
    counts = {}
    for name, rows in {"frames": video.frames, **video.extras}.items():
        counts[name] = 0
        with open(part.with_suffix(f".{name}"), "ab" if name in row_types else "wb") as file:
            for row in rows:
                row_type = [row.dtype.str, list(row.shape)]
                if row_types.setdefault(name, row_type) != row_type:
                    raise ValueError(
                        f"{source}: {name} of {row_type[1]} beside {row_types[name][1]}: all must "
                        "have one size"
                    )
                file.write(np.ascontiguousarray(row))
                counts[name] += 1
    if counts["frames"] == 0:
        raise ValueError(f"{source} holds no frame: replace or remove it, then run again")
    if len(set(counts.values())) > 1:
        raise ValueError(f"{source}: {counts} rows: each array needs a row per frame")
    return counts["frames"]


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
