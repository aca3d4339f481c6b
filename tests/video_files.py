"""Small videos in the containers that people have, written by PyAV and Pillow."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

INPUTS = Path(__file__).parent / "inputs"  # what the encoders here do not write
FRAMES, HEIGHT, WIDTH, RATE = 20, 48, 64, 25
FAST = {"deadline": "realtime", "cpu-used": "8"}


class Kind(NamedTuple):
    """How to write a video."""

    codec: str
    pixels: str = "yuv420p"
    format: str | None = None  # if the suffix does not tell it
    codec_options: Mapping[str, str] = MappingProxyType({})
    container_options: Mapping[str, str] = MappingProxyType({})
    sound: str | None = None


VIDEOS = {
    "h264.mp4": Kind("libx264"),
    "h264.mov": Kind("libx264"),
    "h264.3gp": Kind("libx264"),
    "h265.mp4": Kind("libx265", codec_options={"x265-params": "log-level=none"}),
    "index first.mp4": Kind("libx264", container_options={"movflags": "faststart"}),
    "fragments.mp4": Kind(
        "libx264",
        codec_options={"g": "5"},
        container_options={"movflags": "frag_keyframe+empty_moov"},
    ),
    "ten bits.mov": Kind("prores_ks", "yuv422p10le"),
    "mpeg4.avi": Kind("mpeg4"),
    "h264.avi": Kind("libx264"),
    "mjpeg.avi": Kind("mjpeg", "yuvj420p"),
    "sound.avi": Kind("mpeg4", sound="pcm_s16le"),
    "h264.mkv": Kind("libx264"),
    "ffv1.mkv": Kind("ffv1"),
    "sound.mkv": Kind("libx264", sound="libopus"),
    "vp9.webm": Kind("libvpx-vp9", codec_options=FAST),
    "live.webm": Kind("libvpx", codec_options=FAST, container_options={"live": "1"}),
    "vp8.ogv": Kind("libvpx", format="ogg", codec_options=FAST),
    "wmv2.wmv": Kind("wmv2"),
    "msmpeg4.asf": Kind("msmpeg4"),
    "flv1.flv": Kind("flv"),
    "sound.flv": Kind("libx264", sound="aac"),
    "mpeg2.ts": Kind("mpeg2video"),
    "sound.m2ts": Kind("libx264", sound="aac"),
    "mpeg2.mpg": Kind("mpeg2video", format="vob"),
    "mjpeg.mjpeg": Kind("mjpeg", "yuvj420p"),
    "raw.y4m": Kind("rawvideo", format="yuv4mpegpipe"),
    "film.gif": Kind("gif", "rgb8"),
}
FILMS = {
    "film.webp": {"duration": 40, "lossless": True},
    "film.png": {"duration": 40},
    "film.tif": {"compression": "tiff_lzw"},
    "film.avif": {"duration": 40},
}


def video() -> np.ndarray:
    """Return a square that moves over a dim pattern: uint8 (T, H, W, 3)."""
    pattern = np.random.default_rng(0).integers(0, 60, (HEIGHT // 8, WIDTH // 8, 3))
    frames = np.tile(np.kron(pattern, np.ones((8, 8, 1))).astype(np.uint8), (FRAMES, 1, 1, 1))
    for i, frame in enumerate(frames):
        frame[8:24, 2 * i : 2 * i + 16] = (250, 200, 30)
    return frames


def write(path: Path, kind: Kind, frames: np.ndarray | None = None) -> Path:
    """Write a video file."""
    frames = video() if frames is None else frames
    with av.open(path, "w", format=kind.format, options=dict(kind.container_options)) as container:
        stream = container.add_stream(kind.codec, rate=RATE, options=dict(kind.codec_options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = kind.pixels, 1
        sound = container.add_stream(kind.sound, rate=48000, layout="mono") if kind.sound else None
        for frame in frames:
            layout = "rgba" if frame.shape[-1] == 4 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=layout)))
        container.mux(stream.encode(None))
        if sound:
            _write_sound(container, sound, seconds=len(frames) / RATE + 1)
    return path


def _write_sound(container, stream, seconds: float) -> None:
    size = stream.codec_context.frame_size or 1024
    for start in range(0, int(seconds * stream.rate), size):
        wave = np.sin(np.arange(start, start + size)[None] / 20)
        frame = av.AudioFrame.from_ndarray((wave * 3000).astype(np.int16), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, start, Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_film(path: Path, frames: np.ndarray | None = None, **options) -> Path:
    """Write a file of several pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(frame) for frame in (video() if frames is None else frames))
    first.save(path, save_all=True, append_images=others, **options)
    return path


def write_frames(folder: Path, names: list[str], frames: np.ndarray | None = None) -> None:
    """Write pictures of these names; their content tells their place in the list."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = video() if frames is None else frames
    for name, frame in zip(names, frames, strict=False):
        Image.fromarray(frame).save(folder / name)


def write_all(folder: Path) -> list[Path]:
    """Write every kind of file."""
    written = [write(folder / name, kind) for name, kind in VIDEOS.items()]
    return written + [write_film(folder / name, **options) for name, options in FILMS.items()]
