"""Whether samples differ from each other as much as the truth differs from them.

The truth should look like one more sample. Two checks, of which the first has a size and the second
a shape; and what a lucky sample is worth:

    spread_skill(variance, squared_error, samples)    # 1; below 1 the forecast is overconfident
    rank_shares(values)                               # flat; U: overconfident, dome: too wide
    best_of(scores, n)                                # the expected best of n samples
"""

import math

import numpy as np
import torch
from torch import Tensor


def spread_skill(variance: np.ndarray, squared_error: np.ndarray, samples: int) -> np.ndarray:
    """Return sqrt((S + 1) / S * mean variance / mean squared error) `(F,)`, NaN for S = 1.

    It is 1 for samples of the true distribution (Fortin et al., 2014).

    Args:
        variance: of the samples, unbiased, `(N, F)`.
        squared_error: of the mean of the samples, `(N, F)`.
        samples: S, how many samples the mean is of.
    """
    if samples < 2:
        return np.full(variance.shape[1:], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = variance.mean(axis=0) / squared_error.mean(axis=0)
    return np.sqrt((samples + 1) / samples * ratio)


def rank_shares(values: Tensor) -> Tensor:
    """Return how probable each rank of the truth among S samples is, `(..., S + 1)`.

    1 for its rank. Where samples equal it, the ranks that a random order would give have equal
    shares. The mean of many is the rank histogram (Hamill, 2001).

    Args:
        values: numbers that the truth and S samples have, the truth first: `(..., 1 + S)`.
    """
    truth, samples = values[..., :1], values[..., 1:]
    below = (samples < truth).sum(dim=-1, keepdim=True)
    equal = (samples == truth).sum(dim=-1, keepdim=True)
    rank = torch.arange(values.shape[-1], device=values.device)
    possible = (rank >= below) & (rank <= below + equal)
    return possible / (equal + 1)


def best_of(scores: np.ndarray, n: int, lower: bool = False) -> np.ndarray:
    """Return the expected best score `(N,)` of n of the S samples of each clip, drawn at random.

    The k-th of the ordered scores is the best of n in C(k - 1, n - 1) of C(S, n) draws: no draw is
    made.

    Args:
        scores: of every sample, `(N, S)`.
        n: from 1 to S.
        lower: whether lower scores are better.
    """
    ordered = np.sort(-scores if lower else scores, axis=1)
    count = scores.shape[1]
    weights = [math.comb(k - 1, n - 1) / math.comb(count, n) for k in range(1, count + 1)]
    best = ordered @ np.array(weights)
    return -best if lower else best
