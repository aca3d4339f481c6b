"""SVG: stochastic video generation (Denton & Fergus, ICML 2018), with a learned or a fixed prior.

The model predicts one frame at a time from an encoding of the frame before, h_t = Enc(x_t):

    z_t ~ p(z_t | h_1, ..., h_{t-1})               prior: by an LSTM (SVG-LP), or N(0, I) (SVG-FP)
    g_t = LSTM(h_1, z_2, ..., h_{t-1}, z_t)        the predictor, in the space of the encodings
    x_t = Dec(g_t, skips)                          the frame; skips are maps of an earlier one

    q(z_t | h_2, ..., h_t)                         approximate posterior, by an LSTM

    loss = sum over t of |x_t - Dec(g_t, skips)|^2 + beta KL(q(z_t | ...) || p(z_t | ...))

    frame     1      2      3    ...    T
              h_1    h_2    h_3  ...   h_T         encodings
                     z_2    z_3  ...   z_T         latents
                     g_2    g_3  ...   g_T         g_t from h_{t-1}, z_t and the LSTM's state

Training is teacher forced: every h is that of a true frame. After the given frames, the generated
image is encoded again to predict the next: the model is autoregressive through the image.

Published numbers came from the authors' code (github.com/edenton/svg, commit 3f19f0b), which this
module follows where it departs from the paper:

- Skips come from the last but one of the P conditioning frames, in training and afterwards, where
  the paper says the last. So P has to be known in training (`conditioning_frames`).
- In training, batch norm takes its statistics over the videos of one time step.
- The loss mixes reductions: the squared error is a mean over pixels, the KL a sum over dimensions.
- While conditioning, SVG-LP samples the posterior and SVG-FP takes its mean.

It differs from that code in one point: their LP script leaves batch norm in training mode when it
generates, so that a prediction depends on the test videos that share its batch. Here generation
uses the running statistics (`model.eval()`), as in their FP script.

The authors step an Adam optimizer per network (five, without a learned prior four), all with the
same settings. Adam treats every parameter on its own, so that one Adam over all parameters makes
the same steps.

Shapes: B clips, T frames, C channels; x (B, T, C, H, W) in [0, 1]; h and g (B, T, g_dim);
z (B, T - 1, z_dim), z[:, 0] being z_2 above.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from srvp.models.interface import Clips, ModelConfig, VideoModel, VideoShape
from srvp.models.parts import networks
from srvp.models.parts.fast.steps import statistics_of_steps
from srvp.schema import Count, Real

ENCODERS = {
    "dcgan": partial(networks.dcgan_encoder, bias=True, norm_first=True),
    "vgg": partial(networks.vgg_encoder, bias=True),
}
DECODERS = {name: partial(d, skip=True, bias=True) for name, d in networks.DECODERS.items()}

LSTMState = tuple[Tensor, Tensor]  # hidden and cell, (layers, B, rnn_size)


@dataclass(frozen=True)
class Config(ModelConfig):
    """Sizes and objective, in the authors' symbols."""

    terms = {"mse": "squared error per pixel", "kl": "KL of z (nats)"}  # noqa: RUF012 (a constant)
    prior: Literal["learned", "fixed"]  # SVG-LP or SVG-FP
    architecture: Literal["dcgan", "vgg"]
    z_dim: Count  # size of the stochastic variable z
    conditioning_frames: Annotated[int, 2]  # P: skips come from no later frame than P - 1
    beta: Real  # weight of the KL
    nf: Count = 64  # channels of the encoder's first stage
    g_dim: Count = 128  # size of a frame's encoding h, and of the predictor's output g
    rnn_size: Count = 256  # hidden units of every LSTM
    predictor_layers: Count = 2  # LSTM layers of the predictor
    posterior_layers: Count = 1  # LSTM layers of the posterior
    prior_layers: Count = 1  # LSTM layers of a learned prior

    def build(self, shape: VideoShape) -> "SVG":
        return SVG(self, shape)

    @property
    def frames_needed(self) -> int:
        return self.conditioning_frames


