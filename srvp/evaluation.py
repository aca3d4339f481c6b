"""The test protocol: best of N samples per video and metric, over the predicted frames only.

For every test video, N futures are sampled. Each is scored frame by frame; its score is the mean
over frames. Per video, and separately per metric, the best sample counts. Reported are the mean
over videos and its 95 % interval, 1.96 standard deviations / sqrt(videos) (the authors' protocol).

Shapes: N videos, S samples of each, F predicted frames.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from srvp import __version__
from srvp.baselines.trivial import TRIVIAL
from srvp.config import EvaluationConfig, Experiment, to_entry
from srvp.data.prepared import PreparedVideos
from srvp.files import atomic_write, write_json
from srvp.metrics import psnr, ssim

METRICS = {"psnr": psnr, "ssim": ssim}  # of predicted and true frames; higher is better in all
LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM"}

# Futures of some videos: given frames (B, T, C, H, W) and the videos' numbers, in chunks of
# samples (B, s, F, C, H, W), so that all samples never stand in memory together.
Predictor = Callable[[Tensor, list[int]], Iterator[Tensor]]


class Summary(NamedTuple):
    """A metric over the test set."""

    mean: float
    ci95: float  # half width of the 95 % interval


@dataclass(frozen=True)
class Scores:
    """How one predictor did on every video."""

    samples: dict[str, np.ndarray]  # metric: (N, S) means over the predicted frames
    curves: dict[str, np.ndarray]  # metric: (N, F) the best sample, frame by frame

    def best(self, metric: str) -> np.ndarray:
        """Return the number of the best sample of each video, `(N,)`."""
        return self.samples[metric].argmax(axis=1)

    def worst(self, metric: str) -> np.ndarray:
        """Return the number of the worst sample of each video, `(N,)`."""
        return self.samples[metric].argmin(axis=1)

    def summary(self, metric: str) -> Summary:
        """Return mean and interval over videos of the best samples."""
        return summarise(self.samples[metric].max(axis=1))


def summarise(values: np.ndarray) -> Summary:
    """Return the mean of `(N,)` values and the half width of its 95 % interval."""
    return Summary(float(values.mean()), float(1.96 * values.std() / np.sqrt(len(values))))


def sampler(
    model: nn.Module, config: EvaluationConfig, frames: int, euler_steps: int, device: torch.device
) -> Predictor:
    """Return the model as a predictor of `frames` frames, `config.samples` times.

    The noise of a sample depends on the seed, the video and the sample alone: not on the batch
    size, the device, or the videos evaluated before.
    """

    @torch.inference_mode()
    def predict(given: Tensor, videos: list[int]) -> Iterator[Tensor]:
        condition = model.condition(given)
        total = given.shape[1] + frames
        noise = [video_noise(model, config, video, total) for video in videos]
        chunk = max(1, config.frames_at_once // (len(videos) * frames))
        for first in range(0, config.samples, chunk):
            chosen = slice(first, first + chunk)
            part = join_noise([select_noise(n, chosen) for n in noise], device)
            x = model.predict(condition, frames, part, euler_steps=euler_steps).x
            yield x.float().unflatten(0, (len(videos), -1))

    return predict


def video_noise(model: nn.Module, config: EvaluationConfig, video: int, frames: int) -> NamedTuple:
    """Draw the noise of all samples of a test video, on the CPU so that it is the same anywhere."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + video)
    return model.draw_noise(config.samples, frames, generator)


def select_noise(noise: NamedTuple, samples: slice) -> NamedTuple:
    """Return the noise of some samples."""
    return type(noise)(*(x[samples] for x in noise))


def join_noise(parts: list[NamedTuple], device: torch.device) -> NamedTuple:
    """Concatenate the noise of several videos, on the device that predicts."""
    return type(parts[0])(*(torch.cat(x).to(device) for x in zip(*parts, strict=True)))


def trivial(predict: Callable[[Tensor, int], Tensor], frames: int) -> Predictor:
    """Return a baseline of `srvp.baselines.trivial` as a predictor of one sample."""
    return lambda given, videos: iter([predict(given, frames)[:, None]])


