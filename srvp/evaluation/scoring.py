"""Scoring a batch of test clips: futures, in chunks of samples, to arrays of scores."""

import math
from collections.abc import Iterator
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from srvp.experiment import EvaluationConfig
from srvp.metrics import fvd
from srvp.metrics.forecasts import Ensemble
from srvp.metrics.table import METRICS, Against, fetch_weights, kind
from srvp.models.interface import Clips

Metrics = tuple[dict[str, Against], fvd.I3D | None]  # metrics of frames; I3D for those of sets


def load_metrics(config: EvaluationConfig, device: torch.device) -> Metrics:
    """Return the metrics that a protocol asks for. Their weights are fetched, if they need any."""
    if any(METRICS[name].weights for name in config.metrics):
        fetch_weights(config.metrics)
    # The file of a metric has a function `load`: see `srvp.metrics.table`.
    files = {m: f"srvp.metrics.{METRICS[m].module}" for m in kind(config.metrics, "frames")}
    metrics = {name: import_module(file).load(device) for name, file in files.items()}
    compares_sets = bool(kind(config.metrics, "sets"))
    return metrics, fvd.load(device, config.precision) if compares_sets else None


class Batch:
    """Some test clips, with uint8 frames, and what the metrics need of their true frames."""

    def __init__(self, clips: Clips, config: EvaluationConfig, metrics: Metrics):
        x, given = Clips(clips.frames.float() / 255, clips.actions), config.conditioning_frames
        self.given, self.truth = x.until(given), x.after(given)
        self.given_8bit, self.real = clips.frames[:, :given], None
        per_frame, self.i3d = metrics
        if self.i3d is not None:
            self.real = fvd.fvd_embeddings(self.i3d, clips.frames).float()
        self.compare = {name: against(self.truth) for name, against in per_frame.items()}
        # The scores (B, S, F) get their memory now: small blocks laid between large ones with every
        # chunk would keep the allocator from using the space of the large ones again.
        shape = (len(self.truth), config.samples, self.truth.shape[1])
        self.scores = {name: self.truth.new_empty(shape) for name in self.compare}
        self.ensemble = Ensemble(self.truth) if kind(config.metrics, "clips") else None

    def score(self, samples: Iterator[Tensor], psnr_cap: float = math.inf) -> dict[str, np.ndarray]:
        """Score the futures of one predictor.

        Args:
            samples: in chunks `(B, s, F, C, H, W)`.
            psnr_cap: largest PSNR of a frame, in dB.

        Returns:
            For every metric of frames `samples/METRIC` `(B, S)`, means over the frames, and
            `curves/METRIC` `(B, F)`, the best sample. For the energy score `forecast/...`, what
            `Ensemble.scores` returns. For FVD and KVD `embeddings` of some samples,
            `(B, min(S, FVD_REPEATS), 400)`.

        Raises:
            ValueError: futures have another shape than the true frames, or are not in [0, 1].
        """
        embeddings, count = [], 0
        if self.ensemble is not None:
            self.ensemble.restart()
        for chunk in samples:
            self._check(chunk)
            if self.i3d is not None and count < fvd.FVD_REPEATS:
                wanted = chunk[:, : fvd.FVD_REPEATS - count]
                embeddings.append(fvd.embed_futures(self.i3d, self.given_8bit, wanted))
            first, count = count, count + chunk.shape[1]
            for name, compare in self.compare.items():
                self.scores[name][:, first:count] = compare(chunk)
            if self.ensemble is not None:
                self.ensemble.add(chunk)
            del chunk  # before the next is sampled
            if not (self.compare or self.ensemble) and count >= fvd.FVD_REPEATS:
                break  # FVD and KVD need no more
        if "psnr" in self.scores:
            self.scores["psnr"].clamp_(max=psnr_cap)
        return self._arrays(count, embeddings, psnr_cap)

    def _arrays(
        self, count: int, embeddings: list[Tensor], psnr_cap: float
    ) -> dict[str, np.ndarray]:
        """Return the arrays of `score`, of the first `count` samples."""
        arrays = {}
        for name, scores in self.scores.items():
            means = scores[:, :count].mean(dim=2)
            best = means.argmin(dim=1) if METRICS[name].lower_is_better else means.argmax(dim=1)
            arrays[f"samples/{name}"] = means.cpu().numpy()
            arrays[f"curves/{name}"] = scores[torch.arange(len(best)), best].cpu().numpy()
        if self.ensemble is not None:
            found = self.ensemble.scores(psnr_cap)
            arrays |= {f"forecast/{name}": array for name, array in found.items()}
        if embeddings:
            arrays["embeddings"] = torch.cat(embeddings, dim=1).float().numpy()
        return arrays

    def _check(self, samples: Tensor) -> None:
        if samples.dim() != 6 or samples[:, :1].shape != self.truth[:, None].shape:
            clips, *frames = self.truth.shape
            raise ValueError(
                f"predictions have shape {tuple(samples.shape)}, expected ({clips} clips, any "
                f"samples, {', '.join(map(str, frames))})"
            )
        low, high = (bound.item() for bound in samples.aminmax())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(
                f"predicted frames range from {low:g} to {high:g}, expected [0, 1]: scale them; "
                "if that is nan, the model diverged or the file is damaged"
            )
