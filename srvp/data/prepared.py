"""Prepared video sets: one memory-mapped format for every data set.

A prepared set is a folder per fold:

    train/frames.npy      uint8 (F, C, H, W): the frames of all videos, one after the other
    train/NAME.npy        other arrays with a row per frame, such as a robot's actions (F, 4)
    train/manifest.json   without which a folder is not a set

The manifest lists the videos (name, frames, raw file and its SHA-256), a digest of all raw files,
the settings and versions they were prepared with, and notes on what is odd in the raw data. In a
training fold it gives the videos set aside for `validation`. In a test fold it gives the test
`clips` as (video, first frame), each of `clip_frames` frames every `frame_step`.

`srvp.data.staging` writes such folders. Any clip is read at random access, without decoding.
B: clips; T: frames of a clip; A: values of an action.
"""

import json
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import count as count_from
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from srvp.data.config import DataConfig
from srvp.models import interface
from srvp.models.interface import Clips


class PreparedVideos:
    """A fold of a prepared set, memory-mapped.

    Attributes:
        names: of the videos, in the order in which they are numbered.
        lengths: int64 (videos,), frames of each.
        channels: 1 (grey) or 3 (RGB).
        size: height and width of a frame, in pixels.
        actions: float32 (F, A), one per stored frame; None if they were not asked for.
        training, validation: int64, the numbers of the videos for either; `validation` is empty in
            a test fold.
        clips: int64 (N, 2), video and first frame of each test clip; no rows in a training fold.
        clip_frames: frames of a test clip; 0 in a training fold.
        frame_step: distance of a test clip's frames in the video, in stored frames.
        notes: sentences on what is odd in the raw data.
        manifest: the whole content of `manifest.json`.
    """

    def __init__(self, folder: Path, manifest: dict, *, with_actions: bool = False):
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
        self.actions = self.array("actions") if with_actions else None
        self._frames = self.array("frames")
        self.channels, *size = self._frames.shape[1:]
        self.size: tuple[int, int] = tuple(size)
        self._offsets = np.cumsum(self.lengths) - self.lengths

    @classmethod
    def open(cls, folder: Path, config: DataConfig | None = None) -> "PreparedVideos":
        """Open a fold, such as `prepared/kth/train`.

        Args:
            folder: of the fold.
            config: that it must have been prepared with, if given. With `config.actions`, the
                actions are opened, too.

        Raises:
            FileNotFoundError: the folder holds no whole set, or no actions though they are wanted.
            ValueError: a file is damaged, or the set was prepared with other settings.
        """
        path = Path(folder) / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
            videos = cls(path.parent, manifest, with_actions=bool(config and config.actions))
        except FileNotFoundError:
            if path.exists():
                raise
            raise FileNotFoundError(
                f"{folder} holds no prepared videos (no manifest.json): run the prepare stage"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        if config:
            videos._check_settings(config)
        return videos

    def _check_settings(self, config: DataConfig) -> None:
        found = {"channels": self.channels, "size": self.size[0]}
        found |= self.manifest.get("settings", {})
        if self.actions is not None:
            found["actions"] = self.actions.shape[1] * config.frame_step
        asked = json.loads(json.dumps(asdict(config)))  # tuples become lists, as in the manifest
        for key, value in found.items():
            self.check_setting(key, value, asked.get(key))

    def check_setting(self, key: str, found: object, asked: object) -> None:
        """Raise a `ValueError` if the set has another setting than `data.KEY` asks for."""
        if found != asked:
            raise ValueError(
                f"{self.folder} was prepared with {key} {found}, but data.{key} is {asked}: change "
                "it, or run the prepare stage again"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple:
        """Let another process open the files itself: memory maps cannot be handed over."""
        reopen = partial(PreparedVideos, with_actions=self.actions is not None)
        return reopen, (self.folder, self.manifest), {"clips": self.clips}

    def array(self, name: str) -> np.ndarray:
        """Return an array with a row per frame of all videos, memory-mapped, such as `actions`."""
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: this set has no {name!r}")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise _damaged(path, str(error)) from None
        if len(array) != self.lengths.sum():
            raise _damaged(path, f"{len(array)} rows for {self.lengths.sum()} frames")
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

    def batch_actions(
        self, videos: np.ndarray, starts: np.ndarray, frames: int, step: int = 1
    ) -> np.ndarray | None:
        """Return the actions in such clips, float32 (B, T, A * step), or None without actions.

        The action at t leads from frame t of the clip to frame t + 1. If these are `step` stored
        frames apart, it is their `step` actions, one after the other (as in DINO-WM, Zhou et al.
        2025). The last action of a clip leads out of it; past the end of the video, the last stored
        action is repeated.
        """
        if self.actions is None:
            return None
        videos, starts = np.asarray(videos), np.asarray(starts)
        row = starts[:, None] + np.arange(frames * step)
        row = np.minimum(row, self.lengths[videos, None] - 1) + self._offsets[videos, None]
        return np.asarray(self.actions)[row].reshape(len(videos), frames, -1)

    def test_clips(self, indices: np.ndarray) -> np.ndarray:
        """Return entries of `clips`, of `clip_frames` frames each: uint8 (B, T, C, H, W)."""
        videos, starts = self.clips[np.asarray(indices)].T
        return self.batch(videos, starts, self.clip_frames, self.frame_step)

    def test_actions(self, indices: np.ndarray) -> np.ndarray | None:
        """Return the actions in such entries, float32 (B, T, A), or None without actions."""
        videos, starts = self.clips[np.asarray(indices)].T
        return self.batch_actions(videos, starts, self.clip_frames, self.frame_step)


def _damaged(path: Path, problem: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({problem}): remove {path.parent} and run the prepare stage again"
    )


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

    def draw(self, count: int, frames: int, generator: torch.Generator) -> Clips:
        """Return `count` clips of `frames` frames, with actions if the set was opened with them.

        Args:
            count: batch size B.
            frames: length T.
            generator: of random numbers, on any device.

        Raises:
            ValueError: no video is long enough.
        """
        return self._to_device(self._read(count, frames, generator))

    def batches(self, count: int, frames: int, seed: int, first: int = 0) -> Iterator[Clips]:
        """Yield training batches from step `first` on, as `srvp.data.VideoSource` says.

        While a batch is used the next is read.
        """

        def read(step: int) -> Clips:
            # On the CPU: to ask a GPU for random numbers would wait for the step before.
            return self._read(count, frames, interface.generator(seed, step))

        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(read, first)
            for step in count_from(first + 1):
                clips, ahead = ahead.result(), reader.submit(read, step)
                yield self._to_device(clips)

    def _to_device(self, clips: Clips) -> Clips:
        """Move uint8 clips to the device, from pinned memory without waiting, as floats."""
        frames, actions = (
            part if part is None else part.to(self.device, non_blocking=True) for part in clips
        )
        return Clips(frames.float().div_(255), actions)

    def _read(self, count: int, frames: int, generator: torch.Generator) -> Clips:
        """Return clips of uint8, in pinned memory if they are for a GPU."""
        starts = self.videos.lengths[self.subset] - (frames - 1) * self.step  # how many there are
        chosen, starts = self.subset[starts > 0], starts[starts > 0]
        if len(chosen) == 0:
            raise ValueError(
                f"none of the {len(self.subset)} videos of {self.videos.folder} has "
                f"{(frames - 1) * self.step + 1} frames: ask for shorter clips"
            )
        # Of so large a range that the remainders below are uniform to within 1e-12.
        random = torch.randint(2**62, (2, count), generator=generator, device=generator.device)
        random = random.cpu().numpy()
        video = random[0] % len(chosen)
        where = (chosen[video], random[1] % starts[video], frames, self.step)
        parts = (self.videos.batch(*where), self.videos.batch_actions(*where))
        return Clips(*(part if part is None else self._pinned(part) for part in parts))

    def _pinned(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


def train_validation_split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the training and of the validation videos, as in the official code.

    The first int(0.95 n) of a random order of 0..n-1 train, the others validate. Both keep their
    original order.
    """
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[: int(0.95 * n)]), np.sort(order[int(0.95 * n) :])
