"""SSIM, as the SRVP paper computes it: of one channel at a time, then averaged over channels."""

import torch
from torch import Tensor

from srvp.metrics.inputs import check_floating, check_frames
from srvp.metrics.table import Against

WINDOW, SIGMA = 11, 1.5  # pixels, of the Gaussian window
C1, C2 = 0.01**2, 0.03**2  # the constants of SSIM for values in [0, 1]


def load(device: torch.device) -> Against:
    """Return the metric as `srvp.metrics.table` describes it."""
    return lambda truth: SSIM(truth[:, None])


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity `(...)` in [-1, 1] of frames `(..., C, H, W)` in [0, 1].

    Wang et al. (2004) with a Gaussian window of 11x11 pixels and sigma 1.5, biased variances, and
    no padding: frames of 64x64 pixels give a map of 54x54.

    Raises:
        ValueError: frames are smaller than the window, not floating point, or differ in C, H or W.
    """
    check_floating(truth, "truth")
    check_frames(prediction, truth)
    return SSIM(truth)(prediction)


class SSIM:
    """`ssim` to true frames `(..., C, H, W)` whose moments are computed once.

    The truth broadcasts over further axes of predictions, such as samples.
    """

    def __init__(self, truth: Tensor):
        self.truth = truth
        self.blur_rows, self.blur_columns = (_blur(size, truth) for size in truth.shape[-2:])
        self.mean = self._mean(truth)
        self.variance = self._mean(truth.square()) - self.mean.square()

    def _mean(self, x: Tensor) -> Tensor:
        """Return the mean of the window at every position `(..., C, H - 10, W - 10)`."""
        return self.blur_rows @ x @ self.blur_columns.T

    def __call__(self, prediction: Tensor) -> Tensor:
        mean = self._mean(prediction)
        product, squares = mean * self.mean, mean.square()
        variance = self._mean(prediction.square()) - squares
        covariance = self._mean(prediction * self.truth) - product
        luminance = (2 * product + C1) / (squares + self.mean.square() + C1)
        structure = (2 * covariance + C2) / (variance + self.variance + C2)
        return (luminance * structure).mean(dim=(-3, -2, -1))


def _blur(size: int, like: Tensor) -> Tensor:
    """Return the Gaussian window as a matrix `(size - 10, size)`: a row per valid position."""
    if size < WINDOW:
        raise ValueError(
            f"frames have {size} pixels a side, SSIM needs at least {WINDOW}, the size of its "
            "window: use larger frames, or leave SSIM out"
        )
    offset = torch.arange(WINDOW, device=like.device) - WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SIGMA**2))
    window = (window / window.sum()).to(like.dtype)
    rows = torch.arange(size - WINDOW + 1, device=like.device)[:, None]
    matrix = torch.zeros(len(rows), size, device=like.device, dtype=like.dtype)
    return matrix.scatter_(
        1, rows + torch.arange(WINDOW, device=like.device), window.expand(len(rows), -1)
    )
