"""KVD (Bińkowski et al., 2018; Unterthiner et al., 2018): a kernel distance between embeddings.

The squared maximum mean discrepancy between two sets of logits of I3D, with the polynomial kernel
(x . y / 400 + 1)^3. Unlike FVD it is unbiased for any number of videos, and takes no distribution
to be Gaussian. Equal distributions have the expected value 0: single values may be negative.

    kvd(generated, real, frames=25)      # embeddings (N, 400), of `srvp.metrics.fvd`
"""

import numpy as np
import torch
from torch import Tensor

from srvp.metrics.fvd import FVD, check_pairs, jackknife_groups, jackknife_interval


def of_samples(generated: np.ndarray, real: np.ndarray, frames: int) -> tuple[FVD, ...]:
    """Return the KVD of the first future of all clips, of the second, ... as FVD's `of_samples`."""
    return tuple(kvd(sample, real, frames) for sample in generated.swapaxes(0, 1))


def kvd(generated: Tensor, real: Tensor, frames: int) -> FVD:
    """Return the KVD between embeddings `(N, D)`, with its 95 % interval over videos (jackknife).

    Args:
        generated: a row per video.
        real: likewise; row i is of the video whose future row i of the other is.
        frames: length of the videos, which the result states.

    Raises:
        ValueError: they cannot be compared.
    """
    check_pairs(generated, real)
    first, second = (torch.as_tensor(x, dtype=torch.float64) for x in (generated, real))
    kernels = [_kernel(a, b) for a, b in ((first, first), (second, second), (first, second))]
    left_out = [_mmd(kernels, keep) for keep in jackknife_groups(len(first))]
    everything = torch.ones(len(first), dtype=torch.bool)
    return FVD(_mmd(kernels, everything), len(first), frames, jackknife_interval(left_out))


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _mmd(kernels: list[Tensor], keep: Tensor) -> float:
    """Return the discrepancy between the kept rows, from the kernels within and between."""
    *within, between = (kernel[keep][:, keep] for kernel in kernels)
    return float(sum(map(_mean_of_pairs, within)) - 2 * between.mean())


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """Return the mean over pairs of two different vectors."""
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))
