"""Keypoints: networks that find them in frames, and that paint frames from them (StructVRNN).

Convolutions are padded as in TensorFlow. Images are `(N, C, H, H)`, heat maps `(..., K, w, w)`.
Keypoints are `(..., K, 3)`: x from -1 (left) to 1 (right), y from -1 (bottom) to 1 (top), scale.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srvp.models.parts.tf_layers import SameConv2d

SLOPE = 0.2  # of every LeakyReLU


def conv(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution and LeakyReLU."""
    return nn.Sequential(SameConv2d(channels, out, 3, stride), nn.LeakyReLU(SLOPE, inplace=True))


def image_encoder(channels: int, nf: int, stages: int, layers: int) -> nn.Sequential:
    """Map images `(N, channels, H, H)` to features `(N, nf 2^stages, w, w)`, w = H / 2^stages.

    Args:
        channels: of the images.
        nf: channels of the features at the first resolution; they double when it halves.
        stages: how often the resolution halves.
        layers: convolutions per resolution, after the first.
    """
    modules = [conv(channels, nf), *(conv(nf, nf) for _ in range(layers))]
    for n in (nf << stage for stage in range(stages)):
        modules += [conv(n, 2 * n, stride=2), *(conv(2 * n, 2 * n) for _ in range(layers))]
    return nn.Sequential(*modules)


class ImageDecoder(nn.Module):
    """Images from maps of keypoints, and from features that several images share.

    Args:
        keypoints: K, channels of the maps.
        shared: channels of the shared features.
        channels: of the images.
        nf: channels at the last resolution; they halve when the resolution doubles.
        stages: how often it doubles.
        layers: convolutions per resolution.
    """

    def __init__(
        self, keypoints: int, shared: int, channels: int, nf: int, stages: int, layers: int
    ):
        super().__init__()
        self.join = nn.Conv2d(keypoints + shared, nf << stages, 1)
        modules = []
        for n in (nf << stage for stage in reversed(range(stages))):
            modules.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
            modules += [conv(2 * n, n), *(conv(n, n) for _ in range(1, layers))]
        self.layers = nn.Sequential(*modules, nn.Conv2d(nf, channels, 1))

    def forward(self, maps: Tensor, shared: Tensor) -> Tensor:
        """Decode maps `(B, n, K, w, w)`, with features `(B, shared, w, w)`: `(B, n, C, H, H)`.

        The first convolution joins both along channels; its part of the features is computed once.
        """
        own, other = self.join.weight.split([maps.shape[2], shared.shape[1]], dim=1)
        x = F.conv2d(maps.flatten(0, 1), own).unflatten(0, maps.shape[:2])
        x = F.leaky_relu(x + F.conv2d(shared, other, self.join.bias)[:, None], SLOPE)
        return self.layers(x.flatten(0, 1)).unflatten(0, maps.shape[:2])


def axis(size: int, device: torch.device) -> Tensor:
    """Return x of an image's columns, from left to right. From top to bottom, y is its negative."""
    return torch.linspace(-1, 1, size, device=device)


def add_coordinates(x: Tensor) -> Tensor:
    """Append the channels x and y to images."""
    across, shape = axis(x.shape[-1], x.device), (len(x), 1, *x.shape[-2:])
    return torch.cat([x, across.expand(shape), -across[:, None].expand(shape)], dim=1)


def from_maps(maps: Tensor) -> Tensor:
    """Return the keypoints of heat maps: their centres of mass, and their means as scales.

    The scale is relative to the strongest keypoint of the frame, hence in [0, 1].
    """
    across = axis(maps.shape[-1], maps.device)
    mass = maps + 1e-6  # a map of zeros has its centre of mass in the middle
    total, mean = mass.sum(dim=(-2, -1)), maps.mean(dim=(-2, -1))
    x = (mass.sum(dim=-2) * across).sum(dim=-1) / total
    y = -(mass.sum(dim=-1) * across).sum(dim=-1) / total
    return torch.stack([x, y, mean / (1e-6 + mean.amax(dim=-1, keepdim=True))], dim=-1)


def to_maps(keypoints: Tensor, size: int, deviation: float) -> Tensor:
    """Draw keypoints as Gaussians, whose peaks are the scales.

    Args:
        keypoints: x, y and scale.
        size: w, height and width of the maps.
        deviation: standard deviation, in coordinates.
    """
    x, y, scale = keypoints[..., None].unbind(dim=-2)  # each (..., K, 1)
    across = axis(size, keypoints.device)
    columns = torch.exp(-0.5 * ((across - x) / deviation).square())
    rows = scale * torch.exp(-0.5 * ((across + y) / deviation).square())
    return rows[..., :, None] * columns[..., None, :]


def separation(keypoints: Tensor, sigma: float) -> Tensor:
    """Return how alike the keypoints of videos `(B, T, K, 3)` move, wherever they are.

    Args:
        keypoints: of which x and y count.
        sigma: distance of trajectories, in coordinates, at which they begin to differ.

    Returns:
        The mean over pairs of keypoints, in [0, 1]; 1: all trajectories are parallel.
    """
    paths = keypoints[..., :2] - keypoints[..., :2].mean(dim=1, keepdim=True)
    distance = (paths[:, :, :, None] - paths[:, :, None]).square().sum(dim=-1).mean(dim=1)
    alike, count = torch.exp(-distance / (2 * sigma**2)).mean(dim=0), keypoints.shape[2]
    return (alike.sum() - count) / (count * (count - 1))  # without the pairs of one with itself
