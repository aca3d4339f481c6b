"""From decoded frames to frames as players show them: rate, size, orientation, transparency."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
from av import VideoFrame, VideoStream
from av.filter import Graph

LONGEST_HOLD = 1800  # seconds; longer gaps come from damaged time stamps, and would fill the disk


def shown(
    frames: Iterable[VideoFrame],
    stream: VideoStream | None = None,
    *,
    rate: float | None = None,
    size: tuple[int, int] | None = None,
    square: bool = False,
) -> Iterator[np.ndarray]:
    """Yield frames as players show them: RGB, uint8 `(H, W, 3)`.

    Args:
        frames: as decoded.
        stream: that they come from; None for frames from elsewhere.
        rate: frames per second, for which the filter `fps` repeats or drops frames.
        size: height and width to scale to, bicubically.
        square: scale the width of frames whose pixels are not square, so that they are.

    Raises:
        ValueError: for a rate, a frame would be repeated for more than `LONGEST_HOLD` seconds, or
            there are no times.
    """
    timed = _without_gaps(_timed(frames)) if rate else iter(frames)
    first = next(timed, None)
    if first is None:
        return
    turn = Turn.of(first)
    size = size[::-1] if size and turn.transposed else size
    alpha = any(component.is_alpha for component in first.format.components)
    graph = _graph(first, stream, rate, size, square, "rgba" if alpha else "rgb24")
    for frame in chain([first], timed, [None]):  # None: there are no more
        graph.push(frame)
        for image in _pull(graph):
            yield turn(on_black(image) if alpha else image)


def _graph(
    frame: VideoFrame,
    stream: VideoStream | None,
    rate: float | None,
    size: tuple[int, int] | None,
    square: bool,
    layout: str,
) -> Graph:
    graph = Graph()
    if stream and stream.codec_context.format.name == frame.format.name:
        chain = [graph.add_buffer(template=stream)]
    else:
        frame_options = {"width": frame.width, "height": frame.height, "format": frame.format}
        chain = [graph.add_buffer(**frame_options, time_base=frame.time_base)]
    if rate:
        chain.append(graph.add("fps", f"fps={Fraction(rate).limit_denominator(1001)}"))
    aspect = stream.sample_aspect_ratio if stream and square else None
    if size:
        chain.append(graph.add("scale", f"{size[1]}:{size[0]}:flags=bicubic"))
    elif aspect and aspect != 1 and 1 / 8 < aspect < 8:
        width = round(frame.width * aspect)
        chain.append(graph.add("scale", f"{width}:{frame.height}:flags=bicubic"))
    chain += [graph.add("format", layout), graph.add("buffersink")]
    graph.link_nodes(*chain).configure()
    return graph


def _timed(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Give frames the times that ffmpeg takes: those of decoding if those of showing go back.

    AVI knows no times of showing, so B-frames get wrong ones.
    """
    faulty = {"pts": 0, "dts": 0}
    last: dict[str, int | None] = {"pts": None, "dts": None}
    for frame in frames:
        times = {"pts": frame.pts, "dts": frame.dts}
        for kind, other in (("dts", "pts"), ("pts", "dts")):
            time = times[kind]
            if time is not None and last[kind] is not None:
                faulty[kind] += time <= last[kind]
            last[kind] = times[other] if time is None else time
        if times["dts"] is not None and (faulty["pts"] > faulty["dts"] or times["pts"] is None):
            frame.pts = times["dts"]
        yield frame


def _without_gaps(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield frames; raise a `ValueError` if one would be repeated for too long, or has no time."""
    end = None
    for frame in frames:
        if frame.pts is None and end is None:
            raise ValueError("frames without times, which a rate needs")
        time = frame.time or 0.0
        before = time if end is None else end
        end = time + float((frame.duration or 0) * (frame.time_base or 0))
        if end - before > LONGEST_HOLD:
            raise ValueError(f"a gap of more than {LONGEST_HOLD} seconds between two frames")
        yield frame


def _pull(graph: Graph) -> Iterator[np.ndarray]:
    """Yield the frames that the filters have ready."""
    while True:
        try:
            yield graph.pull().to_ndarray()
        except (av.BlockingIOError, av.EOFError):  # needs more input; has ended
            return


class Turn(NamedTuple):
    """How a frame is turned and mirrored: one of the eight symmetries of a square.

    Attributes:
        transposed: rows become columns, first.
        rows: the order of the rows is reversed.
        columns: the order of the columns is reversed.
    """

    transposed: bool = False
    rows: bool = False
    columns: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> "Turn":
        """Return the turn that the display matrix of a file asks for, to the nearest right angle.

        The matrix takes (x, y) to (a x + c y, b x + d y).
        """
        try:
            matrix = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV 18 does not know all kinds of side data, such as EXIF
            quarters = (cls(), cls(True, True), cls(False, True, True), cls(True, False, True))
            return quarters[round(frame.rotation / 90) % 4]  # anticlockwise
        if matrix is None:
            return cls()
        a, b, _, c, d = (int(n) for n in np.frombuffer(matrix, np.int32)[:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, d < 0, a < 0)
        return cls(True, b < 0, c < 0)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return an image `(H, W, C)` turned, as a view."""
        image = image.swapaxes(0, 1) if self.transposed else image
        image = image[::-1] if self.rows else image
        return image[:, ::-1] if self.columns else image


def on_black(image: np.ndarray) -> np.ndarray:
    """Put an image with transparency, uint8 `(H, W, 4)`, on black: `(H, W, 3)`."""
    weighted = image[..., :3].astype(np.uint16) * image[..., 3:]
    return ((weighted + 127) // 255).astype(np.uint8)