class Noise(NamedTuple):
    """Standard normal noise, one draw per frame but the first."""

    z: Tensor  # (B, T - 1, z_dim)


class State(NamedTuple):
    """What the given frames tell."""

    h: Tensor  # (B, T, g_dim) encodings
    q_z: Normal  # (B, T - 1, z_dim)
    skips: list[Tensor]  # maps (B, C', H', W') of the last but one frame, deepest first


class Reconstruction(NamedTuple):
    """A video predicted frame by frame from its own past, z drawn from the posterior."""

    x: Tensor  # (B, T - 1, C, H, W) frames 2, ..., T
    q_z: Normal  # (B, T - 1, z_dim)
    p_z: Normal  # (B, T - 1, z_dim)


class Prediction(NamedTuple):
    """Frames that follow the given ones."""

    x: Tensor  # (B, frames, C, H, W)


class Loss(NamedTuple):
    """Terms of the objective, summed over frames 2, ..., T (the conditioning frames as well)."""

    total: Tensor  # mse + beta kl
    mse: Tensor  # squared error, a mean over videos, channels and pixels
    kl: Tensor  # KL(q(z_t) || p(z_t)) in nats, summed over dimensions, a mean over videos


class SequenceNetwork(nn.Module):
    """A linear map, an LSTM of one or more layers and a linear map, along a sequence."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int):
        super().__init__()
        self.embed = nn.Linear(inputs, hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Map `(B, T, inputs)` to `(B, T, outputs)`, going on from a state (zero by default)."""
        features, state = self.lstm(self.embed(x), state)
        return self.output(features), state


