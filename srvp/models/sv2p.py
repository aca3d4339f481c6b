"""SV2P: stochastic variational video prediction (Babaeizadeh et al., ICLR 2018).

The predictor is CDNA (Finn et al., 2016): convolutional LSTMs that turn a frame into kernels, which
move its pixels, and masks, which blend the moved images, the frame itself and a scratch image.

    z        ~ N(0, I)                             one per clip, or one per frame (time-variant)
    x_{t+1}  = masks . (x_t, scratch image, moved x_t)   from x_t, z and the states of the LSTMs

    q(z | x_1, ..., x_T)                           approximate posterior, by a convolutional tower

    loss = mean squared error of x_2, ..., x_T + beta KL(q(z | ...) || N(0, I))

Training has three stages: z from the prior (as if the model were deterministic), then from the
posterior at no cost, then with a KL whose weight rises. By scheduled sampling, ever fewer clips of
a batch are continued from true frames.

Published numbers came from public code (github.com/alexlee-gk/video_prediction, commit df43be5),
which this file follows, also where it departs from the papers:

- The KL is a mean over the cells of z and over clips, not a sum. Given frames count in the error.
- The posterior's last layer norm fixes how far the means of a clip's cells lie apart.
- There are 12 images for 11 masks: the last kernel's image is dropped (inherited from CDNA), and
  its weights never change. `all_kernels` gives it a mask.

That code also holds 24 weights that predict the state of a robot arm, which no loss reaches, and
runs a second pass with z from the prior to display it; both are left out. With actions, it is given
the arm's state as well.

Shapes: B clips, T frames, C channels; x (B, T, C, H, W) in [0, 1]; z (B, 1, H / 8, W / 8), and
(B, T - 1, 1, H / 8, W / 8) if it is time-variant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srvp.models.interface import Clips, ModelConfig, VideoModel, VideoShape
from srvp.models.parts import cdna
from srvp.models.parts.tf_layers import (
    ConvLSTM,
    SameConv2d,
    SameUpConv2d,
    State,
    full_precision,
    layer_norm,
    rows_first,
    tile,
)
from srvp.schema import ConfigError, Count, Real, Whole

KERNELS = 10
LEAST_LOG_VARIANCE = -5.0
States = list[State] | None  # of the LSTMs; None before the first frame


@dataclass(frozen=True)
class Config(ModelConfig):
    """Variant and training, by default those of the public code."""

    takes_actions = True
    terms = {"mse": "squared error per pixel", "kl": "KL of z per cell (nats)"}  # noqa: RUF012
    conditioning_frames: Count  # P: in training, the first P frames are always true ones
    posterior_frames: Count  # T: frames that the posterior sees, as many as training.frames
    beta: Real  # weight of the KL, at last
    nf: Count = 32  # channels of the first layers; the public code fixes them
    time_variant: bool = False  # whether z is drawn anew for each frame
    transformation: Literal["cdna", "dna"] = "cdna"  # kernels per frame, or per pixel
    all_kernels: bool = False  # a mask for the last kernel too, which the public code lacks
    prior_steps: Whole = 50000  # training steps with z from the prior: the first stage
    kl_start: Whole = 100000  # training steps after which the KL has a weight: the third stage
    kl_end: Whole = 120000  # and after which the weight is beta
    sampling_k: Real = 900.0  # k of scheduled sampling: half true frames after k log k steps

    def __post_init__(self) -> None:
        if self.kl_end < self.kl_start:
            raise ConfigError(f"kl_end is {self.kl_end}, before kl_start, {self.kl_start}")
        if self.all_kernels and self.transformation == "dna":
            raise ConfigError("all_kernels is for cdna; dna has one kernel per pixel: write false")

    def check_training(self, frames: int) -> None:
        if frames != self.posterior_frames:
            raise ConfigError(
                f"training.frames is {frames}, but model.posterior_frames is "
                f"{self.posterior_frames}: make them equal"
            )

    def build(self, shape: VideoShape) -> "SV2P":
        return SV2P(self, shape)


class Noise(NamedTuple):
    """Standard normal noise."""

    z: Tensor  # (B, 1, H / 8, W / 8); (B, T - 1, 1, H / 8, W / 8) if z is time-variant


class Randomness(NamedTuple):
    """Every random choice of a training step, and what changes with the step."""

    noise: Noise
    true_frames: Tensor  # (B, T - 1) whether a step is given the true frame
    from_posterior: Tensor  # () whether z is drawn from the posterior rather than the prior
    kl_weight: Tensor  # ()


class Posterior(NamedTuple):
    """q(z | x_1, ..., x_T)."""

    mean: Tensor  # (B, 1, H / 8, W / 8)
    log_variance: Tensor  # likewise


class Reconstruction(NamedTuple):
    """A clip predicted frame by frame."""

    x: Tensor  # (B, T - 1, C, H, W) frames 2, ..., T
    drawn: list[cdna.Drawn]  # what each is made of
    q_z: Posterior


class Prediction(NamedTuple):
    """Frames that follow the given ones."""

    x: Tensor  # (B, frames, C, H, W)


class Loss(NamedTuple):
    """Terms of the objective."""

    total: Tensor  # mse + kl_weight kl
    mse: Tensor  # a mean over frames 2, ..., T (given frames as well), clips, channels and pixels
    kl: Tensor  # KL(q(z) || N(0, I)) in nats, a mean over clips and cells


class Predictor(nn.Module):
    """Draws the next frame from a frame, z and the states of seven convolutional LSTMs."""

    def __init__(self, config: Config, shape: VideoShape):
        super().__init__()
        self.dna = config.transformation == "dna"
        # The frame, the scratch image (not in DNA) and the moved ones, but for the dropped one.
        self.images = 2 if self.dna else KERNELS + 1 + config.all_kernels
        n = config.nf
        self.e0 = SameConv2d(shape.channels, n, 5, 2, bias=False)
        self.e0_norm = layer_norm(n)
        self.e1 = SameConv2d(n, n, 3, 2)
        self.e2 = SameConv2d(2 * n, 2 * n, 3, 2)
        self.e3 = nn.Conv2d(2 * n + shape.actions + 1, 2 * n, 1)
        self.e4 = SameUpConv2d(4 * n, 4 * n)
        self.e5 = SameUpConv2d(3 * n, 3 * n)
        self.e6 = SameUpConv2d(2 * n, 2 * n, bias=False)
        self.e6_norm = layer_norm(2 * n)
        # Inputs and channels of the LSTMs, in units of n.
        widths = ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 2), (3, 1))
        self.lstms = nn.ModuleList(ConvLSTM(a * n, b * n) for a, b in widths)
        self.norms = nn.ModuleList(layer_norm(b * n) for _, b in widths)
        self.masks = nn.Conv2d(2 * n, self.images, 1)
        if self.dna:
            self.kernels = nn.Conv2d(2 * n, cdna.TAPS, 1)
        else:
            self.scratch = nn.Conv2d(2 * n, shape.channels, 1)
            self.kernels = nn.Linear(4 * n * (shape.size // 8) ** 2, cdna.TAPS * KERNELS)

    def forward(
        self, x: Tensor, z: Tensor, action: Tensor | None, states: list[State | None] | None
    ) -> tuple[cdna.Drawn, list[State]]:
        """Draw the frame after x.

        Args:
            x: a frame `(B, C, H, W)`.
            z: `(B, 1, H / 8, W / 8)`.
            action: taken at that frame `(B, A)`, if the model is given actions.
            states: of the LSTMs; None before the first frame.
        """
        states = [None] * len(self.lstms) if states is None else list(states)

        def lstm(n: int, x: Tensor) -> Tensor:
            states[n] = self.lstms[n](x, states[n])
            return self.norms[n](states[n][1])  # the states stay as they are

        e0 = F.relu(self.e0_norm(self.e0(x)))
        e1 = F.relu(self.e1(lstm(1, lstm(0, e0))))
        e2 = F.relu(self.e2(lstm(3, lstm(2, e1))))
        given = [e2, z] if action is None else [e2, tile(action, e2), z]
        h5 = lstm(4, F.relu(self.e3(torch.cat(given, dim=1))))
        h6 = lstm(5, F.relu(self.e4(h5)))
        h7 = lstm(6, F.relu(self.e5(torch.cat([h6, e1], dim=1))))
        e6 = self.e6_norm(self.e6(torch.cat([h7, e0], dim=1)))
        return self._draw(x, h5, e6), states

    def _draw(self, x: Tensor, h5: Tensor, e6: Tensor) -> cdna.Drawn:
        masks = self.masks(e6).softmax(dim=1)
        if self.dna:
            kernels, images = cdna.normalise(self.kernels(e6)[:, None]), [x[:, None]]
        else:
            taps = self.kernels(rows_first(h5)).unflatten(1, (cdna.TAPS, KERNELS))
            kernels = cdna.normalise(taps.transpose(1, 2))
            images = [x[:, None], full_precision(self.scratch(e6)).sigmoid()[:, None]]
        kept = kernels[:, : self.images - len(images)]
        images = torch.cat([*images, cdna.move(cdna.pad_zeros(x), kept)], dim=1)
        return cdna.Drawn(cdna.blend(masks, images), masks, images, kernels)


class Tower(nn.Module):
    """The posterior: from all frames of a clip to z."""

    def __init__(self, frames: int, shape: VideoShape, nf: int):
        super().__init__()
        widths = ((frames * shape.channels, nf, 2), (nf, 2 * nf, 2), (2 * nf, 2 * nf, 1))
        layers = (
            [SameConv2d(inputs, out, 3, stride, bias=False), layer_norm(out), nn.ReLU()]
            for inputs, out, stride in widths
        )
        self.trunk = nn.Sequential(*(layer for stage in layers for layer in stage))
        self.mean = nn.Sequential(SameConv2d(2 * nf, 1, 3, 2, bias=False), layer_norm(1))
        self.log_variance = nn.Sequential(SameConv2d(2 * nf, 1, 3, 2, bias=False), layer_norm(1))

    def forward(self, x: Tensor) -> Posterior:
        """Infer q(z) of clips `(B, T, C, H, W)`."""
        h = self.trunk(x.flatten(1, 2))
        log_variance = F.relu(self.log_variance(h)) + LEAST_LOG_VARIANCE
        return Posterior(self.mean(h), log_variance)


class SV2P(VideoModel):
    """Stochastic variational video prediction."""

    def __init__(self, config: Config, shape: VideoShape):
        super().__init__(config, shape)
        self.predictor = Predictor(config, shape)
        self.tower = Tower(config.posterior_frames, shape, config.nf)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def draw_noise(self, count: int, frames: int, generator: torch.Generator) -> Noise:
        times = (frames - 1,) if self.config.time_variant else ()
        shape = (count, *times, 1, self.shape.size // 8, self.shape.size // 8)
        return Noise(torch.randn(shape, generator=generator, device=generator.device))

    def draw_randomness(
        self, count: int, frames: int, step: int, generator: torch.Generator
    ) -> Randomness:
        """Draw all that is random in a step; of each frame, as many true ones as the rate says."""
        c, device = self.config, generator.device
        noise = self.draw_noise(count, frames, generator)
        order = torch.rand(count, frames - 1, generator=generator, device=device).argsort(dim=0)
        true_count = round(count * cdna.true_frame_rate(step, c.sampling_k))
        return Randomness(
            noise,
            cdna.first_true(order < true_count, c.conditioning_frames),
            torch.full((), step > c.prior_steps, device=device),
            torch.full((), c.beta * cdna.ramp(step, c.kl_start, c.kl_end), device=device),
        )

    def forward(self, clips: Clips | Tensor, randomness: Randomness) -> Reconstruction:
        """Predict each frame of clips but the first (training)."""
        clips = self.check_shape(clips)
        x, noise = clips.frames, randomness.noise.z
        q_z = self.infer(x)
        mean, log_variance = (q[:, None] if self.config.time_variant else q for q in q_z)
        sample = mean + (log_variance / 2).exp() * noise
        z = torch.where(randomness.from_posterior, sample, noise)
        steps = x.shape[1] - 1
        drawn = list(self._unroll(clips, steps, z, randomness.true_frames))
        return Reconstruction(torch.stack([d.x for d in drawn], dim=1), drawn, q_z)

    def infer(self, x: Tensor) -> Posterior:
        """q(z | x) of clips `(B, T, C, H, W)`.

        Raises:
            ValueError: they are not of the length that the tower was built for.
        """
        self.config.check_training(x.shape[1])
        return self.tower(x)

    def _unroll(
        self, clips: Clips, steps: int, z: Tensor, true_frames: Tensor | None = None
    ) -> Iterator[cdna.Drawn]:
        def advance(t: int, x: Tensor, states: States):
            z_t = z[:, t] if self.config.time_variant else z
            action = clips.actions[:, t] if self.shape.actions else None
            return self.predictor(x, z_t, action, states)

        return cdna.unroll(advance, clips.frames, steps, true_frames)

    def _loss(self, clips: Clips, randomness: Randomness, objective: str) -> Loss:
        out = self(clips, randomness)
        mse = F.mse_loss(out.x, clips.frames[:, 1:])
        mean, log_variance = out.q_z
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return Loss(mse + randomness.kl_weight * kl, mse, kl)

    def _condition(self, clips: Clips) -> Clips:
        return clips

    def _predict(self, state: Clips, frames: int, noise: Noise) -> Prediction:
        """Sample futures; z is from the prior, also while the model is given frames."""
        return Prediction(cdna.predict(self._unroll, state, frames, noise.z))
