"""Reading raw files: videos through PyAV, members of archives. Every error names the file."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av import VideoStream
from av.container import InputContainer
from av.filter import Graph
from PIL import Image

REPLACE = "replace or remove it, then run again; what is finished is kept"


def decode(
    source: Path | BinaryIO,
    name: str,
    *,
    rate: float | None = None,
    size: tuple[int, int] | None = None,
    truncated: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the frames of a video: RGB, uint8 `(H, W, 3)`, upright.

    Frames go through the filters of the ffmpeg command, so that they equal its output.

    Args:
        source: a file, or an open one.
        name: of the file, for messages.
        rate: frames per second, for which the filter `fps` repeats or drops frames; by default
            every frame counts.
        size: height and width to scale to, bicubically; by default the video's.
        truncated: accept a video that ends early.

    Raises:
        ValueError: the file is empty, damaged, truncated or not a video.
    """
    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise ValueError(f"{name} holds no video: {REPLACE}")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # other cores decode other videos
            graph = _filters(stream, rate, size)
            count, last, turn = 0, 0.0, 0
            for frame in container.decode(stream):
                count, last, turn = count + 1, frame.time or last, frame.rotation
                graph.push(frame)
                yield from _pull(graph, turn)
            graph.push(None)
            yield from _pull(graph, turn)
            if not truncated:
                _check_end(name, container, stream, count, last)
    except av.FFmpegError as error:
        raise ValueError(f"{name} is damaged or no video ({error.strerror}): {REPLACE}") from None


def _filters(stream: VideoStream, rate: float | None, size: tuple[int, int] | None) -> Graph:
    graph = Graph()
    chain = [graph.add_buffer(template=stream)]
    if rate:
        chain.append(graph.add("fps", f"fps={Fraction(rate).limit_denominator(1001)}"))
    if size:
        chain.append(graph.add("scale", f"{size[1]}:{size[0]}:flags=bicubic"))
    chain += [graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*chain).configure()
    return graph


def _pull(graph: Graph, turn: int) -> Iterator[np.ndarray]:
    """Yield the frames that the filters have ready, turned by `turn` degrees anticlockwise."""
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):  # needs more input; has ended
            return
        yield np.rot90(frame.to_ndarray(), turn // 90)


def _check_end(
    name: str, container: InputContainer, stream: VideoStream, count: int, last: float
) -> None:
    """Raise if of a video, `count` frames up to `last` seconds, over 2 percent of the end lack.

    Of whole files, too, decoders may drop a last frame.
    """
    rate = float(stream.average_rate or 1)
    if container.format.name == "avi":  # its header counts frames; the duration is of what is there
        expected, found = stream.frames, count
    else:
        start = float((stream.start_time or 0) * stream.time_base)
        found = (last - start) * rate + 1
        if stream.duration:
            expected = float(stream.duration * stream.time_base) * rate
        else:  # only the container's, which sound may exceed
            expected = 0.9 * (container.duration or 0) / av.time_base * rate
    if expected - found > max(1, 0.02 * expected):
        raise ValueError(
            f"{name} is truncated: {found:.0f} of {expected:.0f} frames decode; {REPLACE}"
        )


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
