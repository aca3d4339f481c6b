"""The Kalman filter and smoother against exact laws, and against pykalman."""

import numpy as np
import pytest
import torch
from conftest import generator
from pykalman import KalmanFilter
from torch.distributions import MultivariateNormal

from srvp.models.parts import kalman
from srvp.models.parts.kalman import Gaussian

B, T, D, M = 3, 7, 4, 2
R, Q, V0 = 0.03, 0.08, 20.0
EXACT = {"atol": 1e-8, "rtol": 0}  # in float64


def chain(seed=0, frames=T, dtype=torch.float64):
    """Codes, which of them are seen, and matrices that change with time; rotations that shrink."""
    random = generator(seed)
    turn = torch.linalg.matrix_exp(torch.randn(B, frames, D, D, generator=random).mul(0.3).double())
    turn = turn / torch.linalg.matrix_norm(turn, ord=2)[..., None, None]
    C = torch.randn(B, frames, M, D, generator=random)
    a = torch.randn(B, frames, M, generator=random)
    drift = torch.randn(B, frames, D, generator=random)
    observed = torch.rand(B, frames, generator=random) < 0.6
    return a.to(dtype), observed, turn.to(dtype), C.to(dtype), drift.to(dtype)


def start(dtype=torch.float64, v0=V0):
    return Gaussian(torch.zeros(B, D, dtype=dtype), v0 * torch.eye(D, dtype=dtype).repeat(B, 1, 1))


def run(a, observed, A, C, drift, r=R, q=Q, v0=V0):
    """Filtered, predicted and smoothed states."""
    belief, filtered, predicted = start(a.dtype, v0), [], []
    for t in range(a.shape[1]):
        predicted.append(belief)
        belief = kalman.update(belief, a[:, t], C[:, t], r, observed[:, t])
        filtered.append(belief)
        ahead = kalman.transform(belief, A[:, t], q)
        belief = Gaussian(ahead.mean + drift[:, t], ahead.cov)
    filtered, predicted = (
        Gaussian(*(torch.stack(x, dim=1) for x in zip(*beliefs, strict=True)))
        for beliefs in (filtered, predicted)
    )
    return filtered, predicted, kalman.smooth(filtered, predicted, A, q)


def log_likelihood(predicted, a, observed, C):
    """Of the codes seen: each from those before it."""
    codes = MultivariateNormal(*kalman.transform(predicted, C, R))
    return (codes.log_prob(a) * observed).sum(dim=-1)


def joint(A, C, drift):
    """Mean and covariance of (z_0, ..., z_{T-1}, a_0, ..., a_{T-1}) of one chain, all at once."""
    frames = len(A)
    noise = np.diag(np.repeat([V0, Q], [D, (frames - 1) * D]))
    # z = lift @ (z_0, noise of the transitions); paths[t] is its block row t.
    lift, mean = np.zeros((frames * D, frames * D)), np.zeros(frames * D)
    for t in range(frames):
        rows = slice(t * D, (t + 1) * D)
        if t:
            before = slice((t - 1) * D, t * D)
            lift[rows] = A[t - 1] @ lift[before]
            mean[rows] = A[t - 1] @ mean[before] + drift[t - 1]
        lift[rows, rows] += np.eye(D)
    emission = np.zeros((frames * M, frames * D))
    for t in range(frames):
        emission[t * M : (t + 1) * M, t * D : (t + 1) * D] = C[t]
    full = np.concatenate([np.eye(frames * D), emission])
    cov = full @ lift @ noise @ lift.T @ full.T
    cov[frames * D :, frames * D :] += R * np.eye(frames * M)
    return full @ mean, cov


def conditioned(mean, cov, a, seen):
    """Mean and covariance of all states given the codes `seen` (T,), and their log density."""
    states = np.arange(len(a) * D)
    codes = len(states) + np.flatnonzero(np.repeat(seen, M))
    error = a.reshape(-1)[np.repeat(seen, M)] - mean[codes]
    precision = np.linalg.inv(cov[np.ix_(codes, codes)])
    gain = cov[np.ix_(states, codes)] @ precision
    _, log_determinant = np.linalg.slogdet(2 * np.pi * cov[np.ix_(codes, codes)])
    z = mean[states] + gain @ error
    z_cov = cov[np.ix_(states, states)] - gain @ cov[np.ix_(codes, states)]
    return z, z_cov, -0.5 * (error @ precision @ error + log_determinant)


