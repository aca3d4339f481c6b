"""Animations of predictions: GIF for pages, MP4 for slides.

Frames given to the model have a green border, predicted ones a red one (`figures/style.py`).
"""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

from srvp.files import atomic_write
from srvp.report import figures
from srvp.report.figures.frames import image
from srvp.report.figures.style import GIVEN, PREDICTED, write_png

if TYPE_CHECKING:  # its module reads videos; this one does not
    from srvp.evaluation.futures import Futures

RATE = 7  # frames per second
HEADER = 22  # pixels, of one line of labels
LINE = 17  # and of each line more
SIZE = 128  # pixels: smaller frames are enlarged to this size
BORDER, MARGIN = 2, 4  # pixels
SHOWN = 12  # videos in a GIF or a picture of futures, at most
FUTURES = (".mp4", ".gif", ".png")  # files of the futures of a video


class Pages(Sequence):
    """Videos laid out side by side: a uint8 RGB page per frame, made when it is asked for.

    Args:
        rows: of the layout, each with videos by label, uint8 `(T, C, H, W)`, all of one length.
            The labels are written above a row unless they are those of the row before.
        given: how many frames were given to the model.
        size: frames that are smaller are enlarged to so many pixels.
    """

    def __init__(self, rows: Sequence[Mapping[str, np.ndarray]], given: int, size: int = SIZE):
        self.rows = rows
        self.given = given
        self.zoom = max(1, size // next(iter(rows[0].values())).shape[-1])

    def __len__(self) -> int:
        return len(next(iter(self.rows[0].values())))

    def __getitem__(self, t: int) -> np.ndarray:
        if not 0 <= t < len(self):
            raise IndexError(f"page {t} of {len(self)}")
        color = to_rgb(GIVEN if t < self.given else PREDICTED)
        strips, labels = [], []
        for videos in self.rows:
            frames = [_bordered(video[t], color, self.zoom) for video in videos.values()]
            if list(videos) != labels:
                labels = list(videos)
                strips.append(_header(labels, frames[0].shape[1]))
            strips.append(np.concatenate(frames, axis=1))
        width = max(strip.shape[1] for strip in strips)
        page = np.full((sum(map(len, strips)), width, 3), 255, np.uint8)
        for strip, top in zip(strips, np.cumsum([0, *map(len, strips)]), strict=False):
            page[top : top + len(strip), : strip.shape[1]] = strip
        return page


def save(pages: Sequence[np.ndarray], run: Path, name: str) -> None:
    """Write `run/figures/NAME.gif` and `run/print/NAME.mp4` (H.264), the same bytes every time."""
    write_gif(pages, run / "figures" / f"{name}.gif")
    write_mp4(pages, run / "print" / f"{name}.mp4")


def write_futures(futures: "Futures", out: Path) -> list[Path]:
    """Write sampled futures of a video beside what really follows, if the video has that.

    Args:
        futures: all of one length, of any size.
        out: the files' common name; its own ending does not count.

    Returns:
        The files: an MP4 with all futures; a GIF, and a PNG of some frames, with the first ones.
    """
    figures.use_style()
    given, total = len(futures.given), len(futures.given) + futures.samples.shape[1]
    videos = {}
    if len(futures.truth):
        known = np.concatenate([futures.given, futures.truth])
        missing = np.full((total - len(known), *known.shape[1:]), 255, np.uint8)  # white
        videos["truth"] = np.concatenate([known, missing])
    for i, sample in enumerate(futures.samples, start=1):
        videos[f"future {i}"] = np.concatenate([futures.given, sample])
    first = dict(list(videos.items())[:SHOWN])
    paths = [out.with_suffix(suffix) for suffix in FUTURES]
    write_mp4(Pages(_wrapped(videos), given, SIZE if len(videos) <= SHOWN else SIZE // 2), paths[0])
    write_gif(Pages(_wrapped(first), given), paths[1])
    write_png(figures.sample_grid(first, given, figures.spread(given, total)), paths[2])
    return paths


def _wrapped(videos: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return videos in rows of six, or in a square if they are many."""
    columns, labels = max(6, ceil(sqrt(len(videos)))), list(videos)
    starts = range(0, len(labels), columns)
    return [{label: videos[label] for label in labels[i : i + columns]} for i in starts]


def write_gif(pages: Sequence[np.ndarray], path: Path) -> None:
    """Write uint8 RGB pages of one size as an endless GIF."""
    # 64 shades per channel take half the bytes of 256. All pages share one palette, and there is no
    # dithering: parts of the video that do not move then do not flicker. Pillow finds the nearest
    # colour of multiples of 4 exactly; the palette then reaches white again.
    shades = ((np.arange(256) / 255 * 63).round() * 4).astype(np.uint8)  # 0, 4, ..., 252
    some = sorted({round(t) for t in np.linspace(0, len(pages) - 1, 25)})
    strip = Image.fromarray(shades[np.concatenate([pages[t] for t in some])])
    palette = strip.quantize(256, dither=Image.Dither.NONE)
    colors = (np.array(palette.getpalette()) * (255 / 252)).round().astype(int).tolist()

    def drawn(page: np.ndarray) -> Image.Image:
        picture = Image.fromarray(shades[page]).quantize(palette=palette, dither=Image.Dither.NONE)
        picture.putpalette(colors)
        return picture

    frames = map(drawn, pages)
    with atomic_write(path) as temporary:
        next(frames).save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames,
            duration=1000 // RATE,
            loop=0,
            disposal=1,
        )


def write_mp4(pages: Sequence[np.ndarray], path: Path) -> None:
    """Write uint8 RGB pages of one size as an H.264 video."""
    height, width = (size // 2 * 2 for size in pages[0].shape[:2])  # H.264 takes even sizes
    with (
        atomic_write(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as file,
    ):
        # With several threads, the bytes depend on their number. Macroblock-tree rate control reads
        # memory that it has not written (x264 with AVX-512): they depend on what was there before.
        options = {"crf": "18", "threads": "1", "mbtree": "0"}
        stream = file.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for page in pages:
            frame = np.ascontiguousarray(page[:height, :width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def _bordered(frame: np.ndarray, color: tuple[float, float, float], zoom: int) -> np.ndarray:
    """Enlarge a frame to uint8 RGB, with a border of `color` and a white margin."""
    picture = np.atleast_3d(image(frame)).repeat(zoom, axis=0).repeat(zoom, axis=1)
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    for width, value in ((BORDER, np.round(255 * np.array(color)).astype(np.uint8)), (MARGIN, 255)):
        framed = np.empty((*(np.array(picture.shape[:2]) + 2 * width), 3), np.uint8)
        framed[:] = value
        framed[width:-width, width:-width] = picture
        picture = framed
    return picture


def _header(labels: Sequence[str], column: int) -> np.ndarray:
    """Draw labels on a white strip, each in the middle of a column of so many pixels."""
    height = HEADER + LINE * max(label.count("\n") for label in labels)
    strip = Image.new("RGB", (column * len(labels), height), "white")
    draw = ImageDraw.Draw(strip)
    for i, label in enumerate(labels):
        place = {"anchor": "mm", "align": "center"}
        draw.text(((i + 0.5) * column, height / 2 + 1), label, fill="black", **place, font_size=13)
    return np.asarray(strip)
