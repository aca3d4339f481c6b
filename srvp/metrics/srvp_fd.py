"""Fréchet distances between what SRVP sees in two sets of videos, those of the package `srvp-fd`.

    srvp_fd(srvp.load_pretrained("smmnist_gpu")[0], generated, real)

Frames are compared by their encodings, contents by w, dynamics by the distribution of the first
state y_1. Numbers can be compared only if they are of the same model: the package takes the
authors' weights, which `srvp.models.official.load` reads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from srvp.metrics.fvd import covariance_rows, distance_of_gaussians, frechet_distance
from srvp.metrics.inputs import exact_inference
from srvp.models.srvp import SRVP


class SRVPDistances(NamedTuple):
    """Fréchet distances; lower is better, 0 for equal sets."""

    frames: float  # of the encodings of all frames
    content: float  # of w
    dynamics: float  # of y_1, whose distributions, one per video, are taken for one Gaussian


@exact_inference()
def srvp_fd(model: SRVP, generated: Tensor, real: Tensor, chunk: int = 16) -> SRVPDistances:
    """Return the distances between two sets of videos.

    Args:
        model: in evaluation mode.
        generated: `(N, T, C, H, W)` in [0, 1], at least as many frames as the model infers y_1
            from. The last of them tell w, the first y_1.
        real: likewise.
        chunk: videos to encode at a time.

    Raises:
        ValueError: they are no such videos, or fewer than two.
    """
    (frames1, content1, mean1, rows1), (frames2, content2, mean2, rows2) = (
        _features(model, videos, chunk) for videos in (generated, real)
    )
    return SRVPDistances(
        frechet_distance(frames1, frames2),
        frechet_distance(content1, content2),
        distance_of_gaussians(mean1, rows1, mean2, rows2),
    )


def _features(model: SRVP, videos: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """Return encodings `(N * T, nhx)`, w `(N, nh_inf)`, and mean and covariance of y_1, as rows."""
    device = next(model.parameters()).device
    frames, content, means, deviations = [], [], [], []
    for part in videos.split(chunk):
        x = model.check_clips(part.to(device)).frames
        frames.append(model.encode(x)[0].flatten(0, 1))
        q_y, _, w, _ = model.infer(x)
        content.append(w)
        means.append(q_y.mean)
        deviations.append(q_y.stddev)
    found = (torch.cat(x).double().cpu() for x in (frames, content, means, deviations))
    frames, content, means, deviations = found
    # The covariance of the mixture: that of the means, and the mean of the variances.
    within = deviations.square().mean(0).sqrt().diag()
    return frames, content, means.mean(0), torch.cat([covariance_rows(means), within])
