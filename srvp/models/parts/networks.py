"""Networks: image encoders and decoders (DCGAN and VGG), their layers, and perceptrons.

A frame of 64x64 pixels goes through four stages, one of 128x128 through five, as in the public code
of SVG. Encoders return a vector per frame and the feature map of each stage; decoders take a vector
and, with skip connections, those maps. SRVP's convolutions have no bias, SVG's have one (`bias`).
Architectures follow the papers' appendices and the authors' code.

The layers have the parameters of PyTorch's own, by name and shape, and the same results; some
compute them faster (`srvp.models.parts.fast`).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import functional_call
from torch.nn import functional as F

from srvp.models.interface import VideoShape
from srvp.models.parts.fast import choice
from srvp.models.parts.fast.folding import FoldedBlock
from srvp.models.parts.fast.patches import Overlap, PhasesToImage, patches

IMAGE = 4  # channels of an image, at most


class DownConv(nn.Conv2d):
    """A 4x4 convolution that halves the resolution."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 2, 1, bias=bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map `(N, C, H, W)` to `(N, O, H / 2, W / 2)`."""
        if x.is_cuda and self.in_channels <= IMAGE:
            return F.linear(patches(x), weight.flatten(1), bias).permute(0, 3, 1, 2)
        if convolve := choice.down(x, weight):
            return _add_bias(convolve(x, weight), bias)
        return super()._conv_forward(x, weight, bias)


class UpConv(nn.ConvTranspose2d):
    """A transposed 4x4 convolution that doubles the resolution."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, O, H, W)` to `(N, C, 2H, 2W)`."""
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if convolve := choice.up(x, weight):
            return _add_bias(convolve(x, weight), bias)
        return F.conv_transpose2d(x, weight, bias, 2, 1)


class ToVector(nn.Conv2d):
    """A 4x4 convolution of a 4x4 map: a linear map, computed as one."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 1, 0, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, 4, 4)` to `(N, O, 1, 1)`."""
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, self.bias)[..., None, None]


class FromVector(nn.ConvTranspose2d):
    """A transposed 4x4 convolution of a 1x1 map: a linear map, computed as one."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 1, 0, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, O, 1, 1)` to `(N, C, 4, 4)`."""
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight.permute(0, 2, 3, 1)  # (O, 4, 4, C)
        y = (x.flatten(1) @ weight.flatten(1)).unflatten(1, weight.shape[1:])
        return _add_bias(y.permute(0, 3, 1, 2), bias)


