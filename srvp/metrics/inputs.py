"""Checks of what metrics are given, and the context that networks compute in."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def exact_inference() -> Iterator[None]:
    """Run without gradients, autocast or TF32. TF32 would move FVD by 0.1 %."""
    convolutions = torch.backends.cudnn.conv
    precision, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        convolutions.fp32_precision = precision


def check_frames(prediction: Tensor, truth: Tensor) -> None:
    """Make sure that frames `(..., C, H, W)` are floating point and equal in C, H and W.

    Their values, which may be on a GPU, are not looked at.

    Raises:
        ValueError: they are not.
    """
    check_floating(prediction, "prediction")
    check_floating(truth, "truth")
    if prediction.shape[-3:] != truth.shape[-3:]:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, truth {tuple(truth.shape)}: expected "
            "equal channels, height and width"
        )


def check_shape(videos: Tensor, name: str) -> None:
    """Make sure that videos are `(B, T, C, H, W)` with 1 or 3 channels, and not empty.

    Raises:
        ValueError: they are not. The message calls them `name`.
    """
    if videos.dim() != 5 or videos.shape[2] not in (1, 3) or 0 in videos.shape:
        raise ValueError(
            f"{name} has shape {tuple(videos.shape)}, expected (batch, time, channel, height, "
            "width) with 1 or 3 channels and at least one of the others"
        )


def check_floating(videos: Tensor, name: str) -> None:
    """Make sure that videos, or frames, are floating point.

    Raises:
        ValueError: they are not. The message calls them `name`.
    """
    if not videos.is_floating_point():
        raise ValueError(
            f"{name} has type {videos.dtype}, expected floating point in [0, 1]: divide 8-bit "
            "frames by 255"
        )


def check_unit_range(videos: Tensor, name: str) -> None:
    """Make sure that videos are floating point in [0, 1].

    Raises:
        ValueError: they are not. The message calls them `name`.
    """
    check_floating(videos, name)
    low, high = (bound.item() for bound in videos.aminmax())
    if math.isnan(low):
        raise ValueError(f"{name} has NaN in it: the model diverged or the file is damaged")
    if low < 0 or high > 1:
        raise ValueError(f"{name} ranges from {low:g} to {high:g}, expected [0, 1]: clamp or scale")
