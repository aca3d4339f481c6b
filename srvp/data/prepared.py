"""Prepared video sets: one memory-mapped format for every data set.

A prepared set is a folder per fold:

    train/frames.npy      uint8 (F, C, H, W): the frames of all videos, one after the other
    train/NAME.npy        other arrays with a row per frame, such as a robot's actions (F, 4)
    train/manifest.json   without which a folder is not a set

The manifest lists the videos (name, frames, source file and its SHA-256), the raw files they came
from, the settings and versions they were prepared with, and notes on what is odd in the raw data.
In a training fold it gives the videos set aside for `validation`; in a test fold the `clips` that
are the published test set, as (video, first frame), each of `clip_frames` frames every
`frame_step`.

`srvp.data.staging` writes such folders. Any clip is read at random access, without decoding.
N, B: clips; T: frames of a clip.
"""

import json
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class PreparedVideos:
    """A fold of a prepared set, memory-mapped.

    Attributes:
        names: of the videos, in the order in which they are numbered.
        lengths: int64 (videos,), frames of each.
        channels: 1 (grey) or 3 (RGB).
        size: height and width of a frame, in pixels.
        training, validation: int64, the numbers of the videos for either; `validation` is empty in
            a test fold.
        clips: int64 (N, 2), video and first frame of each test clip; no rows in a training fold.
        clip_frames: frames of a test clip; 0 in a training fold.
        frame_step: distance of a test clip's frames in the video, in stored frames.
        notes: sentences on what is odd in the raw data.
        manifest: the whole content of `manifest.json`.
    """

    def __init__(self, folder: Path, manifest: dict):
        self.folder = folder
        self.manifest = manifest
        self.names: list[str] = [video["name"] for video in manifest["videos"]]
        self.lengths = np.array([video["frames"] for video in manifest["videos"]], dtype=np.int64)
        self.validation = np.array(manifest["validation"], dtype=np.int64)
        self.training = np.setdiff1d(np.arange(len(self.names)), self.validation)
        self.clips = np.array(manifest["clips"], dtype=np.int64).reshape(-1, 2)
        self.clip_frames: int = manifest["clip_frames"]
        self.frame_step: int = manifest["frame_step"]
        self.notes: list[str] = manifest["notes"]
        self._frames = self.array("frames")
        self.channels, *size = self._frames.shape[1:]
        self.size: tuple[int, int] = tuple(size)
        self._offsets = np.cumsum(self.lengths) - self.lengths

    @classmethod
    def open(cls, folder: Path) -> "PreparedVideos":
        """Open a fold, such as `data/kth/train`.

        Raises:
            FileNotFoundError: the folder holds no whole set.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} holds no prepared videos (no manifest.json): run the prepare stage"
            ) from None
        return cls(folder, manifest)

    def __len__(self) -> int:
        return len(self.names)

    def array(self, name: str) -> np.ndarray:
        """Return an array with a row per frame of all videos, memory-mapped, such as `actions`."""
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: this set has no {name!r}")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(array) != self.lengths.sum():
            raise ValueError(
                f"{path} has {len(array)} rows, its manifest {self.lengths.sum()} frames: "
                f"remove {self.folder} and run the prepare stage again"
            )
        return array

    def clip(self, video: int, start: int, frames: int, step: int = 1) -> np.ndarray:
        """Return `frames` frames of a video from `start` on, every `step`: uint8 (T, C, H, W)."""
        return self.batch([video], [start], frames, step)[0]

    def batch(
        self, videos: np.ndarray, starts: np.ndarray, frames: int, step: int = 1
    ) -> np.ndarray:
        """Return a clip per entry of `videos` and `starts`: uint8 (B, T, C, H, W).

        The clips are gathered from the memory map at once, with no Python per clip or frame. The
        pages read are then given back: they stay in the system's cache of files, but the process'
        resident memory does not grow towards the size of the set.

        Raises:
            ValueError: a clip would begin before its video or run past its end.
        """
        videos, starts = np.asarray(videos), np.asarray(starts)
        outside = (starts < 0) | (starts + (frames - 1) * step >= self.lengths[videos])
        if outside.any():
            video, start = videos[outside][0], starts[outside][0]
            raise ValueError(
                f"{self.names[video]} has {self.lengths[video]} frames: no clip of {frames} "
                f"frames every {step} starts at {start}"
            )
        first = self._offsets[videos] + starts
        clips = np.asarray(self._frames)[first[:, None] + step * np.arange(frames)]
        _release_pages(self._frames)
        return clips

    def test_clips(self, indices: np.ndarray) -> np.ndarray:
        """Return entries of `clips`, of `clip_frames` frames each: uint8 (B, T, C, H, W)."""
        videos, starts = self.clips[np.asarray(indices)].T
        return self.batch(videos, starts, self.clip_frames, self.frame_step)


def _release_pages(array: np.memmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        array.base.madvise(mmap.MADV_DONTNEED)


class ClipSampler:
    """Endless random training clips of a prepared set.

    As in the official training sets of KTH and Human3.6M: a video uniformly among those that are
    long enough, then its first frame uniformly. (The official BAIR set goes through its videos in
    a random order instead; there, all videos have one length.)

    Args:
        videos: the set.
        subset: numbers of the videos to draw from, such as `videos.training`.
        step: distance of a clip's frames in the video, in stored frames.
        device: that the clips are for.
    """

    def __init__(
        self,
        videos: PreparedVideos,
        subset: np.ndarray,
        step: int = 1,
        device: torch.device | str = "cpu",
    ):
        self.videos = videos
        self.subset = np.asarray(subset)
        self.step = step
        self.device = torch.device(device)

    def draw(self, videos: int, frames: int, generator: torch.Generator) -> Tensor:
        """Return clips, float32 `(videos, frames, C, H, W)` in [0, 1].

        Args:
            videos: batch size B.
            frames: length T.
            generator: of random numbers, on any device.

        Raises:
            ValueError: no video is long enough.
        """
        return self._to_device(self._read(videos, frames, generator))

    def batches(self, videos: int, frames: int, seed: int, first: int = 0) -> Iterator[Tensor]:
        """Yield training batches from step `first` on, as `srvp.data.VideoSource` says.

        While a batch is used the next is read.
        """

        def read(step: int) -> Tensor:
            # On the CPU: to ask a GPU for random numbers would wait for the step before.
            return self._read(
                videos, frames, torch.Generator().manual_seed(seed * 1_000_003 + step)
            )

        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(read, first)
            for step in count(first + 1):
                clips, ahead = ahead.result(), reader.submit(read, step)
                yield self._to_device(clips)

    def _to_device(self, clips: Tensor) -> Tensor:
        """Move uint8 clips to the device, from pinned memory without waiting, as floats."""
        return clips.to(self.device, non_blocking=True).float().div_(255)

    def _read(self, videos: int, frames: int, generator: torch.Generator) -> Tensor:
        """Return uint8 clips, in pinned memory if they are for a GPU."""
        starts = self.videos.lengths[self.subset] - (frames - 1) * self.step  # how many there are
        chosen, starts = self.subset[starts > 0], starts[starts > 0]
        if len(chosen) == 0:
            raise ValueError(
                f"none of the {len(self.subset)} videos of {self.videos.folder} has "
                f"{(frames - 1) * self.step + 1} frames: ask for shorter clips"
            )
        # Of so large a range that the remainders below are uniform to within 1e-12.
        random = torch.randint(2**62, (2, videos), generator=generator, device=generator.device)
        random = random.cpu().numpy()
        video = random[0] % len(chosen)
        start = random[1] % starts[video]
        clips = torch.from_numpy(self.videos.batch(chosen[video], start, frames, self.step))
        return clips.pin_memory() if self.device.type == "cuda" else clips


def train_validation_split(n: int, seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the training and of the validation videos of the published protocol.

    Of a random order of 0..n-1, the first int(0.95 n) train and the rest validate; both keep their
    original order.
    """
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[: int(0.95 * n)]), np.sort(order[int(0.95 * n) :])