def test_all_moments_are_those_of_the_joint_normal_distribution():
    """Conditioning 42 numbers at once knows nothing of time, of filters and of smoothers."""
    a, observed, A, C, drift = chain()
    filtered, predicted, smoothed = run(a, observed, A, C, drift)
    likelihood = log_likelihood(predicted, a, observed, C)
    for b in range(B):
        mean, cov = joint(A[b].numpy(), C[b].numpy(), drift[b].numpy())
        seen, codes = observed[b].numpy(), a[b].numpy()
        _, _, density = conditioned(mean, cov, codes, seen)
        np.testing.assert_allclose(likelihood[b], density, **EXACT)
        for t in range(T):
            here = slice(t * D, (t + 1) * D)
            for beliefs, known in ((filtered, seen & (np.arange(T) <= t)), (smoothed, seen)):
                z, z_cov, _ = conditioned(mean, cov, codes, known)
                np.testing.assert_allclose(beliefs.mean[b, t], z[here], **EXACT)
                np.testing.assert_allclose(beliefs.cov[b, t], z_cov[here, here], **EXACT)


def test_fixed_matrices_make_the_filter_and_smoother_of_pykalman():
    a, observed, A, C, drift = chain(seed=1, frames=30)
    A, C, drift = (x[:1, :1].expand(B, 30, *x.shape[2:]) for x in (A, C, drift))
    filtered, predicted, smoothed = run(a, observed, A, C, drift)
    likelihood = log_likelihood(predicted, a, observed, C)
    other = KalmanFilter(
        transition_matrices=A[0, 0].numpy(),
        observation_matrices=C[0, 0].numpy(),
        transition_covariance=Q * np.eye(D),
        observation_covariance=R * np.eye(M),
        transition_offsets=drift[0, 0].numpy(),
        initial_state_mean=np.zeros(D),
        initial_state_covariance=V0 * np.eye(D),
    )
    for b in range(B):
        hidden = np.repeat(~observed[b].numpy()[:, None], M, axis=1)
        codes = np.ma.array(a[b].numpy(), mask=hidden)
        np.testing.assert_allclose(likelihood[b], other.loglikelihood(codes), **EXACT)
        for ours, theirs in ((filtered, other.filter(codes)), (smoothed, other.smooth(codes))):
            np.testing.assert_allclose(ours.mean[b], theirs[0], **EXACT)
            np.testing.assert_allclose(ours.cov[b], theirs[1], **EXACT)


def test_smoother_ends_where_the_filter_does_and_is_surer_before():
    a, observed, A, C, drift = chain()
    filtered, _, smoothed = run(a, observed, A, C, drift)
    assert torch.equal(filtered.mean[:, -1], smoothed.mean[:, -1])
    assert torch.equal(filtered.cov[:, -1], smoothed.cov[:, -1])
    gained = filtered.cov - smoothed.cov
    assert torch.linalg.eigvalsh(gained).min() > -1e-10  # the future never takes knowledge away


def test_without_codes_the_states_are_those_of_the_prior():
    a, observed, A, C, drift = chain()
    A = torch.eye(D, dtype=A.dtype).expand_as(A)
    filtered, _, smoothed = run(a, observed & False, A, C, 0 * drift)
    grown = V0 + Q * torch.arange(T)  # a random walk: the variance grows by q per frame
    cov = torch.diag_embed(grown[None, :, None].expand(B, T, D).double())
    for beliefs in (filtered, smoothed):
        assert not beliefs.mean.any()
        torch.testing.assert_close(beliefs.cov, cov)


def test_float32_stays_close_to_float64_over_200_steps():
    a, observed, A, C, drift = chain(seed=2, frames=200)
    exact = run(a, observed, A, C, drift)
    single = run(*(x if x.dtype == torch.bool else x.float() for x in (a, observed, A, C, drift)))
    for ours, truth in zip(single, exact, strict=True):
        for x, y in zip(ours, truth, strict=True):
            torch.testing.assert_close(x.double(), y, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_near_zero_gives_numbers_and_gradients(noise, dtype):
    """Two codes then tell the state exactly: what is left of its covariance is rounding."""
    a, observed, *matrices = chain(frames=50, dtype=dtype)
    leaves = [x.requires_grad_() for x in (a, *matrices)]
    filtered, _, smoothed = run(a, observed, *matrices, r=noise, q=noise)
    for belief in (filtered, smoothed):
        assert belief.mean.isfinite().all()
        assert torch.linalg.eigvalsh(belief.cov.double()).min() > -1e-6
    z = smoothed.sample(torch.randn(B, 50, D, dtype=dtype, generator=generator()))
    assert all(g.isfinite().all() for g in torch.autograd.grad(z.mean(), leaves))


def test_draws_have_the_mean_and_covariance_of_the_distribution():
    cov = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
    belief = Gaussian(torch.tensor([1.0, -2.0, 0.5]), cov)
    draws = belief.sample(torch.randn(40_000, 3, generator=generator()))
    # Four standard errors of a mean, and of a product, of 40,000 draws.
    torch.testing.assert_close(draws.mean(dim=0), belief.mean, atol=4 * 2**0.5 / 200, rtol=0)
    torch.testing.assert_close(torch.cov(draws.T), cov, atol=4 * 2 * 2**0.5 / 200, rtol=0)
