"""Finding your own videos in a folder: what is a video, to which fold it belongs, what is left out.

A video is a video file, a file of several pictures, or a sequence of numbered pictures. Each
belongs to the training, validation or test fold for good: by a folder that it lies in if that has
one of the names that people use (`train`, `val`, `Testing`, ...), else by a hash of its path in the
folder searched, which stays the same when other videos are added.
"""

import hashlib
import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srvp.data.config import DataConfig
from srvp.data.pictures import count_pictures, read_picture, read_pictures
from srvp.data.raw import decode

FOLDS = ("train", "validation", "test")
FOLD_WORDS = {
    "train": {"train", "training", "trn"},
    "validation": {"validation", "validate", "valid", "val", "dev", "development"},
    "test": {"test", "testing", "tests", "tst", "eval", "evaluation", "heldout", "holdout"},
}
# Such a name may hold more: `01_Train`, `val2017`, `test-set`, `training videos`.
FOLD_FILLERS = re.compile(
    r"^\d+[-_. ]|[-_. ]|set|split|data|videos?|clips?|frames?|images?|20\d\d$"
)

_VIDEOS = """.mp4 .m4v .mov .qt .3gp .3g2 .avi .divx .mkv .webm .wmv .asf .flv .f4v .ogv .y4m .dv
.mjpeg .mjpg .mpg .mpeg .mpe .m1v .m2v .vob .ts .mts .m2ts .m2t"""
_STILLS = ".jpg .jpeg .jpe .jfif .bmp .dib .pgm .ppm .pbm .pnm .pfm .jp2 .tga"
_FILMS = ".gif .apng .png .tif .tiff .webp .avif"
VIDEO_SUFFIXES = frozenset(_VIDEOS.split())
FILM_SUFFIXES = frozenset(_FILMS.split())  # one picture or several
PICTURE_SUFFIXES = FILM_SUFFIXES.union(_STILLS.split())
# The number of a frame: a date and time, or the last digits, with decimals.
NUMBER = re.compile(
    r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])[-_.:T\d]*Z?$"
    r"|\d+(?:\.\d+)*(?=\D*$)"
)


HIDDEN = "hidden"
NO_SEQUENCE = "a picture that belongs to no numbered sequence"


@dataclass(frozen=True)
class RawVideo:
    """A video as found.

    Attributes:
        name: path in the folder searched, with `/`; of a sequence, the path of its folder, or a
            pattern such as `walk/left_*.png` if that holds several. It can always be printed.
        fold: `train`, `validation` or `test`.
        files: the video file, or the pictures of the frames in the order of their numbers.
        is_frames: whether each file is a frame.
    """

    name: str
    fold: str
    files: tuple[Path, ...]
    is_frames: bool = False

    @property
    def is_film(self) -> bool:
        """Whether it is a file of several pictures that Pillow reads."""
        suffix = self.files[0].suffix.lower()
        return not self.is_frames and suffix in PICTURE_SUFFIXES and suffix != ".gif"

    def frames(self, rate: float | None = None) -> Iterator[np.ndarray]:
        """Yield the frames as players show them: RGB, uint8 `(H, W, 3)`.

        Args:
            rate: frames per second, for which frames are repeated or dropped; by default every
                frame counts, as it does in sequences and stacks of pictures, which tell no times.

        Raises:
            ValueError: a file is damaged, truncated or not what its suffix says.
            OSError: a file cannot be opened.
        """
        if self.is_frames:
            return (read_picture(file, self._label(file)) for file in self.files)
        if self.is_film:
            return read_pictures(self.files[0], self.name, rate=rate)
        return decode(self.files[0], self.name, rate=rate, square=True)

    def _label(self, file: Path) -> str:
        folder = self.name.rpartition("/")[0] if "*" in self.name else self.name
        return printable(os.path.normpath(os.path.join(folder, file.name)))


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
        videos: by name.
        left_out: why a file or folder is not used, by its path in the folder.
    """

    videos: list[RawVideo]
    left_out: dict[str, str]


def find_videos(raw: Path, **split: float) -> list[RawVideo]:
    """Return only the videos of `search`."""
    return search(raw, **split).videos


def search(raw: Path, **split: float) -> Found:
    """Return the videos of a folder, at any depth, and what is left out. Links are followed.

    Args:
        raw: the folder.
        split: see `fold_of`.

    Raises:
        FileNotFoundError: there is no video.
    """
    raw = Path(raw)
    left_out: dict[Path, str] = {}
    found: dict[str, _Sequence] = {}
    for folder, files in _folders(raw, left_out):
        for name, sequence in _in_folder(files, left_out).items():
            found[(folder.relative_to(raw) / name).as_posix()] = sequence
    if not all(sequence.loose for sequence in found.values()):
        for name in [name for name, sequence in found.items() if sequence.loose]:
            left_out |= dict.fromkeys(found.pop(name).files, NO_SEQUENCE)
    reasons = {printable(path.relative_to(raw)): why for path, why in sorted(left_out.items())}
    if not found:
        told = [f"; left out: {name} ({why})" for name, why in [*reasons.items()][:3]]
        raise FileNotFoundError(
            f"{printable(raw)} holds no videos: it needs files such as .mp4, .avi, .webm or .gif, "
            f"or folders of numbered pictures{''.join(told)}"
        )
    videos = [
        RawVideo(printable(name), fold_of(name, **split), tuple(sequence.files), sequence.is_frames)
        for name, sequence in sorted(found.items())
    ]
    return Found(videos, reasons)


def fold_of(
    name: str,
    *,
    test_fraction: float = DataConfig.test_fraction,
    validation_fraction: float = DataConfig.validation_fraction,
    seed: int = DataConfig.seed,
) -> str:
    """Return the fold of a video, which depends only on its name and the split.

    Args:
        name: path of the video in the folder searched.
        test_fraction: of the videos that are split by a hash of their name.
        validation_fraction: likewise.
        seed: of the hash. The default, 42, hashes only the name; any other is hashed before it,
            which gives an independent split.
    """
    for part in name.split("/"):
        if fold := meant_fold(part):
            return fold
    key = os.fsencode(name if seed == DataConfig.seed else f"{seed}/{name}")
    uniform = int(hashlib.sha256(key).hexdigest()[:13], 16) / 16**13  # in [0, 1)
    if uniform < test_fraction:
        return "test"
    return "validation" if uniform < test_fraction + validation_fraction else "train"


def meant_fold(folder: str) -> str | None:
    """Return the fold that people mean by the name of a folder, or None."""
    word = FOLD_FILLERS.sub("", folder.lower())
    return next((fold for fold, words in FOLD_WORDS.items() if word in words), None)


def by_number(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts `frame 10` after `frame 9`, and `frame` before both."""
    stem, suffix = os.path.splitext(name)
    parts = re.split(r"(\d+)", stem)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], suffix


