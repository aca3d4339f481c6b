"""Networks: image encoders and decoders (DCGAN and VGG), and multilayer perceptrons.

Frames are 64x64. Encoders return a vector per frame and the feature maps of their four stages;
decoders take a vector and, with skip connections, those maps. SRVP's convolutions have no bias,
SVG's have one (`bias`). Architectures after the papers' appendices and the authors' code.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import functional_call

from srvp.models.fast.winograd import DownConv, FromVector, ToVector, UpConv, UpToImage


def conv_block(conv: nn.Module) -> nn.Sequential:
    """A convolution, batch normalisation and LeakyReLU(0.2)."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.LeakyReLU(0.2, inplace=True))


def conv3(channels: int, out: int, bias: bool = False) -> nn.Sequential:
    """A 3x3 block that keeps the resolution (VGG)."""
    return conv_block(nn.Conv2d(channels, out, 3, 1, 1, bias=bias))


def conv_down(channels: int, out: int, bias: bool = False) -> nn.Sequential:
    """A 4x4 block that halves the resolution (DCGAN)."""
    return conv_block(DownConv(channels, out, bias))


def conv_up(channels: int, out: int, bias: bool = False) -> nn.Sequential:
    """A transposed 4x4 block that doubles the resolution (DCGAN)."""
    return conv_block(UpConv(channels, out, bias))


class Encoder(nn.Module):
    """Frames to vectors, and to the feature maps that skip connections carry.

    Args:
        stages: four modules, each applied to the result of the one before.
        head: from the last stage's map to a vector, `(N, nhx, 1, 1)`.
    """

    def __init__(self, stages: list[nn.Module], head: nn.Module):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode frames `(N, C, 64, 64)` into `(N, nhx)` in [-1, 1] and maps, deepest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.head(x).flatten(1), maps[::-1]


class Decoder(nn.Module):
    """Vectors to frames; skip connections join a map to the input of every stage.

    Args:
        stem: from a vector as a 1x1 map to the first stage's input.
        stages: four modules, each applied to the result of the one before.
    """

    def __init__(self, stem: nn.Module, stages: list[nn.Module]):
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, vector: Tensor, skips: list[Tensor] | None = None) -> Tensor:
        """Decode vectors `(N, n)` into frames `(N, C, 64, 64)` in [0, 1].

        Skip maps `(N / k, C', H', W')` are those of k consecutive vectors each.
        """
        x = self.stem(vector[..., None, None])
        for level, stage in enumerate(self.stages):
            x = stage(x) if skips is None else _apply_to_both(stage, x, skips[level])
        return x.sigmoid()


