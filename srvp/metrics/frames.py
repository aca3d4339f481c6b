"""PSNR and SSIM of frames, as the SRVP paper computes them.

Both compare one channel of one frame at a time and average over channels afterwards, on floats.
"""

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels: the Gaussian window of SSIM
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for values in [0, 1]
SMALLEST_MSE = 1e-10  # equal frames score 100 dB rather than infinity, which no mean survives


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, of frames `(..., C, H, W)` in [0, 1]: `(...)`."""
    mse = (prediction - truth).square().mean(dim=(-2, -1)).clamp(min=SMALLEST_MSE)
    return (-10 * mse.log10()).mean(dim=-1)


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, of frames `(..., C, H, W)` in [0, 1]: `(...)` in [-1, 1].

    Wang et al. (2004) with a Gaussian window of 11x11 pixels and sigma 1.5, without padding (64x64
    frames give a 54x54 map), biased variances.
    """
    return SSIM(truth)(prediction)


class SSIM:
    """`ssim` to true frames `(..., C, H, W)` whose moments are computed once.

    Predictions may have axes, such as samples, over which the truth broadcasts.
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
    """The Gaussian window as a matrix `(size - 10, size)`: one row per valid position."""
    if size < WINDOW:
        raise ValueError(f"frames of {size} pixels are too small for SSIM's {WINDOW}-pixel window")
    offset = torch.arange(WINDOW, device=like.device) - WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SIGMA**2))
    window = (window / window.sum()).to(like.dtype)
    rows = torch.arange(size - WINDOW + 1, device=like.device)[:, None]
    matrix = torch.zeros(len(rows), size, device=like.device, dtype=like.dtype)
    return matrix.scatter_(
        1, rows + torch.arange(WINDOW, device=like.device), window.expand(len(rows), -1)
    )
