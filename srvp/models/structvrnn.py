"""StructVRNN, or SVRNN: video prediction with learned keypoints (Minderer et al., NeurIPS 2019).

A detector reduces every frame to K keypoints, a recurrent model predicts these, and a decoder
paints the frame: the first frame, changed as the keypoints have moved.

    k_t = Detect(x_t)                                              keypoints: x, y, scale
    x_t = x_1 + Paint(k_t, Appearance(x_1), k_1)                   a frame

    z_t ~ p(z_t | h_t)                                             prior
    k_t = Decode(h_t, z_t)                                         keypoint decoder
    h_{t+1} = GRU([k_t, z_t], h_t), h_1 = 0
    q(z_t | h_t, k_t)                                              approximate posterior

    loss = 1/2 |x - x_1 - Paint(...)|^2 + separation + sparsity + |kernels|^2        vision
         + 1/2 |k - Decode(h, z)|^2 + beta KL(q || p)                                dynamics

    frame     1   ...   P     P + 1   ...   T
    z from    q   ...   q     p       ...   p

One optimizer trains both parts, but no gradient passes between them: the dynamics see detached
keypoints, and in training a frame is painted from the keypoints that were detected in it.

Where the paper leaves a choice open, this module follows the authors' code (google-research,
`video_structure`). These points are easily missed:

- In training, the model draws N samples per frame and keeps the one whose keypoints are nearest to
  the true ones, after frame P as well. Only this sample receives gradients.
- After frame P, z comes from the prior without its gradient: the KL alone teaches the prior. With
  beta = 0, the default there, predictions come from an untrained prior.
- Scheduled sampling tosses one coin per frame for the whole batch. In prediction, the GRU always
  sees the model's own keypoints; the given ones act only through z.
- The GRU is that of Keras: its sigmoids are hard, and the reset acts before its product.
- `keypoint_width` is documented there as pixels of a heat map, but coordinates span 2, not w.

This module differs from that code in three points:

- There, the sparsity term is a sum over T frames that is divided by B once more. Here it is a mean:
  their weight of 5 is a `sparsity` of 5 T / B, which is 2.5 for their 16 frames and 32 videos.
- The appearance encoder stops at `heatmap_width`; there, always at 16.
- That code predicts keypoints. Painting them with the same decoder is the author's answer to how
  one predicts frames (google-research, issue 417).

Shapes: B videos, T frames, C channels; x (B, T, C, H, H) in [0, 1], which the networks see in
[-1/2, 1/2]; keypoints (B, T, K, 3), see `srvp.models.parts.keypoints`, those that the model
predicts with scales in (-1, 1); heat maps (B, T, K, w, w); z (B, T, z_dim); h (B, rnn_size).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from srvp.models.interface import Clips, ModelConfig, VideoModel, VideoShape
from srvp.models.parts import keypoints as kp
from srvp.models.parts import networks
from srvp.models.parts import tf_layers as tf
from srvp.schema import ConfigError, Count, Real

DECODER_SIZE = 128  # hidden units of the keypoint decoder, fixed in the authors' code
LEAST_TRUE = 0.1, 0.5  # final probabilities that the GRU sees true keypoints, until P and after


@dataclass(frozen=True)
class Config(ModelConfig):
    """Sizes and objective; defaults are those of the authors' code."""

    terms = {  # noqa: RUF012 (a constant)
        "image": "squared error per frame / 2",
        "separation": "likeness of trajectories",
        "sparsity": "mean of the heat maps",
        "coordinates": "error of the keypoints / 2",
        "kl": "KL of z per frame (nats)",
        "kernels": "squared kernels",
    }
    conditioning_frames: Count  # P: training frames whose z comes from the posterior (8 there)
    beta: Real  # weight of the KL (0 there, which cannot predict)
    keypoints: Annotated[int, 2] = 64  # K
    nf: Count = 32  # channels of the encoders' first stage
    layers_per_scale: Count = 2  # convolutions per resolution; encoders have one more
    heatmap_width: Count = 16  # w: height and width of a heat map in pixels
    keypoint_width: Real = 1.5  # standard deviation of a drawn keypoint in coordinates, times w
    rnn_size: Count = 512  # units of the GRU
    prior_size: Count = 128  # hidden units of the prior
    posterior_size: Count = 128  # hidden units of the posterior
    z_dim: Count = 16  # size of the stochastic variable z
    best_of: Count = 10  # N: samples per training frame, of which the nearest is kept
    own_steps: Count = 8000  # training steps over which the GRU gets used to its own keypoints
    separation: Real = 10.0  # weight of the term that keeps trajectories of keypoints apart
    separation_width: Real = 0.1  # sigma: the distance, in coordinates, that it asks for
    sparsity: Real = 2.5  # weight of the mean of the heat maps
    beta_steps: Count = 1000  # training steps over which beta rises from 0
    l2_kernels: Real = 1e-4  # weight of the sum of squares of the convolutions' kernels

    def build(self, shape: VideoShape) -> "StructVRNN":
        stages = math.log2(shape.size / self.heatmap_width)
        if stages < 0 or stages % 1:
            raise ConfigError(
                f"heatmap_width is {self.heatmap_width}; expected the {shape.size} pixels of a "
                "frame divided by a power of two"
            )
        return StructVRNN(self, shape)


