"""The video discriminator of SAVP: 3-D convolutions with spectral norm.

Spectral norm divides a weight by its largest singular value, estimated by power iteration from a
vector u that is kept. As in the public code, gradients flow through the estimate, and u moves once
per training step. Every evaluation of a step starts from the same u (there, a race decides which
evaluations of a step see the moved one).

Shapes: B clips, L frames, C channels; clips (B, L, C, H, W) in [0, 1].
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srvp.models.interface import VideoShape
from srvp.models.parts.tf_layers import full_precision, init_truncated_normal


class Judgement(NamedTuple):
    """What a discriminator makes of clips."""

    logits: Tensor  # (B,)
    features: list[Tensor]  # activations of the seven convolutions (B, C', L', H', W')


class SpectralWeight(nn.Module):
    """A matrix of weights and a bias, with the vector u of spectral norm.

    Attributes:
        u: that the evaluations of the current training step start from.
        next_u: where the first of them left it, for the next step.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        u = init_truncated_normal(torch.empty(outputs), 1.0)
        self.register_buffer("u", u)
        self.register_buffer("next_u", u.clone())
        init_truncated_normal(self.matrix, 0.02)

    def normalised(self, step_begins: bool) -> Tensor:
        """Return the matrix `(outputs, inputs)` over its largest singular value.

        Args:
            step_begins: whether this is the first evaluation of a training step, which moves u.
        """
        if step_begins:
            self.u.copy_(self.next_u)
        with torch.autocast(self.u.device.type, enabled=False):
            v = _unit(self.u @ self.matrix)
            product = self.matrix @ v
            u = _unit(product)
            if step_begins:
                self.next_u.copy_(u.detach())
            return self.matrix / (u @ product)


def _unit(vector: Tensor) -> Tensor:
    return vector / (vector.norm() + 1e-12)


class VideoDiscriminator(nn.Module):
    """Tells true from generated clips.

    Args:
        shape: of the videos.
        frames: of a clip, L.
        ndf: channels of the first convolution.
    """

    # Channels (in units of ndf), size of the kernel, stride in time and in space.
    LAYERS = (
        (1, 3, 1, 1),
        (2, 4, 1, 2),
        (2, 3, 1, 1),
        (4, 4, 1, 2),
        (4, 3, 1, 1),
        (8, 4, 2, 2),
        (8, 3, 1, 1),
    )

    def __init__(self, shape: VideoShape, frames: int, ndf: int):
        super().__init__()
        self.weights = nn.ModuleList()
        channels, height = shape.channels, shape.size
        for width, size, time_stride, stride in self.LAYERS:
            self.weights.append(SpectralWeight(channels * size**3, width * ndf))
            channels = width * ndf
            frames = (frames + 2 - size) // time_stride + 1
            height = (height + 2 - size) // stride + 1
        self.weights.append(SpectralWeight(channels * frames * height**2, 1))

    def normalised(self, step_begins: bool = False) -> list[Tensor]:
        """Return the weights that `forward` takes, after spectral norm."""
        return [weight.normalised(step_begins) for weight in self.weights]

    def forward(self, clips: Tensor, matrices: list[Tensor]) -> Judgement:
        """Judge clips `(B, L, C, H, W)` with the weights that `normalised` returned."""
        x, features = clips.transpose(1, 2), []
        biases = [weight.bias for weight in self.weights]
        for (_, size, *strides), matrix, bias in zip(self.LAYERS, matrices, biases, strict=False):
            kernel = matrix.unflatten(1, (x.shape[1], size, size, size))
            stride = (strides[0], strides[1], strides[1])
            x = F.leaky_relu(F.conv3d(x, kernel, bias, stride, padding=1), 0.1)
            features.append(x)
        logits = F.linear(x.flatten(1), matrices[-1], biases[-1])[:, 0]
        return Judgement(full_precision(logits), features)

    def loss(self, true: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's own loss, mean (D(true) - 1)^2 + mean D(fake)^2.

        In training mode, a training step begins here: u moves.
        """
        matrices = self.normalised(step_begins=self.training)
        on_true, on_fake = self(torch.cat([true, fake]), matrices).logits.chunk(2)
        return (on_true - 1).square().mean() + on_fake.square().mean()

    def loss_of_fakes(self, fake: Tensor, true: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the generator's losses; no gradient reaches the discriminator.

        Returns:
            mean (D(fake) - 1)^2, and the distance of the features from those of true clips; 0
            without these.
        """
        with torch.no_grad():
            matrices = self.normalised()
            target = None if true is None else self(true, matrices).features
        judged = self(fake, matrices)
        error = (judged.logits - 1).square().mean()
        if target is None:
            return error, torch.zeros_like(error)
        return error, feature_distance(judged.features, target)


def feature_distance(fake: list[Tensor], true: list[Tensor]) -> Tensor:
    """Return 1 minus the cosine of features `(B, C', ...)`: means, summed over the layers."""
    distance = 0
    for pair in zip(fake, true, strict=True):
        maps = (full_precision(x) for x in pair)
        a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in maps)
        distance = distance + (a - b).square().sum(dim=1).mean() / 2
    return distance
