"""The exact Kalman filter and smoother of a linear Gaussian state space model, in batches.

    z_0 ~ N(0, S_0)                     state
    z_{t+1} ~ N(A_t z_t + d_t, q I)     transition, with a drift d_t such as B u_t
    a_t ~ N(C_t z_t, r I)               emission

Time is a loop of the caller, who may let A_t and C_t depend on what was seen: `update` takes in a_t
and `transform` leads to the time after it. `smooth` goes back through the whole sequence.

All is stable in float32. Covariances are sums of positive semi-definite terms (the Joseph form,
forwards and backwards), never differences. No matrix is inverted: Cholesky factors are used, of the
matrix plus some rounding units of its own size. So they exist for noise near zero, too.

Shapes: any batch dimensions, then D = dim_z or M = dim_a.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Normal distributions of vectors."""

    mean: Tensor  # (..., D)
    cov: Tensor  # (..., D, D)

    def sample(self, noise: Tensor) -> Tensor:
        """Return the draw that standard normal noise `(..., D)` makes."""
        return self.mean + (cholesky(self.cov) @ noise[..., None])[..., 0]


def cholesky(cov: Tensor) -> Tensor:
    """Return the lower Cholesky factor of covariances `(..., D, D)`.

    Variances are raised first, by more than the rounding errors that the factor itself meets.
    """
    eps = torch.finfo(cov.dtype).eps
    raised = cov + torch.diag_embed(eps * cov.diagonal(dim1=-2, dim2=-1) + eps**2)
    # The variant that asks nothing of the device: a GPU need not be waited for.
    return torch.linalg.cholesky_ex(raised).L


def log_diagonal(factor: Tensor) -> Tensor:
    """Return the log determinant `(...)` of triangular matrices `(..., D, D)`."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def transform(belief: Gaussian, matrix: Tensor, variance: float) -> Gaussian:
    """Return the distribution of M z + N(0, variance I), M being a matrix `(..., E, D)`.

    With C_t and r, that is what is expected of a_t; with A_t and q, of z_{t+1} without its drift.
    """
    unit = torch.eye(matrix.shape[-2], dtype=matrix.dtype, device=matrix.device)
    mean = (matrix @ belief.mean[..., None])[..., 0]
    return Gaussian(mean, _symmetric(_sandwich(matrix, belief.cov) + variance * unit))


def update(belief: Gaussian, a: Tensor, C: Tensor, r: float, observed: Tensor) -> Gaussian:
    """Return the belief on z_t after a_t.

    Args:
        belief: on z_t, before.
        a: `(..., M)`.
        C: `(..., M, D)`.
        r: variance of the emission.
        observed: bool `(...)`; where False, a_t is missing and the belief stays as it is.
    """
    expected = transform(belief, C, r)
    # K = S C' G^-1 with G = C S C' + r I, from G K' = C S.
    gain = torch.cholesky_solve(C @ belief.cov, cholesky(expected.cov)).mT
    gain = gain * observed[..., None, None]
    error = torch.where(observed[..., None], a - expected.mean, 0.0)
    mean = belief.mean + (gain @ error[..., None])[..., 0]
    unit = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    return Gaussian(mean, _symmetric(_sandwich(unit - gain @ C, belief.cov) + r * gain @ gain.mT))


def smooth(filtered: Gaussian, predicted: Gaussian, A: Tensor, q: float) -> Gaussian:
    """Return the beliefs on all states after all observations (Rauch, Tung and Striebel).

    Args:
        filtered: after a_0, ..., a_t: `(..., T, D)`.
        predicted: after a_0, ..., a_{t-1}: `(..., T, D)`.
        A: `(..., T, D, D)`; the last one is not used.
        q: variance of the transition.
    """
    past = Gaussian(filtered.mean[..., :-1, :], filtered.cov[..., :-1, :, :])
    ahead, A = predicted.cov[..., 1:, :, :], A[..., :-1, :, :]
    # J = S_t A' (S-_{t+1})^-1, from S- J' = A S_t.
    J = torch.cholesky_solve(A @ past.cov, cholesky(ahead)).mT
    unit = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    # What the future cannot tell: S_t - J S- J', without the difference.
    rest = _sandwich(unit - J @ A, past.cov) + q * J @ J.mT
    mean, cov = filtered.mean[..., -1, :], filtered.cov[..., -1, :, :]
    means, covs = [mean], [cov]
    for t in reversed(range(A.shape[-3])):
        gain = J[..., t, :, :]
        surprise = mean - predicted.mean[..., t + 1, :]
        mean = past.mean[..., t, :] + (gain @ surprise[..., None])[..., 0]
        cov = _symmetric(rest[..., t, :, :] + _sandwich(gain, cov))
        means.append(mean)
        covs.append(cov)
    return Gaussian(torch.stack(means[::-1], dim=-2), torch.stack(covs[::-1], dim=-3))


def _sandwich(matrix: Tensor, cov: Tensor) -> Tensor:
    """Return M S M' for M `(..., E, D)` and covariances S `(..., D, D)`.

    Rounding moves an entry by about one unit (eps / 2) of the same product of absolute values. The
    sums of that product's rows, added to the diagonal, keep the result positive definite.
    """
    with torch.no_grad():
        sums = matrix.abs() @ (cov.abs() @ matrix.abs().sum(dim=-2)[..., None])
        errors = torch.finfo(cov.dtype).eps / 2 * sums[..., 0]
    return matrix @ cov @ matrix.mT + torch.diag_embed(errors)


def _symmetric(cov: Tensor) -> Tensor:
    return (cov + cov.mT) / 2
