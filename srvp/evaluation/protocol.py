"""The test protocol: best of N samples per clip and metric, over the predicted frames only.

For every test clip, N futures are sampled. Each is scored frame by frame (PSNR, SSIM, LPIPS); its
score is the mean over frames. Per clip, and separately per metric, the best sample counts. The
result is the mean over clips and its 95 % interval, 1.96 standard deviations / sqrt(clips) (the
official protocol). FVD compares one random sample per clip, its given frames included and all
frames rounded down to 8 bits, with the true clips. Its mean and interval are over the first five
samples; a predictor with a single sample gets an interval over the clips.

Every finished batch of clips is a file. An evaluation that was killed resumes from these files, and
several devices can share the work.

Shapes: B clips, S samples of each (s at a time), T frames, of which F are predicted.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from srvp.data.prepared import PreparedVideos
from srvp.evaluation.results import Scores, load_scores
from srvp.experiment import EvaluationConfig, Experiment
from srvp.metrics import fvd
from srvp.metrics.table import METRICS, fetch_weights, load_metric
from srvp.models.interface import Clips, VideoModel, generator
from srvp.models.trivial import TRIVIAL

# Futures of some clips: given frames and the clips' numbers to chunks of samples
# (B, s, F, C, H, W), so that all samples are never in memory together.
Predictor = Callable[[Clips, list[int]], Iterator[Tensor]]


# Predictors.


def sampler(
    model: VideoModel, experiment: Experiment, options: Mapping[str, Any] | None = None
) -> Predictor:
    """Return the model as a predictor.

    The noise of a sample depends only on the seed, the clip and the sample: not on the batch size,
    the device, or the clips evaluated before.

    Args:
        model: in evaluation mode.
        experiment: whose protocol to follow.
        options: of the model's prediction.
    """
    config, frames = experiment.evaluation, experiment.predicted_frames
    total = experiment.data.test_frames

    @torch.inference_mode()
    def predict(given: Clips, chosen: list[int]) -> Iterator[Tensor]:
        condition = model.condition(given)  # once for all samples
        noise = [clip_noise(model, config, clip, total) for clip in chosen]
        chunk = max(1, config.frames_at_once // (len(chosen) * frames))
        for first in range(0, config.samples, chunk):
            samples = slice(first, first + chunk)
            part = join_noise(noise, [samples] * len(noise), given.frames.device)
            x = model.predict(condition, frames, part, **(options or {})).x
            yield x.float().unflatten(0, (len(chosen), -1))
            del x, part  # before the next is sampled

    return predict


def clip_noise(model: VideoModel, config: EvaluationConfig, clip: int, frames: int) -> NamedTuple:
    """Draw the noise of all samples of a test clip, on the CPU so that it is the same anywhere."""
    return model.draw_noise(config.samples, frames, generator(config.seed, clip))


def join_noise(
    noise: Sequence[NamedTuple], samples: Sequence[slice], device: torch.device
) -> NamedTuple:
    """Concatenate the noise of some samples of each clip, on the device that predicts."""
    parts = [[field[s] for field in n] for n, s in zip(noise, samples, strict=True)]
    return type(noise[0])(*(torch.cat(fields).to(device) for fields in zip(*parts, strict=True)))


def model_predictors(model: VideoModel, experiment: Experiment) -> dict[str, Predictor]:
    """Return the model, under its name, with each of the protocol's options of prediction."""
    names = zip(experiment.option_names, experiment.evaluation.predict, strict=True)
    return {name: sampler(model, experiment, options) for name, options in names}


def trivial_predictors(frames: int) -> dict[str, Predictor]:
    """Return the baselines of `srvp.models.trivial`, of one sample each."""

    def predictor(predict: Callable[[Tensor, int], Tensor]) -> Predictor:
        return lambda given, chosen: iter([predict(given.frames, frames)[:, None]])

    return {name: predictor(predict) for name, predict in TRIVIAL.items()}


# Scoring.