class UpToImage(nn.ConvTranspose2d):
    """A transposed 4x4 convolution that doubles the resolution, to one or three channels.

    So few channels leave a convolution's inner loops nearly empty. On a GPU every pixel's 4x4
    patches are one row of a matrix product, and overlapping patches are then added up; on a CPU the
    four phases of the image are channels of one convolution.
    """

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, O, H, W)` to `(N, C, 2H, 2W)`."""
        if x.is_cuda and self.out_channels <= IMAGE:
            products = x.permute(0, 2, 3, 1) @ self.weight.flatten(1)
            return _add_bias(Overlap.apply(products.float()), self.bias)
        if x.device.type == "cpu" and self.out_channels <= IMAGE:
            dtype = choice.precision(x)
            image = PhasesToImage.apply(x.to(dtype), self.weight.to(dtype))
            return _add_bias(image, self.bias)
        return super().forward(x)


def _add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias[:, None, None].to(x.dtype)


def conv_block(conv: nn.Module) -> nn.Sequential:
    """A convolution, batch normalisation and LeakyReLU(0.2)."""
    norm, activation = nn.BatchNorm2d(conv.out_channels), nn.LeakyReLU(0.2, inplace=True)
    return FoldedBlock(conv, norm, activation)


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
        stages: modules, each applied to the result of the one before.
        head: from the last stage's map to a vector, `(N, nhx, 1, 1)`.
    """

    def __init__(self, stages: list[nn.Module], head: nn.Module):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode frames `(N, C, H, W)` into `(N, nhx)` in [-1, 1] and maps, deepest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.head(x).flatten(1), maps[::-1]


class Decoder(nn.Module):
    """Vectors to frames; skip connections join a map to the input of every stage.

    Args:
        stem: from a vector as a 1x1 map to the first stage's input.
        stages: modules, each applied to the result of the one before.
    """

    def __init__(self, stem: nn.Module, stages: list[nn.Module]):
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, vector: Tensor, skips: list[Tensor] | None = None) -> Tensor:
        """Decode vectors `(N, n)` into frames `(N, C, H, W)` in [0, 1].

        Skip maps `(N / k, C', H', W')` are those of k consecutive vectors each.
        """
        x = self.stem(vector[..., None, None])
        for level, stage in enumerate(self.stages):
            x = stage(x) if skips is None else _apply_to_both(stage, x, skips[level])
        return x.float().sigmoid()  # frames have 8 bits, bfloat16 as many


def _apply_to_both(stage: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    """Apply a stage to a map `(N, C, H, W)` joined along channels with its skip map.

    Several frames may share a skip map. The first convolution's part of it is then computed once.
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


def stage_widths(size: int, nf: int) -> list[int]:
    """Return the channels of each stage for frames of `size` pixels: nf, 2nf, 4nf, 8nf, 8nf, ..."""
    stages = size.bit_length() - 3  # the last map has 4x4 pixels (DCGAN) or 8x8 (VGG)
    return [nf * min(2**level, 8) for level in range(stages)]


def dcgan_encoder(
    shape: VideoShape, nf: int, nhx: int, bias: bool = False, norm_first: bool = False
) -> Encoder:
    """Stride-2 convolutions (maps of 32, 16, 8, 4 pixels for frames of 64).

    The first has no batch norm, unless `norm_first` is set (SVG).
    """
    widths = stage_widths(shape.size, nf)
    conv = DownConv(shape.channels, nf, bias)
    norm = [nn.BatchNorm2d(nf)] if norm_first else []
    first = nn.Sequential(conv, *norm, nn.LeakyReLU(0.2, inplace=True))
    stages = [first, *(conv_down(a, b, bias) for a, b in pairwise(widths))]
    return Encoder(stages, _vector_head(widths[-1], nhx, bias))


def vgg_encoder(shape: VideoShape, nf: int, nhx: int, bias: bool = False) -> Encoder:
    """Stages of 3x3 convolutions (maps of 64, 32, 16, 8 pixels), max pooling between them."""
    widths = [shape.channels, *stage_widths(shape.size, nf)]
    # Pooling opens a stage rather than closing the one before: skips carry the larger maps.
    stages = [
        nn.Sequential(*([nn.MaxPool2d(2)] if level else []), *_conv3_chain(a, b, level, b, bias))
        for level, (a, b) in enumerate(pairwise(widths))
    ]
    return Encoder(stages, nn.Sequential(nn.MaxPool2d(2), _vector_head(widths[-1], nhx, bias)))


def _conv3_chain(inputs: int, width: int, level: int, out: int, bias: bool) -> list[nn.Module]:
    """Two convolutions at the two finest levels, three at the others."""
    widths = [inputs, *[width] * (1 if level < 2 else 2), out]
    return [conv3(a, b, bias) for a, b in pairwise(widths)]


def _vector_head(channels: int, nhx: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(ToVector(channels, nhx, bias), nn.BatchNorm2d(nhx), nn.Tanh())


def dcgan_decoder(shape: VideoShape, nf: int, n: int, skip: bool, bias: bool = False) -> Decoder:
    """The encoder's mirror: transposed convolutions (maps of 4, 8, 16, 32 pixels)."""
    k = 2 if skip else 1  # a skip connection doubles the input channels of a stage
    widths = stage_widths(shape.size, nf)[::-1]
    stages = [conv_up(k * a, b, bias) for a, b in pairwise(widths)]
    stages.append(UpToImage(k * nf, shape.channels, bias))
    return Decoder(_vector_stem(n, widths[0], bias), stages)


def vgg_decoder(shape: VideoShape, nf: int, n: int, skip: bool, bias: bool = False) -> Decoder:
    """The encoder's mirror: nearest upsampling after each stage (maps of 8, 16, 32, 64 pixels)."""
    k = 2 if skip else 1
    widths = stage_widths(shape.size, nf)
    stages = [
        nn.Sequential(*_conv3_chain(k * a, a, level, b, bias), _upsample())
        for level, (b, a) in reversed(list(enumerate(pairwise(widths), start=1)))
    ]
    to_image = nn.ConvTranspose2d(nf, shape.channels, 3, 1, 1, bias=bias)
    stages.append(nn.Sequential(conv3(k * nf, nf, bias), to_image))
    return Decoder(nn.Sequential(_vector_stem(n, widths[-1], bias), _upsample()), stages)


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


def in_parts(decode: Callable[[Tensor], Tensor], states: Tensor, frames_at_once: int) -> Tensor:
    """Decode states `(B, T, n)` into frames `(B, T, ...)`; without gradients, a few T at a time.

    Long futures thus take little more memory than the result.
    """
    count = max(1, frames_at_once // len(states))
    if torch.is_grad_enabled() or states.shape[1] <= count:
        return decode(states)
    parts = iter(states.split(count, dim=1))
    part = decode(next(parts))
    x = part.new_empty(*states.shape[:2], *part.shape[2:])
    x[:, :count] = part
    for i, later in enumerate(parts, start=1):
        x[:, i * count : (i + 1) * count] = decode(later)
    return x


def sample(distribution: Normal, noise: Tensor) -> Tensor:
    """Draw by reparameterisation: mean + std * noise, gradients reaching both."""
    return distribution.mean + distribution.stddev * noise


def softplus_normal(raw: Tensor) -> Normal:
    """Split the last axis into mean and raw scale; std = softplus(raw) + 1e-8."""
    mean, scale = raw.float().chunk(2, dim=-1)
    return Normal(mean, F.softplus(scale) + 1e-8, validate_args=False)


def repeat_normal(distribution: Normal, samples: int) -> Normal:
    """Repeat every row of a distribution `samples` times, copies side by side."""
    mean, std = (
        x.repeat_interleave(samples, dim=0) for x in (distribution.mean, distribution.stddev)
    )
    return Normal(mean, std, validate_args=False)


def pick(sequence: Tensor, frames: Tensor) -> Tensor:
    """Take frames `(B, n)`, by number, of a sequence `(B, T, ...)`: `(B, n, ...)`."""
    return sequence[torch.arange(len(sequence), device=sequence.device)[:, None], frames]


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