def _apply_to_both(stage: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    """Apply a stage to a map `(N, C, H, W)` joined along channels with its skip map.

    Of a skip map that several frames share, the first convolution's part is computed once.
    """
    if len(x) == len(skip):
        return stage(torch.cat([x, skip], dim=1))
    if isinstance(stage, nn.Sequential):
        first, *others = stage
        x = _apply_to_both(first, x, skip)
        for layer in others:
            x = layer(x)
        return x
    inputs = 0 if stage.transposed else 1  # axis of the weight
    own, shared = stage.weight.split([x.shape[1], skip.shape[1]], dim=inputs)
    no_bias = {} if stage.bias is None else {"bias": torch.zeros_like(stage.bias)}
    y = functional_call(stage, {"weight": own}, x)
    z = functional_call(stage, {"weight": shared, **no_bias}, skip)
    return (y.unflatten(0, (len(skip), -1)) + z[:, None]).flatten(0, 1)


def dcgan_encoder(
    channels: int, nf: int, nhx: int, bias: bool = False, norm_first: bool = False
) -> Encoder:
    """Four stride-2 convolutions (maps of 32, 16, 8, 4 pixels).

    The first has no batch norm, unless `norm_first` is set (SVG).
    """
    conv = DownConv(channels, nf, bias)
    norm = [nn.BatchNorm2d(nf)] if norm_first else []
    first = nn.Sequential(conv, *norm, nn.LeakyReLU(0.2, inplace=True))
    stages = [first, *(conv_down(k * nf, 2 * k * nf, bias) for k in (1, 2, 4))]
    return Encoder(stages, _vector_head(8 * nf, nhx, bias))


def vgg_encoder(channels: int, nf: int, nhx: int, bias: bool = False) -> Encoder:
    """Four stages of 3x3 convolutions (maps of 64, 32, 16, 8 pixels), max pooling between them."""
    widths = [
        (channels, nf, nf),
        (nf, 2 * nf, 2 * nf),
        (2 * nf, 4 * nf, 4 * nf, 4 * nf),
        (4 * nf, 8 * nf, 8 * nf, 8 * nf),
    ]
    # Pooling opens a stage rather than closing the one before: skips carry the larger maps.
    stages = [
        nn.Sequential(*([nn.MaxPool2d(2)] if level else []), *_conv3_chain(w, bias))
        for level, w in enumerate(widths)
    ]
    return Encoder(stages, nn.Sequential(nn.MaxPool2d(2), _vector_head(8 * nf, nhx, bias)))


def _conv3_chain(widths: tuple[int, ...], bias: bool) -> list[nn.Module]:
    return [conv3(a, b, bias) for a, b in pairwise(widths)]


def _vector_head(channels: int, nhx: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(ToVector(channels, nhx, bias), nn.BatchNorm2d(nhx), nn.Tanh())


def dcgan_decoder(channels: int, nf: int, n: int, skip: bool, bias: bool = False) -> Decoder:
    """The encoder's mirror: transposed convolutions, maps of 4, 8, 16, 32 pixels."""
    k = 2 if skip else 1  # a skip connection doubles the input channels of a stage
    stages = [
        conv_up(k * 8 * nf, 4 * nf, bias),
        conv_up(k * 4 * nf, 2 * nf, bias),
        conv_up(k * 2 * nf, nf, bias),
        UpToImage(k * nf, channels, bias),
    ]
    return Decoder(_vector_stem(n, 8 * nf, bias), stages)


def vgg_decoder(channels: int, nf: int, n: int, skip: bool, bias: bool = False) -> Decoder:
    """The encoder's mirror: nearest upsampling after each stage, maps of 8, 16, 32, 64 pixels."""
    k = 2 if skip else 1
    widths = [
        (k * 8 * nf, 8 * nf, 8 * nf, 4 * nf),
        (k * 4 * nf, 4 * nf, 4 * nf, 2 * nf),
        (k * 2 * nf, 2 * nf, nf),
    ]
    stages = [nn.Sequential(*_conv3_chain(w, bias), _upsample()) for w in widths]
    to_image = nn.ConvTranspose2d(nf, channels, 3, 1, 1, bias=bias)
    stages.append(nn.Sequential(conv3(k * nf, nf, bias), to_image))
    return Decoder(nn.Sequential(_vector_stem(n, 8 * nf, bias), _upsample()), stages)


def _vector_stem(n: int, channels: int, bias: bool) -> nn.Sequential:
    return conv_block(FromVector(n, channels, bias))


def _upsample() -> nn.Upsample:
    return nn.Upsample(scale_factor=2, mode="nearest")


ENCODERS = {"dcgan": dcgan_encoder, "vgg": vgg_encoder}
DECODERS = {"dcgan": dcgan_decoder, "vgg": vgg_decoder}


def mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """A perceptron of `layers` linear maps with ReLU between them (the authors count maps)."""
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    modules: list[nn.Module] = []
    for a, b in pairwise(widths):
        modules += [nn.Linear(a, b), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules[:-1])


def sample(distribution: Normal, noise: Tensor) -> Tensor:
    """Draw by reparameterisation: mean + std * noise, gradients reaching both."""
    return distribution.mean + distribution.stddev * noise


def init_convolutions(module: nn.Module) -> None:
    """Draw convolution weights from N(0, 0.02) and batch-norm scales from N(1, 0.02), in place.

    Biases are 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)


def init_orthogonal(module: nn.Module, gain: float) -> None:
    """Draw the weights of linear maps as orthogonal matrices times `gain`, biases 0, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
