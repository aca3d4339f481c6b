"""A toy: a GAN that draws the next frame from the last one, the action and noise.

It uses what a model may: two optimizers, a weight that changes with the step, a phase of training.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srvp.models.interface import Clips, ModelConfig, VideoModel, VideoShape
from srvp.schema import Count, Real

FIRST_STEP = 3  # of training the discriminator


@dataclass(frozen=True)
class Config(ModelConfig):
    """Sizes and objective."""

    takes_actions = True
    nz: Count  # size of the noise of a frame
    gan_weight: Real  # at last
    anneal_steps: Count  # over which the weight rises linearly to gan_weight

    def build(self, shape: VideoShape) -> "ToyGAN":
        return ToyGAN(self, shape)


class Noise(NamedTuple):
    z: Tensor  # (B, T, nz)


class Randomness(NamedTuple):
    z: Tensor  # (B, T, nz)
    gan_weight: Tensor  # ()


class Prediction(NamedTuple):
    x: Tensor  # (B, frames, C, H, W)


class GeneratorLoss(NamedTuple):
    total: Tensor
    mse: Tensor
    gan: Tensor
    gan_weight: Tensor


class DiscriminatorLoss(NamedTuple):
    total: Tensor


class ToyGAN(VideoModel):
    """A generator of the next frame, and a discriminator of pairs of frames."""

    def __init__(self, config: Config, shape: VideoShape):
        super().__init__(config, shape)
        inputs = shape.channels + shape.actions + config.nz
        self.generator = nn.Sequential(
            nn.Conv2d(inputs, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, shape.channels, 1)
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(2 * shape.channels, 4, 4, stride=2), nn.Tanh(), nn.Conv2d(4, 1, 1)
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        parts = ("generator", "discriminator")
        return {part: list(getattr(self, part).parameters()) for part in parts}

    def objectives(self, step: int) -> dict[str, tuple[str, ...]]:
        names = ("discriminator", "generator") if step >= FIRST_STEP else ("generator",)
        return {name: (name,) for name in names}

    def draw_noise(self, count: int, frames: int, generator: torch.Generator) -> Noise:
        shape = (count, frames, self.config.nz)
        return Noise(torch.randn(shape, generator=generator, device=generator.device))

    def draw_randomness(
        self, count: int, frames: int, step: int, generator: torch.Generator
    ) -> Randomness:
        weight = self.config.gan_weight * min(step / self.config.anneal_steps, 1)
        (z,) = self.draw_noise(count, frames, generator)
        return Randomness(z, torch.full((), weight, device=generator.device))

    def next_frame(self, x: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Draw the frames `(B, C, H, W)` that follow the frames x."""
        given = torch.cat([action, z], dim=1)[..., None, None].expand(-1, -1, *x.shape[2:])
        return torch.sigmoid(self.generator(torch.cat([x, given], dim=1)))

    def _loss(self, clips: Clips, randomness: Randomness, objective: str) -> NamedTuple:
        before, after = (x.flatten(0, 1) for x in (clips.frames[:, :-1], clips.frames[:, 1:]))
        times = clips.frames.shape[1] - 1
        action, z = (x[:, :times].flatten(0, 1) for x in (clips.actions, randomness.z))
        drawn = self.next_frame(before, action, z)
        fake = torch.cat([before, drawn], dim=1)
        if objective == "discriminator":
            true = self.discriminator(torch.cat([before, after], dim=1))
            judged = self.discriminator(fake.detach())
            return DiscriminatorLoss((true - 1).square().mean() + judged.square().mean())
        mse = F.mse_loss(drawn, after)
        gan = (self.discriminator(fake) - 1).square().mean()
        weight = randomness.gan_weight
        return GeneratorLoss(mse + weight * gan, mse, gan, weight)

    def _condition(self, clips: Clips) -> Clips:
        """Keep the last frame, and the actions from it on."""
        return Clips(clips.frames[:, -1], clips.actions[:, clips.frames.shape[1] - 1 :])

    def _predict(self, state: Clips, frames: int, noise: Noise) -> Prediction:
        z = noise.z[:, :frames]
        x, actions = (part.repeat_interleave(len(z) // len(part), dim=0) for part in state)
        drawn = []
        for t in range(frames):
            x = self.next_frame(x, actions[:, t], z[:, t])
            drawn.append(x)
        return Prediction(torch.stack(drawn, dim=1))
