"""Predictors that learn nothing: what any number has to be read against.

On Stochastic Moving MNIST, where nine pixels of ten are black, a black frame scores more than a
model that places the digits wrongly.

Each takes the given frames `(B, T, C, H, W)` and a number of frames F, and returns
`(B, F, C, H, W)`.
"""

import torch
from torch import Tensor


def copy_last_frame(given: Tensor, frames: int) -> Tensor:
    """Repeat the last given frame."""
    return given[:, -1:].expand(-1, frames, -1, -1, -1)


def mean_frame(given: Tensor, frames: int) -> Tensor:
    """Repeat the mean of the given frames."""
    return given.mean(dim=1, keepdim=True).expand(-1, frames, -1, -1, -1)


def black_frame(given: Tensor, frames: int) -> Tensor:
    """Predict black."""
    return torch.zeros_like(given[:, :1]).expand(-1, frames, -1, -1, -1)


TRIVIAL = {
    "copy last frame": copy_last_frame,
    "mean frame": mean_frame,
    "black frame": black_frame,
}
