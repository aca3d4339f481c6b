"""Where the digits of Moving MNIST are in predicted frames, and whether they are still themselves.

    tracker = DigitTracker(raw, config)         # knows the true digits and their paths
    tracker.track(3, futures, given=5)          # of test video 3: futures (S, F, 1, H, W)

Each true digit is looked for where it explains most of a frame: the place at which subtracting it
lowers the squared error most. One digit is found first, then the other in what is left; of the two
orders the better counts. A digit is kept if the frame, without the other digit, correlates more
with it than with any of nine digits of the other classes.

Shapes: S samples, F predicted frames, H = W pixels, digits n x n.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from srvp.data.config import DataConfig
from srvp.data.sets.moving_mnist import BOX, DIGITS, test_scenes

MANY = 64  # videos whose digits are of all classes


class Tracks(NamedTuple):
    """Means over the two digits of a video."""

    error: Tensor  # (S, F) distance from the true place, in pixels of the frame
    kept: Tensor  # (S, F) share of the digits that keep their shape: 0, 0.5 or 1


class DigitTracker:
    """Finds the digits of the test videos.

    Args:
        raw: where the MNIST files lie.
        config: of the test videos.
    """

    def __init__(self, raw: Path, config: DataConfig):
        # The first videos are the same in a larger set, which has digits of all classes.
        scenes = test_scenes(raw, replace(config, test_videos=max(config.test_videos, MANY)))
        self.digits = torch.from_numpy(scenes.digits).float() / 255  # (N, 2, n, n)
        self.labels = scenes.labels
        places = np.rint(scenes.states[..., :2] * (config.size / BOX))
        self.places = torch.from_numpy(places).float()  # (N, T, 2, 2)

    def track(self, number: int, futures: Tensor, given: int) -> Tracks:
        """Find both digits of a video in its futures `(S, F, 1, H, W)` in [0, 1].

        Args:
            number: of the test video.
            futures: its predicted frames, those after the given ones.
            given: number of given frames.
        """
        x = futures.flatten(0, 1)  # (S * F, 1, H, W)
        orders = [self._find(number, x, order) for order in ((0, 1), (1, 0))]
        better = orders[1][0] < orders[0][0]  # by the error that is left
        places = torch.where(better[:, None, None], orders[1][1], orders[0][1])
        kept = torch.stack([self._kept(number, x, places, i) for i in range(DIGITS)], dim=-1)
        true = self.places[number, given : given + futures.shape[1]].repeat(len(futures), 1, 1)
        error = (places - true).norm(dim=-1)
        return Tracks(*(v.float().mean(-1).unflatten(0, futures.shape[:2]) for v in (error, kept)))

    def _find(self, number: int, x: Tensor, order: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the squared error that is left `(M,)`, and the places `(M, 2, 2)`, of M frames."""
        places = torch.zeros(len(x), DIGITS, 2)
        for i in order:
            digit = self.digits[number, i]
            fits = F.conv2d(x, digit[None, None])[:, 0]
            best = fits.flatten(1).argmax(dim=1)
            places[:, i] = torch.stack([best // fits.shape[-1], best % fits.shape[-1]], dim=-1)
            x = (x - _placed(digit, places[:, i], x.shape[-1])).clamp(min=0)
        return x.square().sum(dim=(1, 2, 3)), places

    def _kept(self, number: int, x: Tensor, places: Tensor, i: int) -> Tensor:
        """Tell of M frames whether the i-th digit is the most similar of ten `(M,)`."""
        digit, other = self.digits[number, i], self.digits[number, 1 - i]
        alone = (x - _placed(other, places[:, 1 - i], x.shape[-1])).clamp(min=0)
        rivals = torch.stack([digit, *self._of_other_classes(number, i)])
        rivals = rivals / rivals.flatten(1).norm(dim=1)[:, None, None]
        # Each at its own best place: the true digit chose first.
        similar = F.conv2d(alone, rivals[:, None]).flatten(2).amax(dim=2)
        # An empty frame is like all of them, and like none.
        return (similar.argmax(dim=1) == 0) & (similar[:, 0] > 0)

    def _of_other_classes(self, number: int, i: int) -> list[Tensor]:
        """Return the first digit of every other class among the other videos."""
        labels, own = self.labels.flatten(), self.labels[number, i]
        labels = np.where(np.arange(len(labels)) // DIGITS == number, own, labels)
        firsts = [np.flatnonzero(labels == c) for c in np.unique(labels) if c != own]
        return [self.digits.flatten(0, 1)[first[0]] for first in firsts]


def _placed(digit: Tensor, places: Tensor, size: int) -> Tensor:
    """Return frames `(M, 1, size, size)` with a digit at each of the places `(M, 2)`."""
    frames = torch.zeros(len(places), 1, size, size)
    side = digit.shape[-1]
    for frame, (row, column) in zip(frames, places.long().tolist(), strict=True):
        frame[0, row : row + side, column : column + side] = digit
    return frames


def tracks_table(tracker: DigitTracker, futures: Mapping[str, Tensor], given: int) -> pd.DataFrame:
    """Return predictor, frame, error and kept: means over the first test videos.

    Args:
        tracker: of the test set.
        futures: of the first N videos by predictor, `(N, F, 1, H, W)` in [0, 1].
        given: number of given frames.
    """
    rows = []
    for name, videos in futures.items():
        found = [tracker.track(i, video[None], given) for i, video in enumerate(videos)]
        means = (torch.cat(parts).mean(dim=0).tolist() for parts in zip(*found, strict=True))
        for frame, numbers in enumerate(zip(*means, strict=True), start=given + 1):
            rows.append((name, frame, *numbers))
    return pd.DataFrame(rows, columns=["predictor", "frame", "error", "kept"])
