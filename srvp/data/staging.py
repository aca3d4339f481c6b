"""Writing prepared sets: in parallel, resumable, and whole or absent.

`stage` decodes the raw files of a set, each into a part in `OUT/.staging`. `write` moves the parts
of a fold into its arrays, in the order of the jobs' names, and renames the fold into place. A run
that was killed, or stopped at a bad file, resumes with the parts that it finished.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from srvp.data.checksums import checksums, digest
from srvp.data.config import DataConfig
from srvp.data.jobs import Job, Video, make_part, room_for, run

FOLDS = ("train", "test")
MANIFEST = "manifest.json"
# Keys of the configuration that choose among stored frames: a change of them decodes nothing again.
CHOICES = {"actions", "frame_step", "test_frames", "test_videos"}


@dataclass(frozen=True)
class Staged:
    """The videos of a fold, ready to be written.

    Attributes:
        folder: of the fold.
        common: entries of its manifest that say which raw files it is made of, and how.
        made: entries of its manifest on what was made: `versions` and `videos`.
        parts: records of the parts, in order; none if the arrays are in place already.
    """

    folder: Path
    common: dict[str, Any]
    made: dict[str, Any]
    parts: list[Path]

    @property
    def names(self) -> list[str]:
        """Names of the videos, in order."""
        return [video["name"] for video in self.made["videos"]]

    @property
    def lengths(self) -> list[int]:
        """Frames of the videos."""
        return [video["frames"] for video in self.made["videos"]]


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


def stage(
    raw: Path, out: Path, config: DataConfig, jobs: Iterable[Job], files: Iterable[Path]
) -> tuple[Staged, Staged]:
    """Read and decode all raw sources of a set, but for what is up to date.

    Args:
        raw: folder of the raw files.
        out: folder for the folds.
        config: of the set.
        jobs: the raw sources; iterated over only if there is something to do.
        files: all raw files of the set.

    Returns:
        The folds `train` and `test`, to be handed to `write`.

    Raises:
        ValueError: a raw file is damaged, or a fold has no video. What is finished is kept for the
            next run.
        OSError: the disk is full, likewise.
    """
    folders = [out / fold for fold in FOLDS]
    for folder in folders:
        _check_replaceable(folder)
    content = checksums(files, out.parent / ".checksums.json")
    common = {
        "settings": {k: v for k, v in asdict(config).items() if k not in CHOICES},
        "raw": digest(sorted([os.path.relpath(file, raw), x] for file, x in content.items())),
    }
    in_place = {folder.name: _in_place(folder, common) for folder in folders}
    parts: dict[Path, Job] = {}
    if not all(in_place.values()):
        skip = {fold for fold, staged in in_place.items() if staged}
        parts = run(jobs, _open_staging(out, common), common["settings"], content, skip)
    return tuple(in_place[f.name] or _staged(f, common, _parts_of(f.name, parts)) for f in folders)


def _in_place(folder: Path, common: dict[str, Any]) -> Staged | None:
    """Return a fold that is in place and up to date, or None."""
    try:
        manifest = _load(folder / MANIFEST)
    except (FileNotFoundError, ValueError):  # there is none, or it is damaged
        return None
    same = json.loads(json.dumps(common)).items() <= manifest.items()  # tuples become lists
    if not (same and (folder / "frames.npy").is_file()):
        return None
    return Staged(folder, common, {key: manifest[key] for key in ("versions", "videos")}, [])


def _open_staging(out: Path, common: dict[str, Any]) -> Path:
    """Return the folder of parts, emptied if parts of it went into a set of other raw files."""
    staging = out / ".staging"
    if any(whole.name != _whole_name(common) for whole in staging.glob("whole-*")):
        shutil.rmtree(staging)
    return staging / "parts"


def _parts_of(fold: str, parts: dict[Path, Job]) -> list[Path]:
    """Return the parts of a fold, in the order of the jobs' names."""
    members = [(job.name, part) for part, job in parts.items() if job.fold == fold]
    return [part for _, part in sorted(members)]


def write(config: DataConfig, *folds: tuple[Staged, Fold]) -> None:
    """Put folds into place; then nothing is left to resume.

    Raises:
        ValueError: there are fewer test clips than `config` asks for. What is decoded is kept.
        OSError: the disk is full, likewise.
    """
    for staged, fold in folds:
        if staged.folder.name == "test" and len(fold.clips) < config.test_videos:
            raise ValueError(
                f"data.test_videos is {config.test_videos}, but the test videos give only "
                f"{len(fold.clips)} clips of data.test_frames, {config.test_frames}: lower either, "
                "or add test videos, and run again; what is finished is kept"
            )
    for staged, fold in folds:
        _put_into_place(staged, fold, staged.folder.parent / ".staging")
        for note in fold.notes:
            print(f"{staged.folder}: {note}")
    shutil.rmtree(folds[0][0].folder.parent / ".staging", ignore_errors=True)


