"""SRVP with a decoder that moves pixels: layers of the given frames, at places that states tell.

Not of the paper. Its latent variables, its inference by encodings, its residual updates and its
ELBO are SRVP's. What departs:

    content    w holds the layers of the first k given frames (`parts/layers.py`), a still
               background, and SRVP's content vector
    encoding   h_t of a frame of 16x16 cells, joined by the places of the layers and their speeds
    state      y begins with places and velocities of the layers; y_1 starts at those seen. Layers
               move by themselves and collide with walls (`parts/motion.py`); f adds to all of it
    z          begins with the velocities after collisions; p(z) starts at those that reflections
               give, q(z_t) at those that places tell: here those of x_1, ..., x_{t+2}, if given
    frame      x_t = (1 - a) (background + layers at places(y_t)) + a g(w, y_t): the appearance
               head g and its mask a are drawn with 16x16 cells
    objective  the likelihood of some of the frames, scaled up (unbiased); a Huber loss between the
               places of y_t and those seen

All frames are drawn at once, at any frame rate: nothing that was predicted is fed back.

Shapes: as in `srvp.models.srvp`; K layers of n x n pixels. w (B, all its parts, flat).
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from srvp.models import srvp
from srvp.models.interface import Clips, VideoShape
from srvp.models.parts import layers, networks
from srvp.models.parts.motion import SPEED, UNIT, MovingTransition, pairs
from srvp.models.srvp import FRAMES_AT_ONCE, SRVP, Inference, Noise, Reconstruction
from srvp.schema import ConfigError, Count, Real

HIDDEN = 4.0  # logit by which the appearance head starts hidden


@dataclass(frozen=True)
class Config(srvp.Config):
    """Those of SRVP, and of the layers."""

    terms = srvp.Config.terms | {"place": "error of the places (pixels)"}
    layers: Count = 2  # K
    window: Count = 32  # n: pixels of a layer's window
    rounds: Count = 5  # of separating layers and correcting their places
    walls: bool = True  # layers collide at the frame's border; else z changes velocities anywhere
    background: Literal["black", "median"] = "black"  # or the median of the k given frames
    appearance: bool = True  # draw what is no layer; without it black stays exactly black
    decoded_frames: Count = 3  # of a training sequence, drawn at random
    place_weight: Real = 1.0  # of the error of the places, in pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip_connections or self.transition != "residual":
            raise ConfigError(
                "srvp_warp has no skip connections and no other transition: expected "
                "skip_connections: false and transition: residual"
            )
        y, z = 6 * self.layers, 2 * self.layers  # a layer's motion in the state; its velocity
        if self.ny < y or self.nz < z or self.inference_frames < 2:
            raise ConfigError(
                f"ny is {self.ny}, nz {self.nz}, inference_frames {self.inference_frames}; "
                f"expected at least {y}, {z} (for the motion of {self.layers} layers) and 2"
            )

    def build(self, shape: VideoShape) -> "SRVPWarp":
        return SRVPWarp(self, shape)


class Randomness(NamedTuple):
    """Every random choice of a training step."""

    noise: Noise
    decoded: Tensor  # (B, decoded_frames) distinct frame indices


class Prepared(NamedTuple):
    """Clips, and what is found in them by arithmetic alone."""

    frames: Tensor
    actions: Tensor | None
    places: Tensor  # (B, T, K, 2) in pixels
    images: Tensor  # (B, K C n n [+ C H H]): contents, and the background if there is one


class Loss(NamedTuple):
    """Terms of the objective, per clip; `srvp.Loss` and the error of the places."""

    total: Tensor
    nll: Tensor
    kl_y: Tensor
    kl_z: Tensor
    residual: Tensor
    place: Tensor  # Huber loss of the distance to the places seen, summed over time and layers


class SRVPWarp(SRVP):
    """Stochastic latent residual video predictor that moves layers of the given frames."""

    def __init__(self, config: Config, shape: VideoShape):
        # The networks of SRVP, but for encodings that the places join, and frames of few cells.
        seen, glance = config.nhx + 4 * config.layers, VideoShape(shape.channels, layers.CELLS)
        super().__init__(replace(config, nhx=seen), glance)
        if 7 * config.window >= 8 * shape.size:
            raise ConfigError(
                f"window is {config.window}, but frames have {shape.size} pixels: expected less "
                f"than {8 * shape.size / 7:.0f}, so that layers have room to move"
            )
        self.config, self.shape, c = config, shape, config
        self.encoder = networks.ENCODERS[c.architecture](glance, c.nf, c.nhx)
        networks.init_convolutions(self.encoder)
        del self.decoder
        if c.appearance:
            masked = glance._replace(channels=shape.channels + 1)
            self.decoder = networks.DECODERS[c.architecture](masked, c.nf, c.nh_inf + c.ny, False)
            networks.init_convolutions(self.decoder)
        # Windows leave the frame by a sixteenth of them: contents are smaller (28 pixels of 32).
        wall = (1 - 7 / 8 * c.window / shape.size) / (2 * UNIT) if c.walls else None
        self.transition = MovingTransition(self.transition.f, c.layers, wall)
        with torch.no_grad():  # at first, layers move on as they are seen to, nearly for certain
            self.q_y[-1].weight.mul_(0.1)
            self.q_y[-1].bias[c.ny : c.ny + 6 * c.layers] = -5.0
            self.transition.f[-1].weight.mul_(0.2)
            for last, scale in ((self.q_z, -4.0), (self.p_z[-1], -1.0)):
                last.weight.mul_(0.1)
                last.bias[c.nz : c.nz + 2 * c.layers] = scale

    def draw_randomness(
        self, count: int, frames: int, step: int, generator: torch.Generator
    ) -> Randomness:
        c, random = self.config, {"generator": generator, "device": generator.device}
        noise = self.draw_noise(count, frames, generator)
        decoded = torch.rand(count, frames, **random).argsort(dim=1)[:, : c.decoded_frames]
        return Randomness(noise, decoded)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def prepare(self, clips: Clips) -> Prepared:
        """Separate the layers of the first k frames, and find their places in all frames."""
        x = clips.frames
        c, k = self.config, self.config.inference_frames
        background = self._background(x[:, :k])
        moving = x if background is None else x - background[:, None]
        brightness = moving.abs().mean(dim=2).flatten(0, 1)
        found = layers.find(brightness, c.layers, c.window / 6).unflatten(0, x.shape[:2])
        found = layers.link(found)
        contents, exact = layers.separate(moving[:, :k], found[:, :k], c.window, c.rounds)
        later = found[:, k:] + (exact - found[:, :k]).mean(dim=1, keepdim=True)
        later = layers.follow(moving[:, k:], later, exact[:, -2:], contents, c.rounds // 2)
        images = [contents] if background is None else [contents, background]
        images = torch.cat([image.flatten(1) for image in images], dim=1)
        return Prepared(*clips, torch.cat([exact, later], dim=1), images)

    def _prepared(self, clips: Prepared | Clips) -> Prepared:
        return clips if isinstance(clips, Prepared) else self.prepare(clips)

    def _encode_with(self, places: Tensor, x: Tensor) -> Tensor:
        """Encode frames of few cells, joined by places and speeds: h `(B, T, nhx + 4K)`."""
        at = self._coordinates(places)
        speed = at.diff(dim=1) / SPEED
        speed = torch.cat([speed[:, :1], speed], dim=1)
        small = F.adaptive_avg_pool2d(x.flatten(0, 1), layers.CELLS)
        h = self.encoder(small)[0].unflatten(0, x.shape[:2])
        return torch.cat([h, at, speed], dim=-1)

    def _background(self, given: Tensor) -> Tensor | None:
        return None if self.config.background == "black" else given.median(dim=1).values

    def _coordinates(self, places: Tensor) -> Tensor:
        """Turn places `(B, T, K, 2)` in pixels into coordinates of the state `(B, T, 2K)`."""
        size = self.shape.size
        return (places.flatten(2) - (size - 1) / 2) / (size * UNIT)

    def places(self, y: Tensor) -> Tensor:
        """Return the places of the layers in states `(B, T, ny)`: `(B, T, K, 2)` in pixels."""
        size = self.shape.size
        coordinates = pairs(y[..., : 2 * self.config.layers])
        return (size - 1) / 2 + size * UNIT * coordinates

    def infer(self, clips: Prepared | Clips | Tensor) -> Inference:
        """Infer content and posterior from at least k given frames; w is of the first k."""
        clips, c = self._prepared(self.check_shape(clips)), self.config
        h, k = self._encode_with(clips.places, clips.frames), c.inference_frames
        q_y = networks.softplus_normal(self.q_y(h[:, :k].flatten(1)))
        start = self.transition.start(self._places_seen(h[:, :k])).join()
        start = F.pad(start, (0, c.ny - start.shape[-1]))
        q_y = Normal(q_y.mean + start, q_y.stddev, validate_args=False)
        w = torch.cat([clips.images, self.infer_content(h[:, :k])], dim=1)
        return Inference(q_y, self.infer_z(h), w, None)

    _condition = infer

    def infer_z(self, h: Tensor) -> Normal:
        velocities = self.transition.velocities(self._places_seen(h))
        return self._about(velocities, super().infer_z(h))

    def _places_seen(self, h: Tensor) -> Tensor:
        n = 4 * self.config.layers
        return pairs(h[..., -n : -n // 2])

    def prior(self, y: Tensor) -> Normal:
        """p(z_{t+1} | y_t), told by where the layers come to if z changes nothing."""
        moved, _ = self.transition.drift(self.transition.begin(self.transition.split(y)), 1)
        return self._about(moved.velocity.flatten(-2), super().prior(moved.join()))

    def _about(self, velocity: Tensor, z: Normal) -> Normal:
        mean = z.mean + F.pad(velocity, (0, self.config.nz - velocity.shape[-1]))
        return Normal(mean, z.stddev, validate_args=False)

    def decode(self, w: Tensor, y: Tensor, skips: None = None) -> Tensor:
        """Decode states `(B, T, ny)` with content `(B, ...)` into frames `(B, T, C, H, W)`."""
        c, (channels, size, _) = self.config, self.shape
        numbers = c.layers * channels * c.window**2
        contents, background, content = w.split(
            [numbers, w.shape[1] - numbers - c.nh_inf, c.nh_inf], dim=1
        )
        contents = contents.reshape(-1, c.layers, channels, c.window, c.window)
        background = background.reshape(len(w), -1, channels, size, size).sum(dim=1)[:, None]

        def decode(y: Tensor) -> Tensor:
            x = (background + layers.paste(contents, self.places(y), size)).clamp(0, 1)
            if not c.appearance:
                return x
            vectors = torch.cat([content[:, None].expand(-1, y.shape[1], -1), y], dim=-1)
            g = self.decoder(vectors.flatten(0, 1))
            mask = (g[:, -1:].logit(1e-6) - HIDDEN).sigmoid()
            g = F.interpolate(torch.cat([g[:, :-1] * mask, mask], dim=1), size, mode="bilinear")
            g = g.unflatten(0, y.shape[:2])
            return x * (1 - g[:, :, -1:]) + g[:, :, :-1]

        return networks.in_parts(decode, y, FRAMES_AT_ONCE)

    def forward(self, clips: Clips | Tensor, randomness: Randomness) -> Reconstruction:
        inference = self.infer(clips)
        y, residuals = self._states(inference, randomness.noise)
        x, p_z = self.decode(inference.w, y), self.prior(y[:, :-1])
        return Reconstruction(x, y, inference.q_y, inference.q_z, p_z, residuals)

    def _states(self, inference: Inference, noise: Noise) -> tuple[Tensor, Tensor]:
        y_1, z = networks.sample(inference.q_y, noise.y), networks.sample(inference.q_z, noise.z)
        return self.rollout(y_1, z, self.config.euler_steps)

    def _loss(self, clips: Prepared | Clips, randomness: Randomness, objective: str) -> Loss:
        """The negative ELBO, the likelihood that of some frames, and the error of the places."""
        c, x, (noise, decoded) = self.config, clips.frames, randomness
        clips = self._prepared(clips)
        inference = self.infer(clips)
        y, residuals = self._states(inference, noise)
        drawn = self.decode(inference.w, networks.pick(y, decoded)).float()
        scale, one = x.new_full((), c.obs_scale), x.new_ones(())
        likelihood = Normal(drawn, scale, validate_args=False)
        log_p = likelihood.log_prob(networks.pick(x, decoded)).sum() / len(x)
        nll = -log_p * x.shape[1] / decoded.shape[1]
        standard = Normal(torch.zeros_like(inference.q_y.mean), one, validate_args=False)
        kl_y = kl_divergence(inference.q_y, standard).sum() / len(x)
        kl_z = kl_divergence(inference.q_z, self.prior(y[:, :-1])).sum() / len(x)
        residual = residuals.norm(dim=-1).sum() / len(x)
        place = F.smooth_l1_loss(self.places(y), clips.places, reduction="sum") / len(x)
        latent = c.beta_y * kl_y + c.beta_z * kl_z + c.l2_res * residual
        total = nll + latent + c.place_weight * place
        return Loss(total, nll, kl_y, kl_z, residual, place)
