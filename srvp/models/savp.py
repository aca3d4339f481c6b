"""SAVP: stochastic adversarial video prediction (Lee et al., 2018), and its ablations.

A generator draws frame after frame: it moves the pixels of the frame before with kernels (CDNA) and
blends the results with that frame, the first frame and a scratch image. It is trained as a
variational autoencoder and as a generative adversarial network at once, in two passes:

    posterior pass   z_t ~ q(z_t | x_t, x_{t+1})    for every t
    prior pass       the same z_t for the given frames, then z_t ~ N(0, I)

    generator's loss = l1_weight mean |x - x'|                          x' from the posterior pass
                     + kl_weight KL(q(z_t | ...) || N(0, I))
                     + gan_weight (D(x'') - 1)^2                        x'' from the prior pass
                     + vae_gan_weight (D'(x') - 1)^2
                     + the distance of the discriminators' features of true and generated clips
    discriminators'  = gan_weight ((D(x) - 1)^2 + D(x'')^2) + vae_gan_weight (likewise, D' and x')

A step updates the discriminators first; the generator then meets the updated ones. The ablations
are settings: a VAE has no GAN weights, a deterministic model neither those nor z (nz is 0), a GAN
neither the KL nor D'.

Published numbers came from public code (github.com/alexlee-gk/video_prediction, commit df43be5),
which this file follows, also where it departs from the paper:

- Given frames count in all losses.
- In the GAN ablation, z of the L1 term still comes from the posterior.
- True and generated clips start at frames of their own, so that the features of different times are
  compared; with `shared_windows` they start together, as in that code before December 2018.

The published weights are older: they were trained with z from the prior while the model is given
frames, which `predict(..., context="prior")` does.

Shapes: B clips, T frames, C channels; x (B, T, C, H, W) in [0, 1]; z (B, T - 1, nz), z[:, 0] being
the one that leads from the first frame to the second.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srvp.models.interface import Clips, ModelConfig, VideoModel, VideoShape
from srvp.models.parts import cdna, networks
from srvp.models.parts.discriminators import VideoDiscriminator
from srvp.models.parts.savp_networks import (
    ENCODERS,
    Cell,
    CellState,
    PosteriorEncoder,
    Transformation,
)
from srvp.models.parts.tf_layers import tile
from srvp.schema import ConfigError, Count, Real, Whole

PASSES = ("posterior", "prior")  # the order of the random windows' axis
State = CellState | None  # None before the first frame
LEAST_TRUE_RATE = 0.001  # of scheduled sampling: below, no true frame is used


@dataclass(frozen=True)
class Config(ModelConfig):
    """Sizes and objective; defaults are the public code's settings of the whole model."""

    takes_actions = True
    terms = {  # noqa: RUF012 (a constant)
        "discriminators_total": "discriminators' loss",
        "generator_total": "generator's loss",
        "generator_l1": "absolute error per pixel",
        "generator_l2": "squared error per pixel",
        "generator_kl": "KL of z per frame (nats)",
    }
    nz: Whole  # size of z; 0: no z
    conditioning_frames: Count  # P: in training, the first P frames are always true ones
    kl_weight: Real  # at last
    ngf: Count = 32  # channels of the generator's first layer
    nef: Count = 64  # channels of the encoder's first layer
    ndf: Count = 32  # channels of a discriminator's first layer
    transformation: Transformation = "cdna"  # kernels per frame or per pixel, or flows
    clip_length: Annotated[int, 4] = 10  # frames that a discriminator sees
    shared_windows: bool = False  # whether true and generated clips start at the same frame
    l1_weight: Real = 100.0
    l2_weight: Real = 0.0
    gan_weight: Real = 0.1  # of the discriminator of the prior pass
    vae_gan_weight: Real = 0.1  # of the discriminator of the posterior pass
    gan_features_weight: Real = 0.0  # of the distance of the features of the prior pass
    vae_gan_features_weight: Real = 10.0  # likewise, of the posterior pass
    kl_start: Whole = 50000  # training steps after which the KL has a weight
    kl_end: Whole = 100000  # and after which it is kl_weight
    sampling_k: Real = 900.0  # k of scheduled sampling: half true frames after k log k steps

    def __post_init__(self) -> None:
        if self.kl_end < self.kl_start:
            raise ConfigError(f"kl_end is {self.kl_end}, before kl_start, {self.kl_start}")
        for name, gan in self.gan_weights.items():
            key = "gan_features_weight" if name == "prior" else "vae_gan_features_weight"
            if self.features_weights[name] and not gan:
                raise ConfigError(
                    f"{key} is {self.features_weights[name]}, but there is no such discriminator: "
                    f"raise {key.replace('features_', '')} or write 0"
                )
        if not self.nz and self.vae_gan_weight:
            raise ConfigError(
                f"vae_gan_weight is {self.vae_gan_weight}, but without z (nz is 0) there is no "
                "posterior pass: write 0"
            )

    def check_training(self, frames: int) -> None:
        if self.adversarial and frames <= self.clip_length:
            raise ConfigError(
                f"training.frames is {frames}, but discriminators see model.clip_length, "
                f"{self.clip_length}, of the frames after the first: raise it or lower clip_length"
            )

    def build(self, shape: VideoShape) -> "SAVP":
        if shape.size not in ENCODERS:
            raise ConfigError(f"data.size is {shape.size}; SAVP needs one of {sorted(ENCODERS)}")
        return SAVP(self, shape)

    @property
    def gan_weights(self) -> dict[str, float]:
        """Weight of each pass' discriminator."""
        return {"posterior": self.vae_gan_weight, "prior": self.gan_weight}

    @property
    def features_weights(self) -> dict[str, float]:
        """Weight of the distance of each pass' features."""
        return {"posterior": self.vae_gan_features_weight, "prior": self.gan_features_weight}

    @property
    def adversarial(self) -> bool:
        """Whether there are discriminators: two, even if only one has a weight."""
        return self.gan_weight > 0 or self.vae_gan_weight > 0

    @property
    def predict_options(self) -> Mapping[str, Any]:
        return {"context": Literal["posterior", "prior"]} if self.nz else {}


