"""The metrics: a file each in this folder, and its row in the table.

Most metrics score every predicted frame (`of="frames"`). The file of such a metric has a function
`load`, and the three steps of its use have the types below:

    load(device) -> against      once per evaluation: loads networks, if the metric has any
    against(truth) -> compare    once per batch, truth (B, F, C, H, W)
    compare(samples) -> scores   any number of times, samples (B, s, F, C, H, W), scores (B, s, F)

Frames are floating point in [0, 1], on `device`; so are the scores. `against` computes what the
metric needs of the true frames once, for all samples of all predictors.

The energy score is of all samples of a clip together (`of="clips"`). It brings further numbers that
do not fit into a table: see `srvp.metrics.forecasts`. FVD and KVD compare two sets of videos
(`of="sets"`): see `srvp.metrics.fvd`.

A metric that needs published weights names the file of this folder (`weights`) that describes them
in `WEIGHTS`, a `srvp.metrics.weights.Weights`.

    fetch_weights(["psnr", "lpips"])                  # online once, offline afterwards
    compare = srvp.metrics.lpips.load(device)(truth)
    compare(samples)                                  # (B, s, F)

The file of a metric is imported when the metric is first used, so that this one loads no network.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from srvp.metrics.weights import Weights

Compare = Callable[[Tensor], Tensor]  # samples (B, s, F, C, H, W) to scores (B, s, F)
Against = Callable[[Tensor], Compare]  # true frames (B, F, C, H, W)


class Metric(NamedTuple):
    """A row of the table."""

    label: str  # with the unit
    module: str  # file in this folder
    lower_is_better: bool
    decimals: int  # in tables
    of: Literal["frames", "clips", "sets"] = "frames"  # what it scores
    weights: str | None = None  # file in this folder with WEIGHTS, which have to be fetched
    size: int = 1  # fewest pixels of a frame's side
    frames: int = 1  # fewest frames of a clip
    videos: int = 1  # fewest clips


# Distances between sets of I3D's embeddings.
OF_I3D = {"of": "sets", "weights": "i3d", "frames": 9, "videos": 2}

METRICS = {
    "psnr": Metric("PSNR (dB)", "psnr", lower_is_better=False, decimals=2),
    "ssim": Metric("SSIM", "ssim", lower_is_better=False, decimals=4, size=11),
    "lpips": Metric("LPIPS", "lpips", lower_is_better=True, decimals=4, weights="lpips", size=31),
    "fvd": Metric("FVD", "fvd", lower_is_better=True, decimals=0, **OF_I3D),
    "kvd": Metric("KVD", "kvd", lower_is_better=True, decimals=2, **OF_I3D),
    "energy": Metric("energy score", "forecasts", lower_is_better=True, decimals=2, of="clips"),
}


def kind(metrics: Iterable[str], of: str) -> list[str]:
    """Return those of some metrics that score `frames`, `clips` or `sets`, in their order."""
    return [name for name in metrics if METRICS[name].of == of]


def fetch_weights(metrics: Iterable[str]) -> None:
    """Make sure that the published weights of metrics are on this machine.

    The first call downloads them; later calls do nothing. A call before hours of sampling finds in
    time what is missing.

    Raises:
        FileNotFoundError: they cannot be downloaded.
        ValueError: a download is not the pinned one.
        ImportError: a package that a metric needs is not installed.
    """
    for weights in _weights(metrics):
        weights.fetch()


def weights_provenance(metrics: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return `sha256` and `source` of the weights files of metrics, to save with results.

    Files are deterministic: the same source gives the same checksum on every machine.

    Raises:
        FileNotFoundError: the weights were not fetched.
    """
    return {weights.file: weights.provenance() for weights in _weights(metrics)}


def _weights(metrics: Iterable[str]) -> Iterator["Weights"]:
    return (_import(file).WEIGHTS for name in metrics if (file := METRICS[name].weights))


def _import(file: str) -> ModuleType:
    try:
        return importlib.import_module(f"srvp.metrics.{file}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"srvp.metrics.{file} cannot be imported ({error}): install the packages of "
            "srvp[metrics]"
        ) from error
