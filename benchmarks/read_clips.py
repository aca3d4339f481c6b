"""How fast random training clips are read, and whether memory grows meanwhile.

Compares a prepared set with the same frames as PNG files, decoded one by one as by the authors'
data loader. Both come from the system's cache of files. Then draws many batches and follows the
process' resident memory: its own, and that of mapped files, where pages of the set would show.

    python benchmarks/read_clips.py
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from srvp.data.prepared import ClipSampler, PreparedVideos
from srvp.data.staging import Fold, Video, write_prepared

SIZE = 64


def make_videos(count: int, frames: int) -> list[np.ndarray]:
    """Return videos uint8 (frames, 1, 64, 64): a window that moves over a smooth random picture."""
    random = np.random.RandomState(0)
    videos = []
    for _ in range(count):
        noise = Image.fromarray(random.randint(0, 256, (24, 24), dtype=np.uint8))
        picture = np.asarray(noise.resize((SIZE + frames, SIZE), Image.Resampling.BICUBIC))
        windows = np.lib.stride_tricks.sliding_window_view(picture, SIZE, axis=1)[:, :frames]
        videos.append(np.ascontiguousarray(windows.transpose(1, 0, 2))[:, None])
    return videos


def write_png(folder: Path, videos: list[np.ndarray]) -> list[list[Path]]:
    """Write each frame as an RGB file, as the authors' conversion of KTH does."""
    paths = []
    for number, video in enumerate(tqdm(videos, desc="writing PNG files")):
        (folder / str(number)).mkdir(parents=True)
        paths.append([folder / str(number) / f"image-{t:03d}.png" for t in range(len(video))])
        for path, frame in zip(paths[-1], video, strict=True):
            Image.fromarray(frame[0]).convert("RGB").save(path)
    return paths


def draw_png(
    paths: list[list[Path]], videos: int, frames: int, random: np.random.RandomState
) -> np.ndarray:
    """Return random clips, decoded frame by frame: uint8 (videos, frames, 1, 64, 64)."""
    batch = np.zeros((videos, frames, 1, SIZE, SIZE), np.uint8)
    for clip in batch:
        video = paths[random.randint(len(paths))]
        start = random.randint(len(video) - frames + 1)
        for t in range(frames):
            clip[t, 0] = np.array(Image.open(video[start + t]))[:, :, 0]
    return batch


def seconds(draw: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        draw()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def resident(part: str) -> float:
    """Return the process' resident memory in MB: `RssAnon`, its own, or `RssFile`, mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{part}:\s+(\d+)", status)[1]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--video-frames", type=int, default=100)
    parser.add_argument("--clip-frames", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--batches", type=int, default=20_000, help="of 16 clips, for the memory")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos = make_videos(given.videos, given.video_frames)
        named = [Video(str(number), video) for number, video in enumerate(videos)]
        write_prepared(Path(folder) / "train", named, Fold())
        paths = write_png(Path(folder) / "png", videos)
        del videos, named
        compare_speed(Path(folder) / "train", paths, given)
        follow_memory(Path(folder) / "train", given)


def compare_speed(folder: Path, paths: list[list[Path]], given: argparse.Namespace) -> None:
    prepared = PreparedVideos.open(folder)
    sampler = ClipSampler(prepared, prepared.training)
    generator, random = torch.Generator().manual_seed(0), np.random.RandomState(0)
    batch, frames = given.batch_size, given.clip_frames
    videos = random.randint(len(prepared), size=batch)
    starts = random.randint(given.video_frames - frames + 1, size=batch)
    times = {
        "PNG files, uint8": seconds(lambda: draw_png(paths, batch, frames, random), 5),
        "prepared set, uint8": seconds(lambda: prepared.batch(videos, starts, frames), 100),
        "prepared set, float32": seconds(lambda: sampler.draw(batch, frames, generator), 100),
    }
    print(
        f"{len(prepared)} videos of {given.video_frames} frames; {batch} clips of {frames} frames"
    )
    print(f"{'':24} {'ms / batch':>12} {'clips / s':>12} {'speed-up':>10}")
    for name, time_taken in times.items():
        ratio = times["PNG files, uint8"] / time_taken
        print(f"{name:24} {1e3 * time_taken:12.1f} {batch / time_taken:12.0f} {ratio:10.0f}")


def follow_memory(folder: Path, given: argparse.Namespace) -> None:
    prepared = PreparedVideos.open(folder)
    sampler = ClipSampler(prepared, prepared.training)
    generator = torch.Generator().manual_seed(0)
    print(f"\nthe set: {prepared.array('frames').nbytes / 1e6:.0f} MB")
    print(f"{'batches':>8} {'own, MB':>10} {'mapped, MB':>12}")
    for batch in range(given.batches + 1):
        sampler.draw(16, given.clip_frames, generator)
        if batch in (100, 1000) or batch % max(given.batches // 4, 1) == 0:
            print(f"{batch:8} {resident('RssAnon'):10.1f} {resident('RssFile'):12.1f}", flush=True)


if __name__ == "__main__":
    main()