class Noise(NamedTuple):
    """Standard normal noise, one draw per frame but the first."""

    z: Tensor  # (B, T - 1, nz)


class Randomness(NamedTuple):
    """Every random choice of a training step, and what changes with the step."""

    posterior: Tensor  # (B, T - 1, nz) noise of the posterior's samples, which both passes share
    prior: Tensor  # (B, T - 1, nz) samples of the prior
    true_frames: Tensor  # (B, passes, T - 1) whether a step is given the true frame
    # First frames of the clips that are judged: in the discriminators' and in the generator's
    # objective; of each pass; of true and generated clips.
    windows: Tensor  # (B, 2, passes, 2)
    kl_weight: Tensor  # ()


class Generated(NamedTuple):
    """Clips predicted frame by frame, in one or two passes."""

    passes: dict[str, Tensor]  # frames 2, ..., T by name of the pass: (B, T - 1, C, H, W)
    drawn: list[cdna.Drawn]  # what each is made of, the clips of one pass after the other's
    mean: Tensor  # of q(z_t | x_t, x_{t+1}): (B, T - 1, nz)
    log_variance: Tensor  # likewise


class Prediction(NamedTuple):
    """Frames that follow the given ones."""

    x: Tensor  # (B, frames, C, H, W)


class GeneratorLoss(NamedTuple):
    """Terms of the generator's objective, without their weights."""

    total: Tensor
    l1: Tensor  # a mean over frames 2, ..., T, clips, channels and pixels
    l2: Tensor  # likewise, of the squared error
    kl: Tensor  # KL(q(z_t) || N(0, I)) in nats, a mean over clips and times
    gan: Tensor  # mean (D(x'') - 1)^2
    vae_gan: Tensor  # mean (D'(x') - 1)^2
    gan_features: Tensor  # see `feature_distance`
    vae_gan_features: Tensor


class DiscriminatorLoss(NamedTuple):
    """Terms of the discriminators' objective, without their weights."""

    total: Tensor
    gan: Tensor  # mean (D(x) - 1)^2 + mean D(x'')^2
    vae_gan: Tensor


