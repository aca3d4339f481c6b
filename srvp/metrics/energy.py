"""The energy score and the CRPS: proper scores of a distribution, of which samples are given.

    energy_score(samples, truth)    # (...) of samples (..., S, D) and truth (..., D): one number
    crps(samples, truth)            # (...) of samples (..., S) and truth (...)

Both are the mean distance of the samples to the truth, less half the mean distance between two
samples: the CRPS of numbers, the energy score of vectors (Gneiting and Raftery, 2007). No forecast
has a lower expected score than the true distribution: samples that hedge, towards their mean for
example, lose. The fair form takes the second mean over pairs of different samples (Ferro, 2013), so
that the expected score does not depend on S. A single sample counts as a forecast that is certain:
its score is its distance.
"""

import torch
from torch import Tensor


def energy_score(samples: Tensor, truth: Tensor) -> Tensor:
    """Return the fair energy score `(...)` of samples `(..., S, D)`, in the unit of values."""
    together = torch.cat([truth[..., None, :], samples], dim=-2)
    return fair_score(distances(together, 2))


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Return the fair continuous ranked probability score `(...)` of samples `(..., S)`."""
    return energy_score(samples[..., None], truth[..., None])


def distances(vectors: Tensor, p: int) -> Tensor:
    """Return the distances `(..., N, N)` in the p-norm between vectors `(..., N, D)`.

    Differences are taken first: squares that are subtracted would lose small distances.
    """
    return torch.cdist(vectors, vectors, p, "donot_use_mm_for_euclid_dist")


def fair_score(between: Tensor) -> Tensor:
    """Return the score `(...)` from the distances `(..., 1 + S, 1 + S)` of the truth and S samples.

    The truth is the first of them.
    """
    count = between.shape[-1] - 1
    to_truth, pairs = split_sums(between)
    return to_truth / count - pairs / max(count * (count - 1) / 2, 1) / 2


def split_sums(between: Tensor) -> tuple[Tensor, Tensor]:
    """Return two sums `(...)` of such distances: to the truth, and over pairs of samples."""
    return between[..., 0, 1:].sum(dim=-1), between[..., 1:, 1:].sum(dim=(-2, -1)) / 2