class SVG(VideoModel):
    """Stochastic video generation."""

    def __init__(self, config: Config, shape: VideoShape):
        super().__init__(config, shape)
        c = config
        self.encoder = ENCODERS[c.architecture](shape, c.nf, c.g_dim)
        self.decoder = DECODERS[c.architecture](shape, c.nf, c.g_dim)
        self.predictor = SequenceNetwork(c.g_dim + c.z_dim, c.rnn_size, c.g_dim, c.predictor_layers)
        # Both output mean and log-variance.
        self.q_z = SequenceNetwork(c.g_dim, c.rnn_size, 2 * c.z_dim, c.posterior_layers)
        self.p_z = None
        if c.prior == "learned":
            self.p_z = SequenceNetwork(c.g_dim, c.rnn_size, 2 * c.z_dim, c.prior_layers)
        networks.init_convolutions(self)
        _init_linear(self)  # LSTMs keep PyTorch's initialisation

    def draw_noise(self, count: int, frames: int, generator: torch.Generator) -> Noise:
        shape = (count, frames - 1, self.config.z_dim)
        return Noise(torch.randn(shape, generator=generator, device=generator.device))

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode every frame: h `(B, T, g_dim)` and maps `(B, T, C', H', W')`, deepest first.

        In training, batch norm normalises over the videos of one time step. The authors' LP code
        moreover encodes each frame but the first and last twice, as a target and as an input,
        which changes nothing but the running statistics: they move twice.
        """
        last = x.shape[1] - 1
        repeats = [2 if self.p_z is not None and 0 < t < last else 1 for t in range(last + 1)]
        with statistics_of_steps(self.encoder, repeats):
            h, maps = self.encoder(x.flatten(0, 1))
        return h.unflatten(0, x.shape[:2]), [m.unflatten(0, x.shape[:2]) for m in maps]

    def decode(self, g: Tensor, maps: list[Tensor]) -> Tensor:
        """Decode g `(B, T, g_dim)` of frames 2, 3, ... with the maps of frames 1, 2, ...

        Skips come from the frame before, but from none after the last but one given frame.
        """
        own = self.config.conditioning_frames - 1  # so many frames have skips of their own
        parts = [(g[:, :own], [m[:, :own][:, : g.shape[1]].flatten(0, 1) for m in maps])]
        if g.shape[1] > own:
            parts.append((g[:, own:], [m[:, own - 1] for m in maps]))
        frames = []
        for vectors, skips in parts:
            with statistics_of_steps(self.decoder, [1] * vectors.shape[1]):
                x = self.decoder(vectors.flatten(0, 1), skips)
            frames.append(x.unflatten(0, vectors.shape[:2]))
        return torch.cat(frames, dim=1)

    def posterior(self, h: Tensor) -> Normal:
        """q(z_t | x_2, ..., x_t) for t = 2, ..., T: from `(B, T, g_dim)` to `(B, T - 1, z_dim)`."""
        return _normal(self.q_z(h[:, 1:])[0])

    def prior(self, h: Tensor, state: LSTMState | None = None) -> tuple[Normal, LSTMState | None]:
        """p(z) of the frames that follow those of `h` `(B, T, g_dim)`, and the LSTM's state."""
        if self.p_z is None:
            zeros = torch.zeros(*h.shape[:2], self.config.z_dim, device=h.device)
            return Normal(zeros, torch.ones_like(zeros), validate_args=False), None
        raw, state = self.p_z(h, state)
        return _normal(raw), state

    def advance(
        self, h: Tensor, z: Tensor, state: LSTMState | None = None
    ) -> tuple[Tensor, LSTMState]:
        """g `(B, T, g_dim)` in [-1, 1] of the frames that follow those of `h`, and the state."""
        g, state = self.predictor(torch.cat([h, z], dim=-1), state)
        return g.tanh(), state

    def forward(self, x: Tensor, noise: Noise) -> Reconstruction:
        """Predict each frame of `(B, T, C, H, W)` but the first from the true ones before it."""
        h, maps = self.encode(x)
        q_z, (p_z, _) = self.posterior(h), self.prior(h[:, :-1])
        g, _ = self.advance(h[:, :-1], networks.sample(q_z, noise.z))
        return Reconstruction(self.decode(g, maps), q_z, p_z)

    def _loss(self, clips: Clips, randomness: Noise, objective: str) -> Loss:
        """The authors' objective, with its mixed reductions."""
        x = clips.frames
        out = self(x, randomness)
        mse = F.mse_loss(out.x.float(), x[:, 1:]) * out.x.shape[1]
        kl = kl_divergence(out.q_z, out.p_z).sum() / len(x)
        return Loss(mse + self.config.beta * kl, mse, kl)

    def _condition(self, clips: Clips) -> State:
        h, maps = self.encode(clips.frames)
        return State(h, self.posterior(h), [m[:, -2] for m in maps])

    def _predict(self, state: State, frames: int, noise: Noise) -> Prediction:
        """Sample futures: z from the posterior for the given frames, from the prior after them."""
        state = _repeat(state, len(noise.z) // len(state.h))
        passed = state.h.shape[1] - 1
        z = state.q_z.mean
        if self.p_z is not None:
            z = networks.sample(state.q_z, noise.z[:, :passed])
        _, prior_state = self.prior(state.h[:, :-1])
        _, lstm_state = self.advance(state.h[:, :-1], z)
        h, x = state.h[:, -1:], []
        for eps in noise.z[:, passed : passed + frames].split(1, dim=1):
            if x:
                h = self.encoder(x[-1])[0][:, None]
            p_z, prior_state = self.prior(h, prior_state)
            g, lstm_state = self.advance(h, networks.sample(p_z, eps), lstm_state)
            x.append(self.decoder(g[:, 0], state.skips))
        return Prediction(torch.stack(x, dim=1))


def _normal(raw: Tensor) -> Normal:
    """Split the last axis into mean and natural logarithm of the variance."""
    mean, logvar = raw.float().chunk(2, dim=-1)
    return Normal(mean, (0.5 * logvar).exp(), validate_args=False)


def _repeat(state: State, samples: int) -> State:
    """Repeat what is known of every clip `samples` times, copies side by side."""
    h = state.h.repeat_interleave(samples, dim=0)
    return State(h, networks.repeat_normal(state.q_z, samples), state.skips)  # samples share skips


def _init_linear(module: nn.Module) -> None:
    """Draw the weights of linear maps from N(0, 0.02), biases 0, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            nn.init.zeros_(layer.bias)