class Noise(NamedTuple):
    """Standard normal noise, one draw per frame."""

    z: Tensor  # (B, T, z_dim)


class Randomness(NamedTuple):
    """What is random in a training step, or changes with it."""

    z: Tensor  # (B, T, N, z_dim) standard normal
    see_true: Tensor  # (B, T) bool, all rows alike: whether the GRU sees the true keypoints
    beta: Tensor  # () weight of the KL


class Scene(NamedTuple):
    """What all frames of a video are painted on."""

    first: Tensor  # (B, C, H, H)
    features: Tensor  # (B, C', w, w): its appearance, maps of its keypoints, coordinates


class State(NamedTuple):
    """What the given frames tell."""

    keypoints: Tensor  # (B, T, K, 3)
    scene: Scene


class Dynamics(NamedTuple):
    """The dynamics along a training video."""

    keypoints: Tensor  # (B, T, K, 3), of the samples that were kept
    z: Tensor  # (B, T, z_dim), of the samples that were kept
    p_z: Normal  # (B, P, z_dim)
    q_z: Normal  # (B, P, z_dim)


class Prediction(NamedTuple):
    """Frames that follow the given ones."""

    x: Tensor  # (B, frames, C, H, H)
    keypoints: Tensor  # (B, frames, K, 3)


class Loss(NamedTuple):
    """Terms of the objective, not yet weighted."""

    total: Tensor  # their weighted sum
    image: Tensor  # half the squared error of a frame, summed over pixels and channels
    separation: Tensor  # in [0, 1]; 1: all keypoints move alike
    sparsity: Tensor  # mean of the heat maps
    coordinates: Tensor  # half the squared error of a frame's keypoints, summed over 3 K numbers
    kl: Tensor  # KL(q(z_t) || p(z_t)) in nats per frame, summed over dimensions
    kernels: Tensor  # sum of squares


