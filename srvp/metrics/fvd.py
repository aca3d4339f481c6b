"""FVD (Unterthiner et al., 2018): the Fréchet distance between two sets of videos' embeddings.

An embedding is the logits of I3D.

    fetch_weights(["fvd"])                             # of `srvp.metrics.table`: once, online
    i3d = load(device)
    real, generated = (fvd_embeddings(i3d, videos) for videos in (truth, prediction))
    fvd(generated, real, frames=truth.shape[1])        # FVD(value=…, videos=…, frames=…, ci95=nan)

Videos are `(N, T, C, H, W)` with 1 or 3 channels, uint8 or floating point in [0, 1], given frames
included.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from srvp.devices import pick_precision
from srvp.metrics.i3d import I3D, i3d_preprocess, load_i3d
from srvp.metrics.inputs import check_shape, check_unit_range, exact_inference
from srvp.metrics.table import METRICS

FVD_REPEATS = 5  # samples per test video, at most, each of which gives one FVD
ADVISED_VIDEOS = 400  # covariances of 400 logits are singular below
JACKKNIFE_GROUPS = 20  # of videos, each left out once
JACKKNIFE_T = 2.093  # 97.5 % quantile of Student's t with 19 degrees of freedom


def load(device: torch.device, precision: str = "float32") -> I3D:
    """Return the network that `fvd_embeddings` takes, in `float32`, `bfloat16` or the faster one.

    Raises:
        FileNotFoundError: its weights were not fetched.
        ValueError: their file is damaged.
    """
    return load_i3d(device, getattr(torch, pick_precision(precision, device)))


@dataclass(frozen=True)
class FVD:
    """A Fréchet video distance, comparable only between equal numbers of videos and of frames."""

    value: float  # lower is better, 0 for equal sets
    videos: int  # on each side
    frames: int  # of each video, conditioning frames included
    ci95: float = math.nan  # half width of the 95 % interval over videos, if asked for


@exact_inference()
def fvd_embeddings(i3d: I3D, videos: Tensor, chunk: int = 2) -> Tensor:
    """Return the logits `(N, 400)`, float64 on the CPU, of videos `(N, T, C, H, W)`.

    Args:
        i3d: the network, in float32 or bfloat16. It runs without gradients and without TF32.
        videos: uint8 or floating point in [0, 1], of at least 9 frames, on any device.
        chunk: videos that go to the device of `i3d` at a time, which bounds memory.

    Raises:
        ValueError: they are no such videos.
    """
    check_shape(videos, "videos")
    # I3D divides time by 8, then averages pairs.
    if videos.shape[1] < METRICS["fvd"].frames:
        raise ValueError(
            f"videos have {videos.shape[1]} frames, FVD needs at least {METRICS['fvd'].frames}: "
            "use longer videos, or leave FVD out"
        )
    if videos.dtype != torch.uint8:
        check_unit_range(videos, "videos")
    device = next(i3d.parameters()).device
    logits = [i3d(i3d_preprocess(part.to(device))) for part in videos.split(chunk)]
    return torch.cat(logits).double().cpu()


def embed_futures(i3d: I3D, given: Tensor, futures: Tensor) -> Tensor:
    """Return the embeddings `(B, s, 400)` of futures, each with its given frames before it.

    Args:
        i3d: the network.
        given: uint8 `(B, T - F, C, H, W)`.
        futures: `(B, s, F, C, H, W)` in [0, 1]. They are rounded down to 8 bits, as the frames that
            the authors saved.
    """
    predicted = (255 * futures).to(torch.uint8)
    given = given[:, None].expand(-1, futures.shape[1], -1, -1, -1, -1)
    videos = torch.cat([given, predicted], dim=2).flatten(0, 1)
    return fvd_embeddings(i3d, videos).unflatten(0, futures.shape[:2])


def of_samples(generated: np.ndarray, real: np.ndarray, frames: int) -> tuple[FVD, ...]:
    """Return the FVD of the first future of all clips, of the second, ...

    A single one has an interval over the clips.

    Args:
        generated: embeddings `(N, S, 400)`.
        real: embeddings `(N, 400)` of the true clips.
        frames: length of the clips.
    """
    samples = generated.swapaxes(0, 1)
    return tuple(fvd(sample, real, frames, interval=len(samples) == 1) for sample in samples)


def fvd(generated: Tensor, real: Tensor, frames: int, interval: bool = False) -> FVD:
    """Return the FVD between the embeddings `(N, 400)` of N generated and N real videos.

    FVD is biased upwards for few videos: below 400 there is a warning.

    Args:
        generated: a row per video.
        real: likewise; for the interval, row i is of the video whose future row i of the other is.
        frames: length of the videos, which the result states.
        interval: whether the result has `ci95`, which takes twenty times as long (`jackknife`).

    Raises:
        ValueError: they cannot be compared.
    """
    check_pairs(generated, real)
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

    The rows of two `(N, D)` are N pairs in 20 groups: i, i + 20, i + 40, ... Each group is left out
    in turn. The distances of the rest, d_1 to d_20, have the standard error
    sqrt(19 / 20 sum (d_i - mean)^2); Student's t of 19 degrees of freedom times that is the result.
    It is NaN for fewer than 40 pairs. A bootstrap, which repeats videos, would add to the bias that
    FVD has for few of them.
    """
    first, second = torch.as_tensor(generated), torch.as_tensor(real)
    return jackknife_interval(
        [frechet_distance(first[keep], second[keep]) for keep in jackknife_groups(len(real))]
    )


