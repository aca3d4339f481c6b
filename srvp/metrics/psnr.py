"""PSNR, as the SRVP paper computes it: of one channel at a time, then averaged over channels."""

import torch
from torch import Tensor

from srvp.metrics.inputs import check_frames
from srvp.metrics.table import Against

SMALLEST_MSE = 1e-10  # equal frames score 100 dB rather than infinity, which no mean survives


def load(device: torch.device) -> Against:
    """Return the metric as `srvp.metrics.table` describes it."""
    return lambda truth: lambda samples: _psnr(samples, truth[:, None])


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB `(...)` of frames `(..., C, H, W)` in [0, 1].

    Raises:
        ValueError: frames are not floating point, or differ in C, H or W.
    """
    check_frames(prediction, truth)
    return _psnr(prediction, truth)


def _psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    mse = (prediction - truth).square().mean(dim=(-2, -1)).clamp(min=SMALLEST_MSE)
    return (-10 * mse.log10()).mean(dim=-1)
