"""Reading raw files: videos through PyAV, members of archives. Every error names the file."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av import CodecContext, VideoFrame, VideoStream
from av.container import InputContainer
from av.stream import Disposition
from PIL import Image

from srvp.data.ends import is_cut
from srvp.data.filters import shown

REPLACE = "replace or remove it, then run again; what is finished is kept"
MAX_PIXELS = 2**25  # of a frame: 8K. Headers can claim more than fits into memory
OPTIONS = {
    # A playlist that is called .mp4 must not open other files or addresses.
    "options": {"protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)},
    "metadata_errors": "replace",
}


class DamagedError(ValueError):
    """A raw file that cannot be read; the message names it and is one line."""


@contextmanager
def open_video(source: Path | BinaryIO, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file, and yield its container and the stream of its pictures.

    Raises:
        DamagedError: the file is empty, damaged, too large, or holds no pictures.
        OSError: it cannot be opened.
    """
    with _opened(source) as file:
        try:
            with av.open(_Positions(file), **OPTIONS) as container:
                stream = _pictures(container, name)
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                stream.codec_context.thread_count = 1  # other cores decode other videos
                yield container, stream
        except DamagedError:
            raise
        except (av.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "too large"
            raise DamagedError(f"{name} is damaged or no video ({reason}): {REPLACE}") from None


def _opened(source: Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, (str, Path)):
        return open(source, "rb")
    source.seek(0)
    return nullcontext(source)


class _Positions:
    """An open file that answers to a position outside of it as libav expects, with -1."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.name = file, getattr(file, "name", "")
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError):  # damaged files hold damaged positions
            return -1


def _pictures(container: InputContainer, name: str) -> VideoStream:
    """Return the stream of pictures that players show; the cover of a piece of music is none."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        held = "sound and no video" if container.streams.audio else "no video"
        raise DamagedError(f"{name} holds {held}: {REPLACE}")
    brand = container.metadata.get("major_brand")
    if container.format.name.endswith("_pipe") or brand in ("avif", "avis", "heic", "mif1"):
        raise DamagedError(f"{name} is a picture named as a video: rename it, then run again")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise DamagedError(
            f"{name} has a codec that PyAV does not know: convert it, then run again"
        )
    return stream


def decode(
    source: Path | BinaryIO,
    name: str,
    *,
    rate: float | None = None,
    size: tuple[int, int] | None = None,
    truncated: bool = False,
    square: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the frames of a video as players show them: RGB, uint8 `(H, W, 3)`.

    Frames go through the filters of the ffmpeg command, so that they equal its output; then they
    are turned and mirrored as the file says. Transparent pixels are put on black.

    Args:
        source: a file, or an open one.
        name: of the file, for messages.
        rate: frames per second, for which the filter `fps` repeats or drops frames; by default
            every frame counts.
        size: height and width to scale to, bicubically; by default the video's.
        truncated: accept a video that ends early.
        square: scale the width of frames whose pixels are not square, so that they are.

    Raises:
        DamagedError: the file is empty, damaged, truncated, too large or not a video.
        OSError: it cannot be opened.
    """
    with _opened(source) as file:
        cut = False if truncated else is_cut(file)
    if cut:
        raise DamagedError(f"{name} is truncated, shorter than its container says: {REPLACE}")
    with open_video(source, name) as (container, stream):
        frames = _frames(container, stream, name, whole=cut is False)
        yield from shown(frames, stream, rate=rate, size=size, square=square)


def _frames(
    container: InputContainer, stream: VideoStream, name: str, whole: bool
) -> Iterator[VideoFrame]:
    """Yield the frames as decoded; raise at the end if frames lack.

    Args:
        container, stream: an open video.
        name: of the file, for messages.
        whole: the container is known to be whole; else its own count of frames counts.
    """
    decoder = _decoder(stream)
    decoded = packets = large = end = 0
    partial = False
    for packet in container.demux(stream):
        if packet.size:
            packets, end = packets + 1, (packet.pos or 0) + packet.size
            large += packet.size > 16  # smaller ones say that the last frame stays
            partial = partial or packet.is_corrupt
        try:
            frames = decoder.decode(packet)
        except av.InvalidDataError:
            if decoded or packet.is_keyframe:
                raise
            continue  # a recording that starts between two key frames
        decoded += len(frames)
        yield from frames
    if container.format.name == "yuv4mpegpipe":
        partial = end != container.size
    counted = stream.frames if container.format.name == "avi" else 0
    if not whole and (partial or packets < min(counted - 1, 0.98 * counted)):
        raise DamagedError(f"{name} is truncated, only {decoded} frames decode: {REPLACE}")
    if 2 * decoded + 2 < large or not decoded:  # a frame may be two packets, one for each field
        raise DamagedError(f"{name} is damaged, only {decoded} of its frames decode: {REPLACE}")


def count_frames(source: Path | BinaryIO, name: str) -> tuple[int, float | None]:
    """Return how many frames a video file holds, and how many a second on average.

    Frames are counted in the index of the file, or by their packets; they are not decoded.

    Raises:
        DamagedError, OSError: see `open_video`.
    """
    with open_video(source, name) as (container, stream):
        indexed = stream.frames and container.format.name.startswith("mov")  # MP4 and others
        packets = stream.index_entries if indexed else container.demux(stream)
        count = sum(packet.size > 0 and not packet.is_discard for packet in packets)
        return count, float(stream.average_rate) if stream.average_rate else None


def _decoder(stream: VideoStream) -> CodecContext:
    """Return the stream's decoder, or the one that knows the transparency of WebM."""
    known = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if known is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    decoder = CodecContext.create(known, "r")
    decoder.options = stream.codec_context.options
    return decoder


def resized(
    frame: np.ndarray,
    size: tuple[int, int],
    *,
    channels: int = 3,
    crop: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Crop a frame, then resize it (Lanczos): uint8 `(C, H, W)`.

    Args:
        frame: RGB, uint8 `(H, W, 3)`.
        size: height and width of the result.
        channels: 3, or 1 for grey.
        crop: left, upper, right and lower edge in pixels, as in Pillow.
    """
    if crop:
        left, upper, right, lower = crop
        frame = frame[upper:lower, left:right]
    image = Image.fromarray(frame)
    if channels == 1:
        image = image.convert("L")
    pixels = np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return np.atleast_3d(pixels).transpose(2, 0, 1)


class RawFile(NamedTuple):
    """A raw file as found: of its own, or a member of a zip or an uncompressed tar archive."""

    path: Path
    member: str | None
    size: int  # bytes

    @property
    def label(self) -> str:
        """What messages and manifests call it."""
        return f"{self.path.name}:{self.member}" if self.member else self.path.name

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open it for reading; a damaged archive raises a `ValueError` that names the file."""
        with intact(self.label):
            if self.member is None:
                with open(self.path, "rb") as file:
                    yield file
            elif self.path.suffix == ".zip":
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                    yield file
            else:
                with tarfile.open(self.path, "r:") as archive:
                    yield archive.extractfile(self.member)


@contextmanager
def intact(archive: Path | str) -> Iterator[None]:
    """Say which archive is damaged when reading it fails."""
    damage = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
    try:
        yield
    except damage as error:
        raise ValueError(f"{archive} is truncated or damaged ({error}): {REPLACE}") from None


def tar_files(archive: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an archive, in its order.

    Raises:
        ValueError: a member points outside the archive, or the archive is damaged.
    """
    with intact(archive):
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(
                    f"{archive} is not to be trusted: {member.name} lies outside of it; get the "
                    "archive from its owner again"
                )
            if member.isfile():
                yield member
