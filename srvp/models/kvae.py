"""KVAE: the Kalman variational autoencoder (Fraccaro, Kamronn, Paquet & Winther, NIPS 2017).

A VAE turns each frame into a code a_t of few dimensions, in which a linear Gaussian state space
model describes the motion (`kvae_dynamics`):

    p(a_0, z_0, a_1, z_1, ...)               codes and their states z_t
    x_t ~ Bernoulli(Dec(a_t))                frame of pixels 0 and 1

    q(a_t | x_t) = N(Enc(x_t))               approximate posterior of the code
    p(z_0, z_1, ... | a_0, a_1, ...)         posterior of the states: exact (`kalman`)

    objective = w log p(x | a) - log q(a | x) + log p(a | z) + log p(z) - log q(z)

Where a frame is missing, its code is the one that the dynamics expect. So the model fills in frames
in the middle of a video (`impute`) and after it (`predict`).

Published numbers came from the authors' code (github.com/simonkamronn/kvae, commit 849d631), which
this module follows where it departs from the paper:

- In the objective, z_t is drawn from the smoothed distribution of its time step, independently of
  the other steps: q(z) is the product of these. That is a valid bound, though not the tightest.
- Pixels weigh less in training than in the bound: w = 0.3.
- q(a | x) has variances below r, and enters with the density of the draw, not in closed form.
- At first, the LSTM that mixes matrices is not trained. Then every Adam begins anew.

It differs from that code in these points:

- Futures are drawn from the exact prediction given the codes of the given frames. Their code begins
  at the smoothed mean, and lets the LSTM begin anew on the means of the given codes.
- Filter and objective use the same action, and without actions there is no B. (Their code uses u_t
  in one and u_{t+1} in the other, but all its actions are 0.)
- A map is flattened by channel, row and column, which permutes weights only.

Shapes: B videos, T frames, C channels of H = W pixels; M = dim_a, D = dim_z, U values of actions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srvp.models.interface import Clips, ModelConfig, VideoModel, VideoShape
from srvp.models.parts import kalman
from srvp.models.parts.kalman import Gaussian
from srvp.models.parts.kvae_dynamics import Dynamics, DynamicsConfig, apply, exactly, mix
from srvp.schema import Count, Real, Whole

MAP_SIZE = 4  # height and width of the smallest feature map
LOGIT_LIMIT = math.log((1 - 1e-6) / 1e-6)  # keeps probabilities of pixels in [1e-6, 1 - 1e-6]


@dataclass(frozen=True)
class Config(DynamicsConfig, ModelConfig):
    """Sizes, noise and objective, by default those of the authors for the ball in a box."""

    takes_actions = True
    terms = {  # noqa: RUF012 (a constant)
        "elbo": "bound on log p(x) (nats per frame)",
        "log_p_x": "log p(x | a) (nats per frame)",
        "log_q_a": "log q(a | x) (nats per frame)",
        "log_p_a": "log p(a | z) (nats per frame)",
        "log_p_z_0": "log p of the first z (nats per frame)",
        "log_p_z": "log p of later z (nats per frame)",
        "log_q_z": "log q(z | a) (nats per frame)",
    }
    nf: Count = 32  # channels of the convolutions
    reconstruction_weight: Real = 0.3  # w
    fixed_mixing_steps: Whole = 1560  # first training steps, in which the LSTM is not trained

    def build(self, shape: VideoShape) -> "KVAE":
        return KVAE(self, shape)


class Noise(NamedTuple):
    """Standard normal noise, a draw per frame."""

    a: Tensor  # (B, T, dim_a) of its code
    z: Tensor  # (B, T, dim_z) of its state


class Codes(NamedTuple):
    """q(a | x) of given frames, and the actions taken in them and after them."""

    mean: Tensor  # (B, T, M)
    var: Tensor  # (B, T, M)
    actions: Tensor | None  # (B, T + frames, U)


class Imputation(NamedTuple):
    """All frames of videos of which some were missing."""

    x: Tensor  # (B, T, C, H, W)
    a: Tensor  # (B, T, M) codes: means
    z: Gaussian  # (B, T, D)


class Prediction(NamedTuple):
    """Frames that follow the given ones."""

    x: Tensor  # (B, frames, C, H, W)
    a: Tensor  # (B, frames, M)
    z: Tensor  # (B, frames, D)


class Loss(NamedTuple):
    """Terms of the objective in nats, per observed frame."""

    total: Tensor  # to minimise: -elbo, with log_p_x weighted
    elbo: Tensor  # log_p_x - log_q_a + log_p_a + log_p_z_0 + log_p_z - log_q_z
    log_p_x: Tensor  # pixels given the codes
    log_q_a: Tensor  # codes given the frames
    log_p_a: Tensor  # codes given the states
    log_p_z_0: Tensor  # first states
    log_p_z: Tensor  # transitions
    log_q_z: Tensor  # states given all codes


def without_autocast(method: Callable) -> Callable:
    """Let a method compute in the precision of the weights: a filter in bfloat16 would be lost."""

    @wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run


def log_normal(x: Tensor, mean: Tensor | float, var: Tensor | float) -> Tensor:
    """Return the log density `(...)` of vectors `(..., D)` with independent entries, in nats."""
    var = torch.as_tensor(var, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean).square() / var + (2 * math.pi * var).log()).sum(dim=-1)


class KVAE(VideoModel):
    """The Kalman variational autoencoder.

    Args:
        config: sizes, noise and objective.
        shape: of the videos.
    """

    def __init__(self, config: Config, shape: VideoShape):
        super().__init__(config, shape)
        features = config.nf * MAP_SIZE**2
        self.encoder = make_encoder(shape, config.nf)
        self.a_mean = nn.Linear(features, config.dim_a)
        self.a_var = nn.Linear(features, config.dim_a)
        self.decoder = make_decoder(shape, config.nf, config.dim_a)
        self.dynamics = Dynamics(config, shape.actions)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    # Training.

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the groups of the two phases: each has an Adam for all parameters it trains."""
        mixing = {id(parameter) for parameter in self.dynamics.mixing.parameters()}
        others = [p for p in self.parameters() if id(p) not in mixing]
        return {"fixed_mixing": others, "all": list(self.parameters())}

    def objectives(self, step: int) -> dict[str, tuple[str, ...]]:
        fixed = step <= self.config.fixed_mixing_steps
        return {"loss": ("fixed_mixing" if fixed else "all",)}

    def draw_noise(self, count: int, frames: int, generator: torch.Generator) -> Noise:
        sizes = (self.config.dim_a, self.config.dim_z)
        draws = (
            torch.randn(count, frames, n, generator=generator, device=generator.device)
            for n in sizes
        )
        return Noise(*draws)

    def _loss(self, clips: Clips, randomness: Noise, objective: str) -> Loss:
        observed = clips.frames.new_ones(clips.frames.shape[:2], dtype=torch.bool)
        return self.elbo(clips, observed, randomness)

    @without_autocast
    def elbo(self, clips: Clips, observed: Tensor, noise: Noise) -> Loss:
        """Return the bound on the log likelihood of the observed frames, and its terms.

        Args:
            clips: of pixels 0 and 1. Missing frames may be anything in [0, 1].
            observed: bool `(B, T)`, False for missing frames.
            noise: `draw_noise(B, T, generator)`.

        Raises:
            ValueError: the shapes do not fit.
        """
        self._check(clips, observed, noise)
        c = self.config
        a_mean, a_var = self.encode(clips.frames)
        a = a_mean + a_var.sqrt() * noise.a
        known = self.dynamics.filter(a, observed, clips.actions)
        smoothed = self.dynamics.smooth(known)
        factor = kalman.cholesky(smoothed.cov)
        z = smoothed.mean + apply(factor, noise.z)
        ahead = apply(known.A, z) + known.drift
        terms = {
            "log_p_x": observed * self._log_likelihood(clips.frames, a),
            "log_q_a": observed * log_normal(a, a_mean, a_var),
            "log_p_a": observed * log_normal(a, apply(known.C, z), c.emission_variance),
            "log_p_z_0": log_normal(z[:, 0], 0, c.initial_variance),
            "log_p_z": log_normal(z[:, 1:], ahead[:, :-1], c.transition_variance),
            "log_q_z": log_normal(noise.z, 0, 1) - kalman.log_diagonal(factor),
        }
        terms = {name: term.sum() / observed.sum() for name, term in terms.items()}
        elbo = sum(-term if name.startswith("log_q") else term for name, term in terms.items())
        weighted = elbo + (c.reconstruction_weight - 1) * terms["log_p_x"]
        return Loss(-weighted, elbo, **terms)

    def _log_likelihood(self, x: Tensor, a: Tensor) -> Tensor:
        """Return log p(x | a) per frame: `(B, T)`."""
        logits = self.decoder(a.flatten(0, 1)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        pixels = F.binary_cross_entropy_with_logits(logits, x.flatten(0, 1), reduction="none")
        return -pixels.sum(dim=(1, 2, 3)).unflatten(0, x.shape[:2])

    def _check(self, clips: Clips, observed: Tensor, noise: Noise) -> None:
        videos = tuple(clips.frames.shape[:2])
        if observed.dtype != torch.bool or observed.shape != videos:
            raise ValueError(
                f"observed is {observed.dtype} {tuple(observed.shape)}, expected torch.bool "
                f"{videos}"
            )
        if any(part.shape[:2] != videos for part in noise):
            raise ValueError(
                f"the noise is of shapes {[tuple(part.shape) for part in noise]}, expected that of "
                f"draw_noise{videos}"
            )

    # Frames and codes.

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance `(B, T, M)` of the codes of frames `(B, T, C, H, W)`."""
        features = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.a_mean(features), self.config.emission_variance * self.a_var(features).sigmoid()

    def decode(self, a: Tensor) -> Tensor:
        """Return the mean frames `(B, T, C, H, W)` of codes `(B, T, M)`."""
        return self.decoder(a.flatten(0, 1)).sigmoid().unflatten(0, a.shape[:2])

    # Prediction.

    @without_autocast
    def impute(
        self, clips: Clips | Tensor, observed: Tensor, noise: Noise, smooth: bool = True
    ) -> Imputation:
        """Fill in missing frames: the means of what the observed ones tell.

        Observed frames are shown as their codes' states tell, too.

        Args:
            clips: `(B, T, C, H, W)`, of pixels 0 and 1. Missing frames may be anything in [0, 1].
            observed: bool `(B, T)`, False for missing frames.
            noise: `draw_noise(B, T, generator)`; each observed frame's code is a draw.
            smooth: let a frame depend on those after it.

        Raises:
            ValueError: the clips are not what the model was built for, or the shapes do not fit.
        """
        clips = self.check_clips(clips)
        self._check(clips, observed, noise)
        mean, var = self.encode(clips.frames)
        known = self.dynamics.filter(mean + var.sqrt() * noise.a, observed, clips.actions)
        z = self.dynamics.smooth(known) if smooth else known.z
        a = apply(known.C, z.mean)
        return Imputation(self.decode(a), a, z)

    @without_autocast
    def _condition(self, clips: Clips) -> Codes:
        return Codes(*self.encode(clips.frames), clips.actions)

    @without_autocast
    def _predict(self, state: Codes, frames: int, noise: Noise) -> Prediction:
        samples, given = len(noise.a) // len(state.mean), state.mean.shape[1]
        mean, std, actions = (
            None if s is None else s.repeat_interleave(samples, dim=0)
            for s in (state.mean, state.var.sqrt(), state.actions)
        )
        a = mean + std * noise.a[:, :given]
        now = self.dynamics.filter(a, torch.ones_like(a[..., 0], dtype=torch.bool), actions).ahead
        x, codes, states = [], [], []
        for t in range(given, given + frames):
            z = now.z.sample(noise.z[:, t])
            a = apply(mix(now.alpha, self.dynamics.C), z)
            a = a + self.config.emission_variance**0.5 * noise.a[:, t]
            u = None if actions is None else actions[:, t]
            *_, now = self.dynamics.advance(exactly(z), a, now.lstm, u)
            x.append(self.decode(a[:, None])[:, 0])
            codes.append(a)
            states.append(z)
        return Prediction(*(torch.stack(parts, dim=1) for parts in (x, codes, states)))


def halvings(shape: VideoShape) -> int:
    """Return how often a frame is halved until it is the smallest map."""
    return int(math.log2(shape.size // MAP_SIZE))


def make_encoder(shape: VideoShape, nf: int) -> nn.Sequential:
    """Return the network from frames `(N, C, H, W)` to features `(N, 16 nf)`."""
    layers, channels = [], shape.channels
    for _ in range(halvings(shape)):
        # TensorFlow's padding: on the right and at the bottom only.
        layers += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, nf, 3, stride=2), nn.ReLU()]
        channels = nf
    return nn.Sequential(*layers, nn.Flatten())


def make_decoder(shape: VideoShape, nf: int, dim_a: int) -> nn.Sequential:
    """Return the network from codes `(N, M)` to the logits of pixels `(N, C, H, W)`."""
    layers = [nn.Linear(dim_a, nf * MAP_SIZE**2), nn.Unflatten(1, (nf, MAP_SIZE, MAP_SIZE))]
    for _ in range(halvings(shape)):
        layers += [nn.Conv2d(nf, 4 * nf, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2)]
    return nn.Sequential(*layers, nn.Conv2d(nf, shape.channels, 1))
