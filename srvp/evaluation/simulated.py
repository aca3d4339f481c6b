"""Measures that simulated videos allow: their truth is known, and their pixels are 0 or 1.

A linear probe tells what states know. It is fitted to the states of some videos and judged by those
of others. It reads what a linear map can: a state may know more, in another form.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Probe(NamedTuple):
    """A linear map from states to E quantities."""

    weights: np.ndarray  # (D, E)
    offset: np.ndarray  # (E,)

    def read(self, states: np.ndarray) -> np.ndarray:
        """Return the quantities `(..., E)` that states `(..., D)` tell."""
        return states @ self.weights + self.offset


def fit(states: np.ndarray, values: np.ndarray) -> Probe:
    """Return the probe of least squares; the smallest one, if several are as good.

    Args:
        states: `(..., D)`.
        values: true quantities of the same frames, `(..., E)`.
    """
    x, y = (np.reshape(a, (-1, a.shape[-1])).astype(np.float64) for a in (states, values))
    weights = np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(axis=0), rcond=1e-6)[0]
    return Probe(weights, y.mean(axis=0) - x.mean(axis=0) @ weights)


def r_squared(values: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Return the share of each quantity's variance that readings explain, `(E,)`.

    1 is perfect, 0 as good as the mean of the true values; it may be below 0.

    Args:
        values: true quantities `(..., E)`.
        read: what a probe read, of the same shape.
    """
    frames = tuple(range(values.ndim - 1))
    error = np.square(values - read).sum(axis=frames)
    return 1 - error / np.square(values - values.mean(axis=frames)).sum(axis=frames)


def held_out(states: np.ndarray, values: np.ndarray, fitted: int) -> tuple[Probe, np.ndarray]:
    """Fit a probe to the first videos; return it and its R^2 `(E,)` on the others.

    Args:
        states: `(videos, frames, D)`.
        values: `(videos, frames, E)`.
        fitted: how many videos it is fitted to.
    """
    probe = fit(states[:fitted], values[:fitted])
    return probe, r_squared(values[fitted:], probe.read(states[fitted:]))


def wrong_pixels(x: Tensor, truth: Tensor) -> Tensor:
    """Return the share of wrong pixels per frame, `(...)`: KVAE's measure (Fraccaro et al., 2017).

    Args:
        x: frames `(..., C, H, W)` in [0, 1]; a pixel above 1/2 counts as 1.
        truth: of pixels 0 and 1; its shape may be one that broadcasts.
    """
    return ((x > 0.5) != (truth > 0.5)).float().mean(dim=(-3, -2, -1))