def write_prepared(folder: Path, videos: Iterable[Video], fold: Fold, **common: Any) -> None:
    """Write a fold of videos at hand, replacing the one there.

    Args:
        folder: of the fold, such as `prepared/smmnist/test`.
        videos: in order.
        fold: what to list besides them.
        common: further entries of the manifest, of JSON types, such as `settings`.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    staging = folder.parent / f".staging-{folder.name}"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        job = Job(folder.name, "", "", (), lambda: videos)
        make_part(job, "", staging / "part.json")
        _put_into_place(_staged(folder, common, [staging / "part.json"]), fold, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise FileExistsError(
            f"{folder} exists and is not a prepared set: move it away, or prepare to another folder"
        )


def _staged(folder: Path, common: dict[str, Any], parts: list[Path]) -> Staged:
    """Return the fold that parts make."""
    videos = [video for part in parts for video in _load(part)["videos"]]
    if not videos:
        raise ValueError(f"the raw files hold no video for {folder}")
    return Staged(folder, common, {"versions": _versions(), "videos": videos}, parts)


def _versions() -> dict[str, str]:
    """Return the versions of the packages that what is stored may depend on."""
    versions = {}
    for name in ("srvp", "numpy", "pillow", "av"):
        with suppress(PackageNotFoundError):  # Moving MNIST does without PyAV
            versions[name] = version(name)
    return versions


def _put_into_place(staged: Staged, fold: Fold, staging: Path) -> None:
    """Write the manifest of a fold and, unless they are there, its arrays."""
    folder = staged.folder
    manifest = json.dumps({**staged.common, **asdict(fold), **staged.made}, indent=2) + "\n"
    if not staged.parts:
        if (folder / MANIFEST).read_text() != manifest:
            _write_text(staging / MANIFEST, manifest)  # a kill leaves nothing beside the arrays
            os.replace(staging / MANIFEST, folder / MANIFEST)
        return
    whole = staging / _whole_name(staged.common) / folder.name
    whole.mkdir(parents=True, exist_ok=True)
    for name in _array_names(staged.parts):
        _concatenate(whole / f"{name}.npy", name, staged.parts)
    _write_text(whole / MANIFEST, manifest)
    shutil.rmtree(staging / f"old-{folder.name}", ignore_errors=True)
    if folder.exists():
        folder.rename(staging / f"old-{folder.name}")
    whole.rename(folder)


def _whole_name(common: dict[str, Any]) -> str:
    return f"whole-{digest(common)[:24]}"


def _write_text(path: Path, text: str) -> None:
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _array_names(parts: list[Path]) -> list[str]:
    """Return the names of the arrays, whose rows must have one type and shape in all parts."""
    common = _load(parts[0])["arrays"]
    for content in map(_load, parts):
        if content["arrays"] != common:
            name = content["videos"][0]["name"]
            raise ValueError(f"{name} has arrays {content['arrays']}; others have {common}")
    return list(common)


def _concatenate(path: Path, name: str, parts: list[Path]) -> None:
    """Write an .npy file of the rows in all parts, removing those of a part once they are in.

    So at no time is more than one part on the disk twice. A second call resumes a killed one at the
    first part that is still there.
    """
    contents = [_load(part) for part in parts]
    dtype, shape = np.dtype(contents[0]["arrays"][name][0]), contents[0]["arrays"][name][1]
    rows = [sum(video["frames"] for video in content["videos"]) for content in contents]
    header = {"descr": dtype.str, "fortran_order": False, "shape": (sum(rows), *shape)}
    with room_for(path), open(path, "r+b" if path.exists() else "w+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part, count in zip(parts, rows, strict=True):
            end = file.tell() + count * dtype.itemsize * math.prod(shape)
            piece = part.with_suffix(f".{name}")
            if piece.exists():
                with open(piece, "rb") as source:
                    shutil.copyfileobj(source, file, 2**20)
                file.flush()
                piece.unlink()
            elif path.stat().st_size < end:
                raise RuntimeError(f"{piece} is gone: remove {part.parents[2]} and run again")
            file.seek(end)


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