class Scorer:
    """Scores the futures of one batch of clips after the other.

    Args:
        config: the protocol.
        device: where to score.
    """

    def __init__(self, config: EvaluationConfig, device: torch.device):
        self.config = config
        per_frame = [metric for metric in config.metrics if METRICS[metric].per_frame]
        self.metrics = {metric: load_metric(metric, device) for metric in per_frame}
        self.i3d = None
        if len(per_frame) < len(config.metrics):
            self.i3d = fvd.load(device, getattr(torch, config.fvd_precision))

    def score(
        self, clips: Tensor, actions: Tensor | None, chosen: list[int], predictors: Mapping
    ) -> dict[str, np.ndarray]:
        """Score the futures of a batch.

        Args:
            clips: uint8 `(B, T, C, H, W)`, on the device that scores.
            actions: float `(B, T, A)`, if the clips have any.
            chosen: the clips' numbers.
            predictors: by name.

        Returns:
            For every predictor and metric of frames `NAME/samples/METRIC` `(B, S)` and, of the best
            sample, `NAME/curves/METRIC` `(B, F)`; for FVD `NAME/embeddings`
            `(B, min(S, FVD_REPEATS), 400)` and `real` `(B, 400)`.

        Raises:
            ValueError: futures have another shape than the true frames, or are not in [0, 1].
        """
        x, first = Clips(clips.float() / 255, actions), self.config.conditioning_frames
        truth = x.after(first)
        compare = {metric: against(truth) for metric, against in self.metrics.items()}
        # The scores (B, S, F) get their memory first: small blocks laid between large ones with
        # every chunk would keep the allocator from using the space of the large ones again.
        shape = (len(truth), self.config.samples, truth.shape[1])
        scores = {metric: truth.new_empty(shape) for metric in compare}
        arrays = {}
        if self.i3d is not None:
            arrays["real"] = fvd.fvd_embeddings(self.i3d, clips).float().numpy()
        for name, predictor in predictors.items():
            embeddings, count = [], 0
            for samples in predictor(x.until(first), chosen):
                check_samples(samples, truth, f"{name}, clips {chosen[0]}-{chosen[-1]}")
                if self.i3d is not None and count < fvd.FVD_REPEATS:
                    wanted = samples[:, : fvd.FVD_REPEATS - count]
                    embeddings.append(self._embed(clips[:, :first], wanted))
                start, count = count, count + samples.shape[1]
                for metric in compare:
                    scores[metric][:, start:count] = compare[metric](samples)
                del samples  # before the next is sampled
                if not compare and count >= fvd.FVD_REPEATS:
                    break  # FVD needs no more
            for metric, values in scores.items():
                arrays |= self._summarise(f"{name}", metric, values[:, :count])
            if embeddings:
                arrays[f"{name}/embeddings"] = torch.cat(embeddings, dim=1).numpy()
        return arrays

    def _summarise(self, name: str, metric: str, scores: Tensor) -> dict[str, np.ndarray]:
        means = scores.mean(dim=2)
        lower = METRICS[metric].lower_is_better
        best = means.argmin(dim=1) if lower else means.argmax(dim=1)
        curves = scores[torch.arange(len(best)), best]
        found = {"samples": means, "curves": curves}
        return {f"{name}/{kind}/{metric}": x.cpu().numpy() for kind, x in found.items()}

    def _embed(self, given: Tensor, samples: Tensor) -> Tensor:
        """Return the embeddings `(B, s, 400)` of given and predicted frames together."""
        predicted = (255 * samples).to(torch.uint8)  # rounds down, as the official saved frames
        given = given[:, None].expand(-1, samples.shape[1], -1, -1, -1, -1)
        videos = torch.cat([given, predicted], dim=2).flatten(0, 1)
        return fvd.fvd_embeddings(self.i3d, videos).float().unflatten(0, samples.shape[:2])


