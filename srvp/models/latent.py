"""What the states of SRVP hold: content apart from motion, dynamics to blend, movement to measure.

Posterior means stand for the latent variables: nothing here is random but noise that is passed in.
Shapes: B clips, T frames, C channels; x (B, T, C, H, W) in [0, 1]; y (B, T, ny).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from srvp.models.interface import Given
from srvp.models.srvp import SRVP, Inference, Noise


def mean_states(model: SRVP, given: Inference) -> tuple[Tensor, Tensor]:
    """Return the states `(B, T, ny)` at the posterior's means, and their residuals (`rollout`)."""
    return model.rollout(given.q_y.mean, given.q_z.mean, model.config.euler_steps)


def exchange_content(model: SRVP, content: Inference, motion: Inference) -> Tensor:
    """Show the motion of some videos with the content of others: frames `(B, T, C, H, W)`.

    The states come from `motion`; w, and the skip connections if there are any, from `content`
    (section 5 of the paper, "content swap").
    """
    y, _ = mean_states(model, motion)
    return model.decode(content.w, y, content.skips)


def blend_dynamics(
    model: SRVP, start: Inference, end: Inference, weights: Sequence[float]
) -> Tensor:
    """Show videos whose dynamics lie between those of two, all with the content of the first.

    First state and every z are blended linearly (section 5 of the paper, "interpolation").

    Args:
        model: a trained one.
        start, end: what was inferred from one video each, of T frames.
        weights: of the second video, from 0 to 1.

    Returns:
        Frames `(len(weights), T, C, H, W)`.
    """
    weight = torch.tensor(weights, device=start.w.device)
    y_1 = torch.lerp(start.q_y.mean, end.q_y.mean, weight[:, None])
    z = torch.lerp(start.q_z.mean, end.q_z.mean, weight[:, None, None])
    y, _ = model.rollout(y_1, z, model.config.euler_steps)
    w = start.w.expand(len(weights), -1)
    return model.decode(w, y, start.skips)


def predict_at_rate(model: SRVP, given: Given, frames: int, noise: Noise, rate: int) -> Tensor:
    """Predict `frames` frames at `rate` times the frame rate: `(B, frames * rate, C, H, W)`.

    Time is as fine as in training between two of them: `rate` times the Euler steps per frame. The
    last of each `rate` frames stands at a whole time.
    """
    steps = model.config.euler_steps
    x = model.predict(given, frames, noise, euler_steps=rate * steps, every_step=True).x
    return x[:, steps - 1 :: steps]


def residual_norms(model: SRVP, given: Inference) -> Tensor:
    """Return how far every frame moves the state, `(B, T - 1)`: the norm of its residuals' sum."""
    y, _ = mean_states(model, given)
    return y.diff(dim=1).norm(dim=-1)


def center_of_mass(x: Tensor) -> Tensor:
    """Return row and column, in pixels, of the centre of each frame's brightness: `(B, T, 2)`."""
    mass = x.mean(dim=2)
    total = mass.sum(dim=(-2, -1))
    pixel = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    row, column = mass.sum(dim=-1) @ pixel, mass.sum(dim=-2) @ pixel
    return torch.stack([row, column], dim=-1) / total[..., None]


def principal_axes(y: Tensor, axes: int = 2) -> Tensor:
    """Project states `(..., ny)` onto the directions in which they vary most: `(..., axes)`."""
    flat = y.flatten(0, -2)
    centred = flat - flat.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:axes]
    # The sign of a direction is arbitrary: its largest component is made positive.
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return (centred @ (directions * largest.sign()).T).unflatten(0, y.shape[:-1])