def printable(path: str | os.PathLike) -> str:
    """Return a path as a text of one line, whatever bytes it is made of."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text
    )


def _folders(raw: Path, left_out: dict[Path, str]) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder once, with its files; linked folders come last."""
    seen: set[str] = set()
    pending = deque([raw])
    while pending:
        folder = pending.popleft()
        if (real := os.path.realpath(folder)) in seen:
            left_out[folder] = "a link to a folder that is listed already"
            continue
        seen.add(real)
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            left_out[folder] = f"it cannot be opened ({error.strerror})"
            continue
        if not paths:
            left_out[folder] = "an empty folder"
        files = []
        for path in paths:
            if path.name.startswith("."):
                left_out[path] = HIDDEN
            elif os.path.isdir(path):
                (pending.append if path.is_symlink() else pending.appendleft)(path)
            elif os.path.isfile(path):
                files.append(path)
            else:
                left_out[path] = "a broken link" if path.is_symlink() else "not a regular file"
        yield folder, files


class _Sequence(NamedTuple):
    files: list[Path]
    is_frames: bool
    loose: bool = False  # pictures without a common numbering: a video only if there is no other


def _in_folder(files: list[Path], left_out: dict[Path, str]) -> dict[str, _Sequence]:
    """Return the videos among the files of one folder, by their name in it."""
    films = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    stems = {path.stem.lower() for path in films}
    numbered: dict[tuple[str, str, str], list[Path]] = {}
    for path in files:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            if path.stem.lower() in stems and not _is_film(path):
                left_out[path] = "a picture of the video of the same name"
            else:
                numbered.setdefault(_pattern(path), []).append(path)
        elif path.suffix.lower() not in VIDEO_SUFFIXES:
            left_out[path] = "no suffix of a video or picture"
    for pattern, paths in numbered.items():
        if _is_film(paths[0]):  # then the others may be, too
            is_film = {path: _is_film(path) for path in paths}
            films += [path for path in paths if is_film[path]]
            numbered[pattern] = [path for path in paths if not is_film[path]]
    found = {path.name: _Sequence([path], False) for path in films}
    single = [path for paths in numbered.values() if len(paths) == 1 for path in paths]
    many = {pattern: paths for pattern, paths in numbered.items() if len(paths) > 1}
    for (before, after, suffix), paths in many.items():
        name = "." if len(many) == 1 else f"{before}*{after}{suffix}"
        found[name] = _Sequence(_in_order(paths), True)
    if found:
        left_out |= dict.fromkeys(single, NO_SEQUENCE)
    elif single:
        single.sort(key=lambda path: by_number(path.name))
        found["."] = _Sequence(single, True, loose=True)
    return found


def _in_order(paths: list[Path]) -> list[Path]:
    """Sort a sequence by number: `1.9` is before `1.10`, but `0.15` before `0.2`."""
    numbers = [found[0] if (found := NUMBER.search(path.stem)) else "" for path in paths]
    decimals = [re.fullmatch(r"\d+(?:\.(\d|\d*[1-9]))?", number) for number in numbers]
    if all(decimals):  # as numbers are printed: without zeros at their end
        return [path for _, path in sorted(zip(map(Decimal, numbers), paths, strict=True))]
    return sorted(paths, key=lambda path: by_number(path.name))


def _pattern(path: Path) -> tuple[str, str, str]:
    """Return what the names of a sequence have in common: before and after the number, suffix."""
    suffix = {".jpeg": ".jpg", ".tiff": ".tif"}.get(path.suffix.lower(), path.suffix.lower())
    number = NUMBER.search(path.stem)
    if not number:
        return path.stem, "", suffix
    return path.stem[: number.start()], path.stem[number.end() :], suffix


def _is_film(path: Path) -> bool:
    if path.suffix.lower() not in FILM_SUFFIXES:
        return False
    try:
        return count_pictures(path, "", at_most=2) > 1
    except (OSError, ValueError):  # what it should be is told by its suffix
        return path.suffix.lower() in (".gif", ".apng")
