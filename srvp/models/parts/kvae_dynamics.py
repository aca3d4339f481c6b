"""The state space model of KVAE: linear and Gaussian, its matrices mixed by an LSTM of the codes.

    alpha_t = softmax(LSTM(a_0, ..., a_{t-1}))         weights of K sets of matrices
    z_0 ~ N(0, v0 I)                                   state
    z_{t+1} ~ N(A(alpha_{t+1}) z_t + B(alpha_{t+1}) u_t, q I)
    a_t ~ N(C(alpha_t) z_t, r I)                       code

The codes before a time determine its matrices, so the Kalman filter is exact. Where a code is
missing, the LSTM takes the expected one. The smoother keeps the matrices of the filter.

Shapes: B videos, T frames; M = dim_a, D = dim_z, U values of actions.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from srvp.models.parts import kalman
from srvp.models.parts.kalman import Gaussian
from srvp.schema import ConfigError, Count, Real

State = tuple[Tensor, Tensor]  # of the LSTM: hidden and cell, (B, alpha_size)


@dataclass(frozen=True)
class DynamicsConfig:
    """Sizes and noise, by default those of the authors for the ball in a box."""

    dim_a: Count = 2  # size of a frame's code
    dim_z: Count = 4  # size of the state
    matrices: Count = 3  # K, sets of matrices that are mixed
    alpha_size: Count = 50  # hidden units of the LSTM that mixes them
    emission_variance: Real = 0.03  # r
    transition_variance: Real = 0.08  # q
    initial_variance: Real = 20.0  # v0

    def __post_init__(self) -> None:
        for key in ("emission_variance", "transition_variance", "initial_variance"):
            if getattr(self, key) == 0:
                raise ConfigError(f"{key} is 0; expected a variance above 0")


class Next(NamedTuple):
    """What is known of a frame from those before it."""

    z: Gaussian  # (B, D) its state
    alpha: Tensor  # (B, K) weights of the matrices
    lstm: State


class Filtered(NamedTuple):
    """What the codes up to each frame tell."""

    z: Gaussian  # (B, T, D) states, from the codes up to this frame
    predicted: Gaussian  # (B, T, D) states, from the codes before it
    alpha: Tensor  # (B, T, K)
    A: Tensor  # (B, T, D, D) from this frame to the next
    drift: Tensor  # (B, T, D) likewise, B u
    C: Tensor  # (B, T, M, D)
    ahead: Next  # of the frame after the last


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply matrices `(..., E, D)` with vectors `(..., D)`."""
    return (matrix @ vector[..., None])[..., 0]


def mix(alpha: Tensor, matrices: Tensor) -> Tensor:
    """Return the means `(B, E, D)` of K matrices `(K, E, D)` under weights `(B, K)`."""
    return torch.einsum("bk,kij->bij", alpha, matrices)


class Mixing(nn.Module):
    """From codes to the weights of the matrices: an LSTM, a linear map and a softmax.

    As in TensorFlow, the LSTM has one bias, and 1 is added to the forget gate.
    """

    def __init__(self, dim_a: int, hidden: int, matrices: int):
        super().__init__()
        self.gates = nn.Linear(dim_a + hidden, 4 * hidden)  # input, candidate, forget, output
        self.output = nn.Linear(hidden, matrices)

    def forward(self, a: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the weights `(B, K)` after a code `(B, M)`, and the state of the LSTM."""
        hidden, cell = state
        i, j, f, o = self.gates(torch.cat([a, hidden], dim=-1)).chunk(4, dim=-1)
        cell = cell * (f + 1).sigmoid() + i.sigmoid() * j.tanh()
        hidden = cell.tanh() * o.sigmoid()
        return self.output(hidden).softmax(dim=-1), (hidden, cell)


class Dynamics(nn.Module):
    """The state space model of the codes.

    Args:
        config: sizes and noise.
        actions: values per frame, U.
    """

    def __init__(self, config: DynamicsConfig, actions: int):
        super().__init__()
        c = self.config = config
        self.A = nn.Parameter(torch.eye(c.dim_z).repeat(c.matrices, 1, 1))
        self.B = nn.Parameter(0.05 * torch.randn(c.matrices, c.dim_z, actions)) if actions else None
        self.C = nn.Parameter(0.05 * torch.randn(c.matrices, c.dim_a, c.dim_z))
        self.a_0 = nn.Parameter(torch.zeros(c.dim_a))  # the LSTM's first input
        self.mixing = Mixing(c.dim_a, c.alpha_size, c.matrices)

    def start(self, count: int) -> Next:
        """Return what is known of the first frame of `count` videos."""
        c, new = self.config, self.a_0.new_zeros
        unit = torch.eye(c.dim_z, dtype=self.a_0.dtype, device=self.a_0.device)
        z = Gaussian(new(count, c.dim_z), (c.initial_variance * unit).expand(count, -1, -1))
        state = (new(count, c.alpha_size), new(count, c.alpha_size))
        return Next(z, *self.mixing(self.a_0.expand(count, -1), state))

    def advance(
        self, z: Gaussian, a: Tensor, lstm: State, u: Tensor | None
    ) -> tuple[Tensor, Tensor, Next]:
        """Go from a frame to the next.

        Args:
            z: `(B, D)`, the state of this frame.
            a: `(B, M)`, its code, or the expected one.
            lstm: before this code.
            u: `(B, U)`, the action taken, if there are any.

        Returns:
            A `(B, D, D)`, the drift B u `(B, D)`, and what is known of the next frame.
        """
        alpha, lstm = self.mixing(a, lstm)
        A = mix(alpha, self.A)
        drift = torch.zeros_like(z.mean) if u is None else apply(mix(alpha, self.B), u)
        ahead = kalman.transform(z, A, self.config.transition_variance)
        return A, drift, Next(Gaussian(ahead.mean + drift, ahead.cov), alpha, lstm)

    def filter(self, a: Tensor, observed: Tensor, actions: Tensor | None = None) -> Filtered:
        """Return what codes `(B, T, M)` tell, if `observed` `(B, T)`, and actions `(B, T, U)`."""
        now, steps = self.start(len(a)), []
        for t in range(a.shape[1]):
            C = mix(now.alpha, self.C)
            z = kalman.update(now.z, a[:, t], C, self.config.emission_variance, observed[:, t])
            code = torch.where(observed[:, t, None], a[:, t], apply(C, now.z.mean))
            u = None if actions is None else actions[:, t]
            A, drift, ahead = self.advance(z, code, now.lstm, u)
            steps.append((*z, *now.z, now.alpha, A, drift, C))
            now = ahead
        stacked = [torch.stack(parts, dim=1) for parts in zip(*steps, strict=True)]
        return Filtered(Gaussian(*stacked[:2]), Gaussian(*stacked[2:4]), *stacked[4:], now)

    def smooth(self, known: Filtered) -> Gaussian:
        """Return what all codes tell of the states: `(B, T, D)`."""
        return kalman.smooth(known.z, known.predicted, known.A, self.config.transition_variance)


def exactly(z: Tensor) -> Gaussian:
    """Return the distribution of a state `(B, D)` that is known."""
    return Gaussian(z, z.new_zeros(*z.shape, z.shape[-1]))