def jackknife_groups(count: int) -> list[Tensor]:
    """Return which of `count` pairs to keep, `(count,)`, with each group left out in turn.

    No groups are returned for fewer than 40 pairs.
    """
    if count < 2 * JACKKNIFE_GROUPS:
        return []
    group = torch.arange(count) % JACKKNIFE_GROUPS
    return [group != left_out for left_out in range(JACKKNIFE_GROUPS)]


def jackknife_interval(left_out: list[float]) -> float:
    """Return the half width of the 95 % interval from the values without each group."""
    if not left_out:
        return math.nan
    return JACKKNIFE_T * math.sqrt((JACKKNIFE_GROUPS - 1) * np.var(left_out))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance between the Gaussians fitted to two sets of vectors `(N, D)`.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) in float64, covariances with N - 1. With C = R' R,
    the trace of (C1 C2)^(1/2) is the sum of the singular values of R1 R2'. That is exact also for
    few videos, whose covariances are singular; matrix roots of these are not.

    Raises:
        ValueError: the vectors cannot be compared.
    """
    first, second = (torch.as_tensor(x, dtype=torch.float64) for x in (first, second))
    _check_vectors(first, second)
    return distance_of_gaussians(
        first.mean(0), covariance_rows(first), second.mean(0), covariance_rows(second)
    )


def distance_of_gaussians(mean1: Tensor, rows1: Tensor, mean2: Tensor, rows2: Tensor) -> float:
    """Return the Fréchet distance between Gaussians of means `(D,)` and covariances rows' rows."""
    root1, root2 = (torch.linalg.qr(rows, mode="r").R for rows in (rows1, rows2))
    variances = root1.square().sum() + root2.square().sum()
    cross = torch.linalg.matrix_norm(root1 @ root2.T, ord="nuc")
    return ((mean1 - mean2).square().sum() + variances - 2 * cross).item()


def covariance_rows(vectors: Tensor) -> Tensor:
    """Return R `(N, D)` such that R' R is the covariance of vectors `(N, D)`."""
    return (vectors - vectors.mean(0)) / math.sqrt(len(vectors) - 1)


def check_pairs(generated: Tensor, real: Tensor) -> None:
    """Raise a `ValueError` unless there are as many embeddings `(N, D)` of either kind."""
    if len(generated) != len(real):
        raise ValueError(
            f"{len(generated)} generated and {len(real)} real videos: FVD compares equal numbers"
        )
    _check_vectors(*(torch.as_tensor(x) for x in (generated, real)))


def _check_vectors(*sets: Tensor) -> None:
    shapes = [tuple(vectors.shape) for vectors in sets]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise ValueError(f"embeddings have shapes {shapes}, expected (N, D) with one D")
    fewest = METRICS["fvd"].videos  # a covariance needs two
    if min(shape[0] for shape in shapes) < fewest:
        raise ValueError(
            f"embeddings have shapes {shapes}, expected at least {fewest} videos in each set"
        )
    if not all(vectors.isfinite().all() for vectors in sets):
        raise ValueError("embeddings have NaN or infinity in them: recompute them")