def evaluate(
    predictor: Predictor,
    videos: PreparedVideos,
    conditioning_frames: int,
    batch_size: int,
    device: torch.device,
    partial: Path,
    label: str,
) -> Scores:
    """Score a predictor on every test clip.

    Args:
        predictor: makes the futures.
        videos: the test set.
        conditioning_frames: how many frames of a clip are given; the rest is predicted.
        batch_size: videos at a time.
        device: where to score.
        partial: folder for the scores of finished batches; an evaluation that was killed goes on
            from there. Its name must tell all that the scores depend on.
        label: for the progress bar.
    """
    batches = []
    starts = range(0, len(videos.clips), batch_size)
    for start in tqdm(starts, desc=label, unit="batch", mininterval=5):
        path = partial / f"{start:05d}.safetensors"
        if not path.exists():
            chosen = list(range(start, min(start + batch_size, len(videos.clips))))
            x = torch.from_numpy(videos.test_clips(chosen)).to(device).float() / 255
            given, truth = x[:, :conditioning_frames], x[:, conditioning_frames:]
            with atomic_write(path) as temporary:
                save_file(_score(predictor(given, chosen), truth), temporary)
        batches.append(load_file(path))
    joined = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    return Scores(
        samples={m: joined[f"{m}.samples"] for m in METRICS},
        curves={m: joined[f"{m}.curves"] for m in METRICS},
    )


def _score(samples: Iterator[Tensor], truth: Tensor) -> dict[str, np.ndarray]:
    """Score chunks of samples `(B, s, F, C, H, W)` against the true frames `(B, F, C, H, W)`."""
    frames: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    for chunk in samples:
        for name, metric in METRICS.items():
            frames[name].append(metric(chunk, truth[:, None]))
    result = {}
    for name, parts in frames.items():
        scores = torch.cat(parts, dim=1)  # (B, S, F)
        means = scores.mean(dim=2)
        best = means.argmax(dim=1)
        result[f"{name}.samples"] = means.cpu().numpy()
        result[f"{name}.curves"] = scores[torch.arange(len(best)), best].cpu().numpy()
    return result


def evaluate_experiment(
    model: nn.Module, experiment: Experiment, videos: PreparedVideos, out: Path
) -> dict[str, Scores]:
    """Score a model, at every test step size, and the trivial baselines.

    Scores of finished batches are kept in `out/partial` until all is done, so that an evaluation
    that was killed goes on where it was.

    Returns:
        Scores by predictor: the model under the experiment's name, then the same model with other
        numbers of Euler steps, then the baselines.
    """
    config, frames = experiment.evaluation, experiment.predicted_frames
    device = next(model.parameters()).device
    first, *others = config.euler_steps
    predictors = {experiment.name: sampler(model, config, frames, first, device)}
    for steps in others:
        label = step_label(experiment.name, steps)
        predictors[label] = sampler(model, config, frames, steps, device)
    predictors |= {name: trivial(predict, frames) for name, predict in TRIVIAL.items()}
    partial = out / "partial" / _fingerprint(model, experiment, videos)
    scores = {
        name: evaluate(
            predictor,
            videos,
            config.conditioning_frames,
            config.batch_size,
            device,
            partial / name.replace(" ", "_"),
            name,
        )
        for name, predictor in predictors.items()
    }
    shutil.rmtree(out / "partial")
    return scores


def step_label(name: str, euler_steps: int) -> str:
    """Return what to call a model that is tested with another number of Euler steps."""
    return f"{name}, dt = 1/{euler_steps}"