class StructVRNN(VideoModel):
    """Structured variational recurrent network: keypoints, and their dynamics."""

    def __init__(self, config: Config, shape: VideoShape):
        super().__init__(config, shape)
        c, channels, k = config, shape.channels, 3 * config.keypoints
        sizes = c.nf, int(math.log2(shape.size / c.heatmap_width)), c.layers_per_scale
        features = c.nf * shape.size // c.heatmap_width
        self.detector = kp.image_encoder(channels + 2, *sizes)
        self.heat_maps = nn.Conv2d(features, c.keypoints, 1)
        self.appearance = kp.image_encoder(channels, *sizes)
        self.image_decoder = kp.ImageDecoder(
            c.keypoints, features + c.keypoints + 2, channels, *sizes
        )
        # Both return the mean and, before a softplus, the standard deviation.
        self.p_z = networks.mlp(c.rnn_size, c.prior_size, 2 * c.z_dim, layers=2)
        self.q_z = networks.mlp(c.rnn_size + k, c.posterior_size, 2 * c.z_dim, layers=2)
        self.keypoint_decoder = networks.mlp(c.rnn_size + c.z_dim, DECODER_SIZE, k, layers=2)
        self.cell = tf.GRUCell(k + c.z_dim, c.rnn_size)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw weights as Keras does: He's before a rectifier, Glorot's elsewhere; biases are 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in (self.heat_maps, self.keypoint_decoder[-1], self.cell.input):
            nn.init.xavier_uniform_(layer.weight)
        for half in (*self.p_z[-1].weight.chunk(2), *self.q_z[-1].weight.chunk(2)):
            nn.init.xavier_uniform_(half)  # mean and deviation are layers of their own there
        nn.init.orthogonal_(self.cell.recurrent.weight)

    def draw_noise(self, count: int, frames: int, generator: torch.Generator) -> Noise:
        shape, device = (count, self.config.z_dim), generator.device
        draws = [torch.randn(shape, generator=generator, device=device) for _ in range(frames)]
        return Noise(torch.stack(draws, dim=1))

    def draw_randomness(
        self, count: int, frames: int, step: int, generator: torch.Generator
    ) -> Randomness:
        c, random = self.config, {"generator": generator, "device": generator.device}
        passed = min(step / c.own_steps, 1)
        until, after = (1 - passed * (1 - least) for least in LEAST_TRUE)
        coins = torch.rand(frames, **random).tensor_split([c.conditioning_frames])
        return Randomness(
            z=torch.randn(count, frames, c.best_of, c.z_dim, **random),
            see_true=torch.cat([coins[0] < until, coins[1] < after]).repeat(count, 1),
            beta=torch.full((), c.beta * min(step / c.beta_steps, 1), device=generator.device),
        )

    # Vision: from frames to keypoints, and back.

    def detect(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keypoints and heat maps of frames `(B, T, C, H, H)`."""
        features = self.detector(kp.add_coordinates(x.flatten(0, 1) - 0.5))
        maps = F.softplus(self.heat_maps(features).float()).unflatten(0, x.shape[:2])
        return kp.from_maps(maps), maps

    def scene(self, first: Tensor, keypoints: Tensor) -> Scene:
        """Return what to paint on, by the first frame `(B, C, H, H)` and its keypoints."""
        features = torch.cat([self.appearance(first - 0.5), self._to_maps(keypoints)], dim=1)
        return Scene(first, kp.add_coordinates(features))

    def paint(self, keypoints: Tensor, scene: Scene) -> Tensor:
        """Paint the frames of keypoints `(B, n, K, 3)`, close to [0, 1]: `(B, n, C, H, H)`."""
        change = self.image_decoder(self._to_maps(keypoints), scene.features)
        return scene.first[:, None] + change.float()

    def _to_maps(self, keypoints: Tensor) -> Tensor:
        w = self.config.heatmap_width
        return kp.to_maps(keypoints, w, self.config.keypoint_width / w)

    # Dynamics: from keypoints, flattened to 3 K numbers, to those of the next frame.

    def believe(self, h: Tensor, k: Tensor | None = None) -> Normal:
        """Return p(z_t | h_t), or q(z_t | h_t, k_t) for keypoints `(B, 3 K)`."""
        raw = self.p_z(h) if k is None else self.q_z(torch.cat([h, k], dim=-1))
        mean, raw = raw.float().chunk(2, dim=-1)
        return Normal(mean, F.softplus(raw) + 1e-4, validate_args=False)

    def decode(self, h: Tensor, z: Tensor) -> Tensor:
        """Return the keypoints `(..., 3 K)` of states `(..., rnn_size)` and z `(..., z_dim)`."""
        return self.keypoint_decoder(torch.cat([h, z], dim=-1)).float().tanh()

    def follow(self, keypoints: Tensor, randomness: Randomness) -> Dynamics:
        """Go along true keypoints `(B, T, K, 3)`, with the best of N samples at each frame."""
        true, observed = keypoints.flatten(-2), self.config.conditioning_frames
        rows = torch.arange(len(true), device=true.device)
        h = true.new_zeros(len(true), self.config.rnn_size)
        kept, chosen, priors, posteriors = [], [], [], []
        for t, k in enumerate(true.unbind(dim=1)):
            p = self.believe(h)
            q = self.believe(h, k) if t < observed else _detach(p)
            z = q.mean[:, None] + q.stddev[:, None] * randomness.z[:, t]
            samples = self.decode(h[:, None].expand(-1, z.shape[1], -1), z)
            best = (samples.detach() - k[:, None]).square().sum(dim=-1).argmin(dim=1)
            own, z = samples[rows, best], z[rows, best]
            seen = torch.where(randomness.see_true[:, t, None], k, own)
            h = self.cell(torch.cat([seen, z], dim=-1), h)
            kept.append(own.unflatten(-1, keypoints.shape[2:]))
            chosen.append(z)
            priors.append(p)
            posteriors.append(q)
        beliefs = _stack(priors[:observed]), _stack(posteriors[:observed])
        return Dynamics(torch.stack(kept, dim=1), torch.stack(chosen, dim=1), *beliefs)

    def imagine(self, keypoints: Tensor, noise: Noise) -> Tensor:
        """Return the model's own keypoints `(B, T, K, 3)`.

        Args:
            keypoints: of the given frames `(B, P, K, 3)`; they choose z, and nothing else.
            noise: of T frames, the given ones included.
        """
        true = keypoints.flatten(-2).unbind(dim=1)
        h, own = keypoints.new_zeros(len(keypoints), self.config.rnn_size), []
        for t, eps in enumerate(noise.z.unbind(dim=1)):
            belief = self.believe(h, true[t] if t < len(true) else None)
            z = networks.sample(belief, eps)
            own.append(self.decode(h, z))
            h = self.cell(torch.cat([own[-1], z], dim=-1), h)
        return torch.stack(own, dim=1).unflatten(-1, keypoints.shape[2:])

    # Objective and prediction.

    def kernels(self) -> Iterator[nn.Parameter]:
        """Return the kernels that the objective keeps small: all but those of the heat maps."""
        layers = (m for m in self.modules() if isinstance(m, nn.Conv2d) and m is not self.heat_maps)
        return (layer.weight for layer in layers)

    def _loss(self, clips: Clips, randomness: Randomness, objective: str) -> Loss:
        c, x = self.config, clips.frames
        keypoints, maps = self.detect(x)
        painted = self.paint(keypoints, self.scene(x[:, 0], keypoints[:, 0]))
        true = keypoints.detach()
        dynamics = self.follow(true, randomness)
        half = 0.5 / (x.shape[0] * x.shape[1])
        image = half * (x - painted).square().sum()
        apart = kp.separation(keypoints[:, : c.conditioning_frames], c.separation_width)
        sparsity = maps.mean()
        coordinates = half * (true - dynamics.keypoints).square().sum()
        kl = kl_divergence(dynamics.q_z, dynamics.p_z).sum(dim=-1).mean()
        kernels = torch.stack([kernel.square().sum() for kernel in self.kernels()]).sum()
        vision = image + c.separation * apart + c.sparsity * sparsity + c.l2_kernels * kernels
        total = vision + coordinates + randomness.beta * kl
        return Loss(total, image, apart, sparsity, coordinates, kl, kernels)

    def _condition(self, clips: Clips) -> State:
        keypoints, _ = self.detect(clips.frames)
        return State(keypoints, self.scene(clips.frames[:, 0], keypoints[:, 0]))

    def _predict(self, state: State, frames: int, noise: Noise) -> Prediction:
        given, samples = state.keypoints.shape[1], len(noise.z) // len(state.keypoints)
        known = state.keypoints.repeat_interleave(samples, dim=0)
        own = self.imagine(known, Noise(noise.z[:, : given + frames]))[:, given:]
        x = own.new_empty(*own.shape[:2], *state.scene.first.shape[1:])
        for t, k in enumerate(own.unbind(dim=1)):  # together, all frames would need more memory
            painted = self.paint(k.unflatten(0, (-1, samples)), state.scene)
            x[:, t] = painted.flatten(0, 1).clamp(0, 1)
        return Prediction(x, own)


def _detach(belief: Normal) -> Normal:
    return Normal(belief.mean.detach(), belief.stddev.detach(), validate_args=False)


def _stack(beliefs: list[Normal]) -> Normal:
    mean, std = (torch.stack([getattr(b, x) for b in beliefs], dim=1) for x in ("mean", "stddev"))
    return Normal(mean, std, validate_args=False)
