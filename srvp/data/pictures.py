"""Reading pictures: numbered frames, and files that hold many (TIFF, PNG, WebP, AVIF).

Pictures come out as viewers show them, in 8 bits: turned as their EXIF orientation says,
transparent pixels on black, 16 bits divided by 257. Floating point is taken to go from 0 to 1.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from av import VideoFrame
from PIL import Image, ImageOps, UnidentifiedImageError

from srvp.data.ends import is_cut
from srvp.data.filters import on_black, shown

# Not EPS, which would run a program, nor formats that hold no photographs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "AVIF", "JPEG2000", "TGA")
MAX_PIXELS = 2**26  # headers can claim more than fits into memory
BITS, PHOTOMETRIC, DESCRIPTION, SUBFILE = 258, 262, 270, 254  # numbers of tags of TIFF
SAMPLES, PLANES, KINDS = 277, 284, 339


class PictureError(ValueError):
    """A picture that could only be read other than it looks; the message says why."""


def count_pictures(path: Path, name: str, *, at_most: int | None = None) -> int:
    """Return how many pictures a file holds. Errors are those of `read_picture`."""
    with _opened(path, name) as image:
        return len(_numbers(image, at_most))


def read_picture(path: Path, name: str) -> np.ndarray:
    """Read a picture as RGB, uint8 `(H, W, 3)`.

    Raises:
        ValueError: it is damaged, too large, of values whose range is not known, or one of many.
        OSError: it cannot be opened.
    """
    with _opened(path, name) as image:
        numbers = _numbers(image, at_most=2)
        if len(numbers) > 1:
            raise PictureError("holds many pictures, but is one of several numbered files")
        return _rgb(image, numbers[0])


def read_pictures(path: Path, name: str, *, rate: float | None = None) -> Iterator[np.ndarray]:
    """Yield the pictures of a file as RGB, uint8 `(H, W, 3)`.

    Args:
        path: of the file.
        name: of the file, for messages.
        rate: pictures per second. Pictures are repeated or dropped; those of a TIFF, which tells
            no times, are all kept.

    Raises:
        ValueError, OSError: see `read_picture`; or the pictures have several sizes.
    """
    pictures = _timed(path, name)
    first, seconds = next(pictures)
    pictures = chain([(first, seconds)], pictures)
    if rate and seconds:
        yield from shown(_as_video(pictures), rate=rate)
    else:
        yield from (picture for picture, _ in pictures)


def _timed(path: Path, name: str) -> Iterator[tuple[np.ndarray, float]]:
    """Yield each picture of a file and for how many seconds it is shown."""
    with _opened(path, name) as image:
        size = None
        for number in _numbers(image):
            picture = _rgb(image, number)
            if size not in (None, picture.shape):
                raise PictureError("holds pictures of several sizes")
            size = picture.shape
            yield picture, (image.info.get("duration") or 0) / 1000
        if size is None:
            raise PictureError("holds previews only")


def _as_video(pictures: Iterator[tuple[np.ndarray, float]]) -> Iterator[VideoFrame]:
    time = 0.0
    for picture, seconds in pictures:
        frame = VideoFrame.from_ndarray(picture)
        frame.time_base = Fraction(1, 1000)
        frame.pts, frame.duration = round(time * 1000), round(seconds * 1000)
        time += seconds
        yield frame


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Image.Image]:
    """Open a picture; an error while it is read becomes a `ValueError` of one line."""
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(path, "r", FORMATS)
        with image, open(path, "rb") as file:
            if image.format in ("GIF", "PNG", "WEBP") and is_cut(file):
                raise PictureError("is truncated")
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"has {image.width}x{image.height} pixels, over {MAX_PIXELS}")
            yield image
    except PictureError as error:
        raise ValueError(f"{name} {error}: convert or remove it, then run again") from None
    except Exception as error:  # Pillow raises nearly every type at damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:99] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "of a kind that Pillow does not know"
        raise ValueError(
            f"{name} is damaged or no picture that can be read ({reason}): replace, convert or "
            "remove it, then run again; what is finished is kept"
        ) from None


def _numbers(image: Image.Image, at_most: int | None = None) -> list[int]:
    """Return the numbers of the pictures that count: no previews, masks or second eyes."""
    numbers = []
    with warnings.catch_warnings(action="ignore"):
        for number in range(1 if image.format == "MPO" else getattr(image, "n_frames", 1)):
            if image.format == "TIFF":
                image.seek(number)
                counts = not image.tag_v2.get(SUBFILE, 0) & 0b101
            else:  # a PNG may have a picture for viewers that do not know animation
                counts = number > 0 or not getattr(image, "default_image", False)
            if counts:
                numbers.append(number)
            if len(numbers) == at_most:
                break
    return numbers


def _rgb(image: Image.Image, number: int) -> np.ndarray:
    """Return a picture of a file as RGB, uint8 `(H, W, 3)`."""
    with warnings.catch_warnings(action="ignore"):
        image.seek(number)
        tags = image.tag_v2 if image.format == "TIFF" else {}
        bits = max(tags.get(BITS, (16,)))
        inverted, key = tags.get(PHOTOMETRIC) == 0, image.info.get("transparency")
        _check_tiff(tags)
        image.load()
        image = _upright(image)
        if image.mode == "F":
            return _grey(_unit_range(np.asarray(image)))
        if image.mode.startswith("I"):
            levels = np.asarray(image).astype(np.float32) / (2**bits - 1)
            levels = 1 - levels if inverted else levels
            return _grey(np.where(np.asarray(image) == key, 0, levels))
        if image.has_transparency_data:
            return on_black(np.asarray(image.convert("RGBA")))
        return np.asarray(image.convert("RGB"))


def _check_tiff(tags: dict) -> None:
    """Refuse what Pillow would read other than it looks."""
    bits, samples = tags.get(BITS, (1,)), tags.get(SAMPLES, 1)
    if 2 in tags.get(KINDS, ()):
        raise PictureError("holds signed integers, whose range is not known")
    if max(bits) > 16 and 3 not in tags.get(KINDS, ()):
        raise PictureError(f"holds integers of {max(bits)} bits, whose range is not known")
    if samples > 1 and max(bits) > 8 and tags.get(PLANES) == 2:
        raise PictureError("keeps its colours in planes of 16 bits, which Pillow cannot read")
    told = str(tags.get(DESCRIPTION, ""))
    counts = dict(re.findall(r'\b(channels|slices|frames|SizeC|SizeZ|SizeT)="?(\d+)', told))
    axes = [f"{count} {key}" for key, count in counts.items() if int(count) > 1]
    if samples == 1 and len(axes) > 1:
        raise PictureError(f"is a stack over more than time ({', '.join(axes)})")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the EXIF data are damaged, the picture is not
        return image


def _unit_range(values: np.ndarray) -> np.ndarray:
    """Return floating point as it is if it may go from 0 to 1, but for some overshoot."""
    values = np.nan_to_num(values, nan=0.0)
    low, high = values.min(), values.max()
    if low < -0.5 or high > 1.5:
        raise PictureError(f"holds floating point from {low:g} to {high:g}; expected 0 to 1")
    return values


def _grey(levels: np.ndarray) -> np.ndarray:
    """Return levels from 0 to 1, `(H, W)`, as uint8 `(H, W, 3)`."""
    grey = np.rint(levels.clip(0, 1) * 255).astype(np.uint8)
    return np.stack([grey] * 3, axis=-1)