class SAVP(VideoModel):
    """Stochastic adversarial video prediction."""

    def __init__(self, config: Config, shape: VideoShape):
        super().__init__(config, shape)
        c = config
        self.cell = Cell(shape, c.ngf, c.nz, c.transformation)
        self.encoder = PosteriorEncoder(shape, c.nef, c.nz) if c.nz else None
        passes = PASSES if c.adversarial and c.nz else PASSES[1:] if c.adversarial else ()
        self.discriminators = nn.ModuleDict(
            {name: VideoDiscriminator(shape, c.clip_length, c.ndf) for name in passes}
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        judges = set(self.discriminators.parameters())
        groups = {"generator": [p for p in self.parameters() if p not in judges]}
        if self.discriminators:
            groups["discriminators"] = list(self.discriminators.parameters())
        return groups

    def objectives(self, step: int) -> dict[str, tuple[str, ...]]:
        names = ("discriminators", "generator") if self.config.adversarial else ("generator",)
        return {name: (name,) for name in names}

    def draw_noise(self, count: int, frames: int, generator: torch.Generator) -> Noise:
        shape = (count, frames - 1, self.config.nz)
        return Noise(torch.randn(shape, generator=generator, device=generator.device))

    def draw_randomness(
        self, count: int, frames: int, step: int, generator: torch.Generator
    ) -> Randomness:
        c, random = self.config, {"generator": generator, "device": generator.device}
        rate = cdna.true_frame_rate(step, c.sampling_k)
        chance = torch.rand(count, len(PASSES), frames - 1, **random)
        true_frames = chance < (rate if rate >= LEAST_TRUE_RATE else 0.0)
        c.check_training(frames)
        starts = frames - c.clip_length if c.adversarial else 1
        windows = torch.randint(starts, (count, 2, len(PASSES), 2), **random)
        if c.shared_windows:
            windows = windows[..., :1].expand_as(windows).clone()
        weight = c.kl_weight * cdna.ramp(step, c.kl_start, c.kl_end)
        return Randomness(
            self.draw_noise(count, frames, generator).z,
            self.draw_noise(count, frames, generator).z,
            cdna.first_true(true_frames, c.conditioning_frames),
            windows,
            torch.full((), weight, device=generator.device),
        )

    def infer(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """q(z_t | x_t, x_{t+1}) of T frames: mean and log-variance `(B, T - 1, nz)`."""
        x = clips.frames
        if self.encoder is None:
            empty = x.new_empty(len(x), x.shape[1] - 1, 0)
            return empty, empty
        pairs = torch.cat([x[:, :-1], x[:, 1:]], dim=2).flatten(0, 1)
        if self.shape.actions:
            actions = clips.actions[:, : x.shape[1] - 1].flatten(0, 1)
            pairs = torch.cat([pairs, tile(actions, pairs)], dim=1)
        mean, log_variance = self.encoder(pairs)
        times = (len(x), x.shape[1] - 1)
        return mean.unflatten(0, times), log_variance.unflatten(0, times)

    def forward(
        self, clips: Clips | Tensor, randomness: Randomness, passes: tuple[str, ...] = PASSES
    ) -> Generated:
        """Predict each frame of clips but the first (training), in all passes at once."""
        clips, r = self.check_shape(clips), randomness
        mean, log_variance = self.infer(clips)
        z = mean + (log_variance / 2).exp() * r.posterior
        given = self.config.conditioning_frames - 1
        by_pass = {"posterior": z, "prior": torch.cat([z[:, :given], r.prior[:, given:]], dim=1)}
        z = torch.cat([by_pass[name] for name in passes])
        true_frames = torch.cat([r.true_frames[:, PASSES.index(name)] for name in passes])
        repeated = Clips(*(p if p is None else torch.cat([p] * len(passes)) for p in clips))
        drawn = list(self._unroll(repeated, clips.frames.shape[1] - 1, z, true_frames))
        x = torch.stack([d.x for d in drawn], dim=1).split(len(clips.frames))
        return Generated(dict(zip(passes, x, strict=True)), drawn, mean, log_variance)

    def _unroll(
        self, clips: Clips, steps: int, z: Tensor, true_frames: Tensor | None = None
    ) -> Iterator[cdna.Drawn]:
        first = clips.frames[:, 0]

        def advance(t: int, x: Tensor, state: State):
            action = clips.actions[:, t] if self.shape.actions else None
            return self.cell(x, first, z[:, t], action, state)

        return cdna.unroll(advance, clips.frames, steps, true_frames)

    def _loss(self, clips: Clips, randomness: Randomness, objective: str) -> NamedTuple:
        if objective == "discriminators":
            return self._discriminator_loss(clips, randomness)
        return self._generator_loss(clips, randomness)

    def _discriminator_loss(self, clips: Clips, randomness: Randomness) -> DiscriminatorLoss:
        weights = {name: weight for name, weight in self.config.gan_weights.items() if weight}
        with torch.no_grad():
            generated = self(clips, randomness, tuple(weights)).passes
        terms = dict.fromkeys(PASSES, clips.frames.new_zeros(()))
        for name, x in generated.items():
            windows = randomness.windows[:, 0, PASSES.index(name)]
            true, fake = self._cut(clips, x, windows)
            terms[name] = self.discriminators[name].loss(true, fake)
        total = sum(weight * terms[name] for name, weight in weights.items())
        return DiscriminatorLoss(total, terms["prior"], terms["posterior"])

    def _generator_loss(self, clips: Clips, randomness: Randomness) -> GeneratorLoss:
        c = self.config
        reconstruction = "posterior" if c.nz else "prior"
        passes = PASSES if c.nz and c.gan_weight else (reconstruction,)
        out = self(clips, randomness, passes)
        true, x = clips.frames[:, 1:], out.passes[reconstruction]
        l1, l2 = F.l1_loss(x, true), F.mse_loss(x, true)
        divergence = out.mean.square() + out.log_variance.exp() - 1 - out.log_variance
        kl = 0.5 * divergence.sum(dim=-1).mean()
        total = c.l1_weight * l1 + c.l2_weight * l2 + randomness.kl_weight * kl
        gan, features = (dict.fromkeys(PASSES, x.new_zeros(())) for _ in range(2))
        for name, weight in c.gan_weights.items():
            if not weight:
                continue
            windows = randomness.windows[:, 1, PASSES.index(name)]
            real, fake = self._cut(clips, out.passes[name], windows)
            compare, judge = c.features_weights[name], self.discriminators[name]
            gan[name], features[name] = judge.loss_of_fakes(fake, real if compare else None)
            total = total + weight * gan[name] + compare * features[name]
        gans, distances = ([term[name] for name in reversed(PASSES)] for term in (gan, features))
        return GeneratorLoss(total, l1, l2, kl, *gans, *distances)

    def _cut(self, clips: Clips, generated: Tensor, starts: Tensor) -> list[Tensor]:
        """Cut a clip from each true and each generated sequence, at starts `(B, 2)`."""
        times = starts[..., None] + torch.arange(self.config.clip_length, device=starts.device)
        both = (clips.frames[:, 1:], generated)
        return [networks.pick(x, times[:, i]) for i, x in enumerate(both)]

    def _condition(self, clips: Clips) -> tuple[Clips, Tensor, Tensor]:
        return clips, *self.infer(clips)

    def _predict(
        self,
        state: tuple[Clips, Tensor, Tensor],
        frames: int,
        noise: Noise,
        context: Literal["posterior", "prior"] = "posterior",
    ) -> Prediction:
        """Sample futures.

        While the model is given frames, z comes from the posterior or from the prior (`context`).
        """
        clips, *q_z = state
        z, passed = noise.z, clips.frames.shape[1] - 1
        if context == "posterior":
            mean, log_variance = (p.repeat_interleave(len(z) // len(p), dim=0) for p in q_z)
            inferred = mean + (log_variance / 2).exp() * z[:, :passed]
            z = torch.cat([inferred, z[:, passed:]], dim=1)
        return Prediction(cdna.predict(self._unroll, clips, frames, z))
