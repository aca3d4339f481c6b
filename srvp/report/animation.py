"""Animations of predictions: GIF for pages, MP4 for slides.

Frames given to the model have a green border, predicted ones a red one (`figures/style.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

from srvp.files import atomic_write
from srvp.report.figures.frames import image
from srvp.report.figures.style import GIVEN, PREDICTED

RATE = 7  # frames per second
HEADER = 22  # pixels
FRAME = 128  # pixels: smaller frames are enlarged to this size
BORDER, MARGIN = 2, 4  # pixels


def pages(videos: Sequence[Mapping[str, np.ndarray]], given: int) -> list[np.ndarray]:
    """Lay videos out, a row per test video and a column per label: a uint8 RGB page per frame.

    Args:
        videos: by label, uint8 `(T, C, H, W)`, as `figures.futures` returns them.
        given: how many frames were given to the model.
    """
    result = []
    for t in range(len(next(iter(videos[0].values())))):
        color = to_rgb(GIVEN if t < given else PREDICTED)
        rows = [
            np.concatenate([_bordered(v[t], color) for v in video.values()], axis=1)
            for video in videos
        ]
        result.append(np.concatenate([_header(videos[0], rows[0]), *rows]))
    return result


def save(pages: Sequence[np.ndarray], run: Path, name: str) -> None:
    """Write `run/figures/NAME.gif` and `run/print/NAME.mp4` (H.264), the same bytes every time."""
    write_gif(pages, run / "figures" / f"{name}.gif")
    write_mp4(pages, run / "print" / f"{name}.mp4")


def write_gif(pages: Sequence[np.ndarray], path: Path) -> None:
    """Write uint8 RGB pages of one size as an endless GIF."""
    # 64 shades per channel take half the bytes of 256. All pages share one palette, and there is no
    # dithering: parts of the video that do not move then do not flicker.
    shades = ((np.arange(256) / 255 * 63).round() / 63 * 255).round().astype(np.uint8)
    strip = Image.fromarray(shades[np.concatenate(pages)]).quantize(256, dither=Image.Dither.NONE)
    height, width = pages[0].shape[:2]
    first, *others = [
        strip.crop((0, t * height, width, (t + 1) * height)) for t in range(len(pages))
    ]
    with atomic_write(path) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=others,
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


def _bordered(frame: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    """Enlarge a frame to uint8 RGB, with a border of `color` and a white margin."""
    zoom = max(1, FRAME // frame.shape[-1])
    picture = np.atleast_3d(image(frame)).repeat(zoom, axis=0).repeat(zoom, axis=1)
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    for width, value in ((BORDER, np.round(255 * np.array(color)).astype(np.uint8)), (MARGIN, 255)):
        framed = np.empty((*(np.array(picture.shape[:2]) + 2 * width), 3), np.uint8)
        framed[:] = value
        framed[width:-width, width:-width] = picture
        picture = framed
    return picture


def _header(labels: Sequence[str], row: np.ndarray) -> np.ndarray:
    """Draw the columns' labels on a white strip as wide as `row`."""
    strip = Image.new("RGB", (row.shape[1], HEADER), "white")
    draw, column = ImageDraw.Draw(strip), row.shape[1] / len(labels)
    for i, label in enumerate(labels):
        draw.text(((i + 0.5) * column, 12), label, fill="black", anchor="mm", font_size=13)
    return np.asarray(strip)