def check_samples(samples: Tensor, truth: Tensor, where: str) -> None:
    """Make sure that futures are frames like the true ones `(B, F, C, H, W)`.

    Raises:
        ValueError: they are not.
    """
    if samples.dim() != 6 or samples[:, :1].shape != truth[:, None].shape:
        raise ValueError(
            f"{where}: predictions have shape {tuple(samples.shape)}, expected ({len(truth)} "
            f"videos, any samples, {', '.join(map(str, truth.shape[1:]))})"
        )
    low, high = (bound.item() for bound in samples.aminmax())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(
            f"{where}: predicted frames range from {low:g} to {high:g}, expected [0, 1]: scale "
            "them; if that is nan, the model diverged or the file is damaged"
        )


def batch_files(
    videos: PreparedVideos, config: EvaluationConfig, partial: Path
) -> dict[Path, list[int]]:
    """Return the file of every batch, with the numbers of its clips."""
    size = config.clips_at_once(videos.clip_frames)
    starts = range(0, len(videos.clips), size)
    return {
        partial / f"{i:05d}.safetensors": list(range(i, min(i + size, len(videos.clips))))
        for i in starts
    }


def score_batches(
    batches: Mapping[Path, list[int]],
    predictors: Mapping[str, Predictor],
    videos: PreparedVideos,
    config: EvaluationConfig,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Write the files of the batches that have none: clips, futures, scores."""
    todo = {path: chosen for path, chosen in batches.items() if not path.exists()}
    if not todo:
        return
    scorer = Scorer(config, device)
    with progress_of(batches, disable=not progress) as bar:
        for path, chosen in todo.items():
            clips = torch.from_numpy(videos.test_clips(chosen)).to(device)
            actions = videos.test_actions(chosen)
            actions = actions if actions is None else torch.from_numpy(actions).to(device)
            arrays = scorer.score(clips, actions, chosen, predictors)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            save_file(arrays, temporary)
            os.replace(temporary, path)
            del clips, arrays  # nothing is left of a batch when the next one begins
            bar.update()


def progress_of(batches: Mapping[Path, list[int]], disable: bool = False) -> tqdm:
    """Return a bar that counts the batches that have a file."""
    done = sum(path.exists() for path in batches)
    # Rarely refreshed: every refresh is a line in an executed notebook.
    settings = {"desc": "evaluate", "unit": "batch", "mininterval": 5, "disable": disable}
    return tqdm(initial=done, total=len(batches), **settings)


# Evaluations.


def evaluate(
    predictors: Mapping[str, Predictor],
    videos: PreparedVideos,
    config: EvaluationConfig,
    device: torch.device,
    partial: Path,
) -> dict[str, Scores]:
    """Score predictors on every test clip.

    Args:
        predictors: by name.
        videos: the test set.
        config: the protocol.
        device: where to score.
        partial: folder for the finished batches, which are not scored again. Its name must tell all
            that scores depend on (`fingerprint`).

    Returns:
        Scores by predictor.

    Raises:
        ValueError: predictions are no frames, or the test set is too small for a metric.
        FileNotFoundError: weights that a metric needs cannot be fetched.
    """
    require(config, videos)
    batches = batch_files(videos, config, partial)
    score_batches(batches, predictors, videos, config, device)
    return load_scores(list(batches), list(predictors), config, videos.clip_frames)


def require(config: EvaluationConfig, videos: PreparedVideos) -> None:
    """Make sure, before hours of sampling, of all that the metrics need.

    Raises:
        ValueError: the test set is too small for a metric.
        FileNotFoundError: weights that a metric needs cannot be fetched.
    """
    found = {"videos": len(videos.clips), "frames": videos.clip_frames, "size": videos.size[0]}
    for metric in config.metrics:
        row = METRICS[metric]
        if any(found[key] < getattr(row, key) for key in found):
            raise ValueError(
                f"{row.label} needs {row.videos} videos of {row.frames} frames of {row.size} "
                f"pixels, but {videos.folder} has {found['videos']} of {found['frames']} of "
                f"{found['size']}: take more, or {metric} out of evaluation.metrics"
            )
    fetch_weights(config.metrics)
