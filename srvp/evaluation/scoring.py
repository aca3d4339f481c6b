"""Scoring sampled futures of a batch of videos against the true ones.

What a metric needs of the true frames is computed once per batch, for all predictors and samples:
the moments of SSIM, the features of LPIPS, the embeddings of FVD.

Shapes: B videos, S samples of each (s at a time), T frames, of which F are predicted.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from srvp.config import EvaluationConfig
from srvp.evaluation.results import FVD_REPEATS, LOWER_IS_BETTER, weights_folder
from srvp.metrics.frames import SSIM, psnr
from srvp.metrics.perceptual import I3D, LPIPS, fvd_embeddings, load_i3d, load_lpips


class Networks(NamedTuple):
    """The networks that the metrics ask for."""

    lpips: LPIPS | None
    i3d: I3D | None


def load_networks(config: EvaluationConfig, device: torch.device) -> Networks:
    """Load what the metrics need, from where `fetch_weights` put it."""
    folder, precision = weights_folder(), getattr(torch, config.fvd_precision)
    return Networks(
        lpips=load_lpips(folder, device) if "lpips" in config.metrics else None,
        i3d=load_i3d(folder, device, precision) if "fvd" in config.metrics else None,
    )


class Batch:
    """Test clips, and what the metrics need of their true frames.

    Args:
        clips: uint8 `(B, T, C, H, W)`, on the device that scores.
        config: the protocol.
        networks: that its metrics need.
    """

    def __init__(self, clips: Tensor, config: EvaluationConfig, networks: Networks):
        x, first = clips.float() / 255, config.conditioning_frames
        self.given, truth = x[:, :first], x[:, first:]
        self.given_8bit = clips[:, :first]
        self.samples_shape = truth[:, None].shape
        self.i3d = networks.i3d
        self.real = fvd_embeddings(self.i3d, clips).float() if self.i3d else None  # (B, 400)
        # From samples (B, s, F, C, H, W) to scores (B, s, F).
        self.compare: dict[str, Callable[[Tensor], Tensor]] = {}
        if "psnr" in config.metrics:
            self.compare["psnr"] = lambda samples: psnr(samples, truth[:, None])
        if "ssim" in config.metrics:
            self.compare["ssim"] = SSIM(truth[:, None])
        if "lpips" in config.metrics:
            self.compare["lpips"] = _lpips_to(truth, networks.lpips)
        # The scores (B, S, F) have their place from the start: small blocks laid between large ones
        # with every chunk would keep the allocator from using the space of the large ones again.
        shape = (len(truth), config.samples, truth.shape[1])
        self.scores = {metric: truth.new_empty(shape) for metric in self.compare}

    def score(self, samples: Iterator[Tensor]) -> dict[str, np.ndarray]:
        """Score chunks of samples `(B, s, F, C, H, W)`.

        Returns:
            For every metric of frames `samples/METRIC` `(B, S)` and, of the best sample,
            `curves/METRIC` `(B, F)`; for FVD `embeddings` `(B, min(S, FVD_REPEATS), 400)`.

        Raises:
            ValueError: the samples are of another shape than the true frames, or not in [0, 1].
        """
        embeddings, scored = [], 0
        for chunk in samples:
            self._check(chunk)
            if self.i3d and scored < FVD_REPEATS:
                embeddings.append(self._embed(chunk[:, : FVD_REPEATS - scored]))
            first, scored = scored, scored + chunk.shape[1]
            for metric, compare in self.compare.items():
                self.scores[metric][:, first:scored] = compare(chunk)
            del chunk  # before the next is sampled
            if not self.compare and scored >= FVD_REPEATS:
                break  # FVD needs no more
        result = {}
        for metric, scores in self.scores.items():
            scores = scores[:, :scored]
            means = scores.mean(dim=2)
            best = means.argmin(dim=1) if metric in LOWER_IS_BETTER else means.argmax(dim=1)
            result[f"samples/{metric}"] = means.cpu().numpy()
            result[f"curves/{metric}"] = scores[torch.arange(len(best)), best].cpu().numpy()
        if embeddings:
            result["embeddings"] = torch.cat(embeddings, dim=1).numpy()
        return result

    def _embed(self, samples: Tensor) -> Tensor:
        """Return the embeddings `(B, s, 400)` of given and predicted frames together."""
        predicted = (255 * samples).to(torch.uint8)  # rounds down, as the authors' saved frames
        given = self.given_8bit[:, None].expand(-1, samples.shape[1], -1, -1, -1, -1)
        videos = torch.cat([given, predicted], dim=2).flatten(0, 1)
        return fvd_embeddings(self.i3d, videos).float().unflatten(0, samples.shape[:2])

    def _check(self, samples: Tensor) -> None:
        if samples.dim() != 6 or samples[:, :1].shape != self.samples_shape:
            videos, _, *frame = self.samples_shape
            raise ValueError(
                f"predictions have shape {tuple(samples.shape)}, expected ({videos} videos, any "
                f"samples, {', '.join(map(str, frame))})"
            )
        low, high = (bound.item() for bound in samples.aminmax())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(
                f"predicted frames range from {low:g} to {high:g}, expected [0, 1]: scale them; "
                "if that is nan, the model diverged or the file is damaged"
            )


def _lpips_to(truth: Tensor, lpips: LPIPS) -> Callable[[Tensor], Tensor]:
    features = lpips.features(truth)
    # LPIPS takes the axis of samples first.
    return lambda samples: lpips.distance(samples.transpose(0, 1), features).transpose(0, 1)