def _fingerprint(model: nn.Module, experiment: Experiment, videos: PreparedVideos) -> str:
    """Return a name for all that scores depend on: weights, protocol, test set and code."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    protocol = [__version__, to_entry(experiment)["evaluation"], videos.manifest]
    digest.update(json.dumps(protocol, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def metrics_table(scores: dict[str, Scores]) -> pd.DataFrame:
    """Return a row per predictor: mean and 95 % interval of every metric over the videos."""
    columns = {}
    for metric, label in LABELS.items():
        summaries = {name: s.summary(metric) for name, s in scores.items()}
        columns[label] = {name: summary.mean for name, summary in summaries.items()}
        columns[f"± {label}"] = {name: summary.ci95 for name, summary in summaries.items()}
    return pd.DataFrame(columns)


def write_scores(scores: dict[str, Scores], experiment: Experiment, out: Path) -> None:
    """Write `metrics.json`, `curves.csv`, `videos.csv` and `protocol.json` into `out`.

    `metrics.json` has the summaries, `curves.csv` the metrics frame by frame, `videos.csv` the
    scores of every video, `protocol.json` what it takes to make the numbers again.
    """
    metrics: dict[str, dict[str, float]] = {}
    for name, s in scores.items():
        summaries = {metric: s.summary(metric) for metric in METRICS}
        metrics[name] = {m: round(summary.mean, 6) for m, summary in summaries.items()}
        metrics[name] |= {f"{m}_ci95": round(x.ci95, 6) for m, x in summaries.items()}
    write_json(out / "metrics.json", metrics)
    protocol = {"experiment": experiment.name, "srvp": __version__, **to_entry(experiment)}
    write_json(out / "protocol.json", protocol)
    _write_csv(curves_table(scores, experiment), out / "curves.csv")
    _write_csv(videos_table(scores), out / "videos.csv")


def curves_table(scores: dict[str, Scores], experiment: Experiment) -> pd.DataFrame:
    """Return predictor, metric, frame (from 1), mean and ci95 over videos of the best samples."""
    rows = []
    for name, s in scores.items():
        for metric, curve in s.curves.items():
            for i, values in enumerate(
                curve.T, start=experiment.evaluation.conditioning_frames + 1
            ):
                rows.append((name, metric, i, *summarise(values)))
    return pd.DataFrame(rows, columns=["predictor", "metric", "frame", "mean", "ci95"])


def videos_table(scores: dict[str, Scores]) -> pd.DataFrame:
    """Return predictor, metric, video, and the score of its best, first and worst sample."""
    tables = [
        pd.DataFrame(
            {
                "predictor": name,
                "metric": metric,
                "video": np.arange(len(values)),
                "best": values.max(axis=1),
                "first": values[:, 0],
                "worst": values.min(axis=1),
            }
        )
        for name, s in scores.items()
        for metric, values in s.samples.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


@torch.inference_mode()
def write_examples(
    model: nn.Module,
    experiment: Experiment,
    videos: PreparedVideos,
    scores: Scores,
    path: Path,
    count: int = 8,
) -> None:
    """Sample the best, a random and the worst future of the first test videos again, as uint8.

    The file holds `truth` `(count, T, C, H, W)` and, of the predicted frames alone, `random` (the
    first sample) and `METRIC.best` and `METRIC.worst` for every metric `(count, F, C, H, W)`.
    """
    config, frames = experiment.evaluation, experiment.predicted_frames
    device = next(model.parameters()).device
    chosen = list(range(min(count, len(videos.clips))))
    clips = videos.test_clips(chosen)
    x = torch.from_numpy(clips).to(device).float() / 255
    condition = model.condition(x[:, : config.conditioning_frames])
    noise = [video_noise(model, config, video, x.shape[1]) for video in chosen]
    wanted = {"random": [0] * len(chosen)}
    for metric in METRICS:
        wanted[f"{metric}.best"] = scores.best(metric)[chosen].tolist()
        wanted[f"{metric}.worst"] = scores.worst(metric)[chosen].tolist()
    examples = {"truth": clips}
    for name, samples in wanted.items():
        picked = [select_noise(n, slice(s, s + 1)) for n, s in zip(noise, samples, strict=True)]
        part = join_noise(picked, device)
        prediction = model.predict(condition, frames, part, euler_steps=config.euler_steps[0]).x
        examples[name] = (prediction.float() * 255).round().byte().cpu().numpy()
    with atomic_write(path) as temporary:
        save_file(examples, temporary)
