"""What SV2P and SAVP share: frames made of moved pixels of earlier ones, and scheduled sampling.

CDNA (Finn, Goodfellow & Levine, NIPS 2016) moves the pixels of the frame before with a few kernels
of 5x5 taps, each for the whole frame; DNA has kernels of its own for each pixel. Masks, which sum
to 1 at each pixel, choose between the moved images and others.

Shapes: B clips, K kernels, C channels; frames (B, C, H, W) in [0, 1]; taps in the order of rows.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from srvp.models.interface import Clips
from srvp.models.parts.tf_layers import full_precision

SIZE = 5  # rows and columns of a kernel
TAPS = SIZE * SIZE
LEAST = 1e-12  # of a tap, before kernels are normalised


class Drawn(NamedTuple):
    """A frame, and what it was made of."""

    x: Tensor  # (B, C, H, W)
    masks: Tensor  # (B, images, H, W), which sum to 1
    images: Tensor  # (B, images, C, H, W), in the order of the masks
    kernels: Tensor  # (B, K, 25), or per pixel (B, K, 25, H, W); flows are (B, K, 2, H, W)


def normalise(taps: Tensor) -> Tensor:
    """Make kernels `(B, K, 25, ...)` of raw taps: positive, with a sum of 1."""
    taps = F.relu(full_precision(taps) - LEAST) + LEAST
    return taps / taps.sum(dim=2, keepdim=True)


def identity(taps: Tensor) -> Tensor:
    """Return the kernel that moves nothing, to be added to taps `(B, K, 25, ...)`."""
    centre = torch.arange(TAPS, device=taps.device) == TAPS // 2
    return centre.to(taps.dtype).view(TAPS, *[1] * (taps.dim() - 3))


def pad_zeros(x: Tensor) -> Tensor:
    """Surround frames by two rows and columns of zeros."""
    return F.pad(x, 4 * (SIZE // 2,))


def pad_symmetric(x: Tensor) -> Tensor:
    """Surround frames by two rows and columns of their mirror image: `b a | a b c ...`."""
    n = SIZE // 2
    x = torch.cat([x[..., :n].flip(-1), x, x[..., -n:].flip(-1)], dim=-1)
    return torch.cat([x[..., :n, :].flip(-2), x, x[..., -n:, :].flip(-2)], dim=-2)


def move(padded: Tensor, kernels: Tensor) -> Tensor:
    """Correlate padded frames `(B, C, H + 4, W + 4)` with kernels: `(B, K, C, H, W)`.

    All channels are moved alike. `kernels` are `(B, K, 25)`, or per pixel `(B, K, 25, H, W)`.
    """
    patches = padded.unfold(2, SIZE, 1).unfold(3, SIZE, 1)  # (B, C, H, W, 5, 5)
    height, width = patches.shape[2:4]
    patches = patches.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(2, 3)  # (B, C, 25, H W)
    with torch.autocast(padded.device.type, enabled=False):  # a copied pixel keeps its value
        if kernels.dim() == 3:
            moved = (kernels[:, None] @ patches).transpose(1, 2)
        else:
            moved = torch.einsum("bktp,bctp->bkcp", kernels.flatten(3), patches)
    return moved.unflatten(-1, (height, width))


def warp(x: Tensor, flows: Tensor) -> Tensor:
    """Take the pixels of frames from where flows point, with bilinear weights: `(B, K, C, H, W)`.

    Args:
        x: frames.
        flows: column and row displacements in pixels `(B, K, 2, H, W)`. The four pixels around a
            place are clamped to the frame after their weights were taken.
    """
    height, width = x.shape[2:]
    corner = flows.detach().floor()
    right, down = (flows - corner).unbind(dim=2)  # weights (B, K, H, W)
    column = corner[:, :, 0].long() + torch.arange(width, device=x.device)
    row = corner[:, :, 1].long() + torch.arange(height, device=x.device)[:, None]
    warped = 0
    for d_row, row_weight in ((0, 1 - down), (1, down)):
        for d_column, column_weight in ((0, 1 - right), (1, right)):
            rows = (row + d_row).clamp(0, height - 1)
            columns = (column + d_column).clamp(0, width - 1)
            place = (rows * width + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
            pixels = x.flatten(2).gather(2, place).unflatten(2, flows.shape[1:2] + x.shape[2:])
            weight = row_weight * column_weight
            warped = warped + weight[:, :, None] * pixels.transpose(1, 2)
    return warped


def blend(masks: Tensor, images: Tensor) -> Tensor:
    """Return the sum of images `(B, n, C, H, W)` weighed by masks `(B, n, H, W)`."""
    return (masks[:, :, None] * images).sum(dim=1)


# Along a clip.

Advance = Callable[[int, Tensor, Any], tuple[Drawn, Any]]


def unroll(
    advance: Advance, frames: Tensor, steps: int, true_frames: Tensor | None = None
) -> Iterator[Drawn]:
    """Draw frames 1, ..., `steps` (counted from 0), one after the other.

    Args:
        advance: from the number of a frame, the frame and a state (at first None), draws the next
            frame and returns the new state.
        frames: true ones `(B, T, C, H, W)`; after them, the drawn ones are fed back.
        steps: frames to draw.
        true_frames: where a true frame is used rather than the drawn one `(B, T)`; by default,
            everywhere.
    """
    drawn = state = None
    for t in range(steps):
        if t >= frames.shape[1]:
            x = drawn.x
        elif drawn is None or true_frames is None:
            x = frames[:, t]
        else:
            x = torch.where(true_frames[:, t, None, None, None], frames[:, t], drawn.x)
        drawn, state = advance(t, x, state)
        yield drawn


def predict(
    draw: Callable[[Clips, int, Tensor], Iterator[Drawn]], given: Clips, frames: int, z: Tensor
) -> Tensor:
    """Draw the `frames` frames that follow given ones `(B, T, C, H, W)`.

    Args:
        draw: from clips, a number of steps and z, draws a frame per step.
        given: with all actions, if the model needs any.
        frames: how many to draw.
        z: `(B * S, ...)`, the samples of a clip together.

    Returns:
        `(B * S, frames, C, H, W)`.

    Raises:
        ValueError: actions are too few.
    """
    x, actions = given
    skipped = x.shape[1] - 1  # steps that draw given frames anew
    steps, samples = skipped + frames, len(z) // len(x)
    if actions is not None and actions.shape[1] < steps:
        raise ValueError(f"the actions are of {actions.shape[1]} frames, expected {steps} or more")
    clips = Clips(*(part if part is None else part.repeat_interleave(samples, 0) for part in given))
    futures = x.new_empty(len(z), frames, *x.shape[2:])
    for t, drawn in enumerate(draw(clips, steps, z)):
        if t >= skipped:
            futures[:, t - skipped] = drawn.x
    return futures


def true_frame_rate(step: int, k: float) -> float:
    """Return the share of true frames at a training step (from 1), which falls as a sigmoid.

    It is k / (k + exp(s / k)) after s steps; with a k of 0 it is 0.
    """
    if k == 0:
        return 0.0
    return k / (k + math.exp(min((step - 1) / k, 700)))  # exp(710) is more than a float holds


def ramp(step: int, start: int, end: int) -> float:
    """Return a weight at a step (from 1): 0 until `start` steps were taken, 1 from `end`."""
    if start == end:
        return float(step > start)
    return min(max((step - 1 - start) / (end - start), 0.0), 1.0)


def first_true(true_frames: Tensor, given: int) -> Tensor:
    """Return the choice of true frames `(..., T)`, with those before `given` always true."""
    return true_frames | (torch.arange(true_frames.shape[-1], device=true_frames.device) < given)
