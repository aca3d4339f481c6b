"""Scores of all samples of a clip together, as the forecast that they are.

    ensemble = Ensemble(truth)              # (B, F, C, H, W)
    ensemble.add(samples)                   # (B, s, F, C, H, W), any number of times
    ensemble.scores()                       # see there

Samples are taken in as they come and not kept. Every pair of samples is a distance, and all pairs
would need all samples in memory. Groups of ten are compared instead: the expected scores are the
same, and they vary hardly more, since the distances to the truth are those of all samples. Frames
are rounded to 8 bits, as those of the truth are.

Shapes: B clips, S samples, F frames, P = C * H * W values of a frame.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from srvp.metrics.calibration import rank_shares
from srvp.metrics.energy import split_sums
from srvp.metrics.psnr import psnr

GROUP = 10
# What the rank histograms are of: numbers of a frame, and how far it is from the mean of its group.
RANKED = ("brightness", "row", "column", "distance")


class Ensemble:
    """The samples of some clips.

    Args:
        truth: frames in [0, 1] `(B, F, C, H, W)`.
    """

    def __init__(self, truth: Tensor):
        self.truth = truth
        shape = (len(truth), 1 + GROUP, *truth.shape[1:])
        # The truth, then a group of samples. All memory is taken now: see `Batch`.
        self.group = torch.empty(shape, dtype=torch.uint8, device=truth.device)
        self.group[:, 0] = _to_8bit(truth)
        self.sum = torch.empty_like(truth)
        self.positions = _positions(truth)
        self.restart()

    def restart(self) -> None:
        """Forget all samples, before those of another predictor."""
        count, frames = self.truth.shape[:2]
        self.count = self.filled = self.ranked = self.pairs = self.neighbours = 0
        self.sum.zero_()
        # Sums over samples, or pairs: Euclidean distances of whole futures; of frames the
        # distances in the 1-norm, the squared Euclidean ones, and the shares of the ranks.
        self.energy = self.truth.new_zeros(2, count)
        self.absolute = self.truth.new_zeros(2, count, frames)
        self.squared = self.truth.new_zeros(2, count, frames)
        self.ranks = self.truth.new_zeros(count, len(RANKED), 1 + GROUP)

    def add(self, samples: Tensor) -> None:
        """Take in samples `(B, s, F, C, H, W)` in [0, 1]."""
        self.sum += samples.sum(dim=1)
        for sample in samples.unbind(1):
            self.filled += 1
            self.group[:, self.filled] = _to_8bit(sample)
            if self.filled == GROUP:
                self._close_group()

    def _close_group(self) -> None:
        """Compare the samples of a group with each other and with the truth."""
        n, self.filled = self.filled, 0
        whole = n == GROUP or not self.count  # histograms need groups of one size
        for clip, members in enumerate(self.group[:, : n + 1]):
            x = members.flatten(2).transpose(0, 1).float()  # (F, 1 + n, P), up to 255
            error = x[:, 1:] - x[:, :1]
            squared = _squared_distances(error)
            self._add(self.energy, clip, *split_sums(squared.sum(dim=0).sqrt()))
            self._add(self.squared, clip, *split_sums(squared))
            # Pairs of neighbours are enough for a mean over thousands of pixels.
            neighbours = (error[:, 1:] - error[:, :-1]).abs_().sum(dim=(1, 2))
            self._add(self.absolute, clip, error.abs_().sum(dim=(1, 2)), neighbours)
            if whole:
                numbers = torch.stack([*self._numbers(x), squared.sum(dim=-1)])
                self.ranks[clip, :, : n + 1] += rank_shares(numbers).mean(dim=1)
        self.count += n
        self.pairs += n * (n - 1) // 2
        self.neighbours += n - 1
        self.ranked += whole

    @staticmethod
    def _add(sums: Tensor, clip: int, to_truth: Tensor, pairs: Tensor) -> None:
        sums[0, clip] += to_truth
        sums[1, clip] += pairs

    def _numbers(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return brightness, and row and column of the centre of mass, of frames `(F, n, P)`."""
        mass, row, column = (x @ self.positions).unbind(-1)
        # An empty frame has its centre in the middle.
        return mass, *(torch.where(mass > 0, at / mass.clamp(min=1), 0) for at in (row, column))

    def scores(self, psnr_cap: float = math.inf) -> dict[str, np.ndarray]:
        """Return the scores of the samples so far. `psnr_cap` limits the PSNR of a frame, in dB.

        Returns:
            `count` `(B,)`, the number of samples, S;
            `energy` `(B,)`, the fair energy score of the future, all its frames one vector;
            `crps` `(B, F)`, the fair CRPS of a pixel, a mean over pixels;
            `variance` `(B, F)` of a pixel over the samples, unbiased, 0 for one sample;
            `squared_error` `(B, F)` and `psnr` `(B, F)` of the mean of the samples;
            `ranks` `(B, 4, min(S, 10) + 1)`, the shares of the truth's rank in a group, for
            `RANKED`, a mean over frames.
        """
        if self.filled:
            self._close_group()
        pixels, count, pairs = self.truth[0, 0].numel(), self.count, max(self.pairs, 1)
        mean = self.sum / count
        arrays = {
            "count": torch.full_like(self.energy[0], count, dtype=torch.int64),
            "energy": (self.energy[0] / count - self.energy[1] / pairs / 2) / 255,
            "crps": self._crps() / pixels / 255,
            "variance": self.squared[1] / pairs / 2 / pixels / 255**2,
            "squared_error": (mean - self.truth).square().mean(dim=(-3, -2, -1)),
            "psnr": psnr(mean, self.truth).clamp(max=psnr_cap),
            "ranks": self.ranks[..., : min(self.count, GROUP) + 1] / self.ranked,
        }
        return {name: array.cpu().numpy() for name, array in arrays.items()}

    def _crps(self) -> Tensor:
        """Return the sum over the values of a frame `(B, F)`, up to 255."""
        return self.absolute[0] / self.count - self.absolute[1] / max(self.neighbours, 1) / 2


def _squared_distances(error: Tensor) -> Tensor:
    """Return squared distances `(F, 1 + n, 1 + n)` of the truth and n samples.

    Args:
        error: of the samples, `(F, n, P)`. Products of errors, unlike those of frames, keep small
            distances.
    """
    products = F.pad(error @ error.mT, (1, 0, 1, 0))  # the error of the truth is 0
    squares = products.diagonal(dim1=-2, dim2=-1)
    return (squares[..., None] + squares[..., None, :] - 2 * products).clamp_(min=0)


def _to_8bit(x: Tensor) -> Tensor:
    return (255 * x).round().to(torch.uint8)


def _positions(like: Tensor) -> Tensor:
    """Return 1, row and column of every value of a frame, from the middle: `(P, 3)`."""
    _, _, channels, height, width = like.shape
    row, column = (torch.arange(n, device=like.device) - (n - 1) / 2 for n in (height, width))
    grid = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1)
    grid = torch.cat([torch.ones_like(grid[..., :1]), grid], dim=-1).to(like.dtype)
    return grid.expand(channels, -1, -1, -1).reshape(-1, 3)
