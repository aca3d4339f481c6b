"""What an evaluation found: scores, their summaries, tables and files.

Shapes: N videos, S samples of each, F predicted frames.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file
from torch import Tensor

from srvp import __version__
from srvp.evaluation import forecasts
from srvp.evaluation.forecasts import Forecast
from srvp.experiment import Experiment, to_entry
from srvp.files import atomic_write, sha256, write_json
from srvp.metrics.forecasts import GROUP
from srvp.metrics.fvd import FVD, FVD_REPEATS, JACKKNIFE_GROUPS
from srvp.metrics.table import METRICS, kind, weights_provenance
from srvp.models.interface import Clips
from srvp.models.parts.fast import choice

EXAMPLES = 8  # test clips whose futures figures show
# 97.5 % quantiles for 1 to 9 degrees of freedom.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Summary(NamedTuple):
    """A metric over the test set."""

    mean: float
    ci95: float  # half width of the 95 % interval; NaN for one video, or a single FVD of few


@dataclass(frozen=True)
class Scores:
    """How one predictor did on every video."""

    samples: dict[str, np.ndarray]  # metric: (N, S) means over the predicted frames
    curves: dict[str, np.ndarray]  # metric: (N, F) the best sample, frame by frame
    fvd: tuple[FVD, ...] = ()  # of the first sample of every video, of the second, ...
    kvd: tuple[FVD, ...] = ()  # likewise
    forecast: Forecast = field(default_factory=dict)  # of all samples together, or empty

    @property
    def metrics(self) -> list[str]:
        """Return what was measured, in the order of tables."""
        measured = {"frames": self.samples, "clips": self.forecast}
        return [m for m, row in METRICS.items() if m in measured.get(row.of, ()) or self.sets(m)]

    def sets(self, metric: str) -> tuple[FVD, ...]:
        """Return the distances of a metric of sets, as `fvd`; none of another metric."""
        return getattr(self, metric) if METRICS[metric].of == "sets" else ()

    def best(self, metric: str) -> np.ndarray:
        """Return the number of the best sample of each video, `(N,)`."""
        return _best(self.samples[metric], METRICS[metric].lower_is_better)

    def worst(self, metric: str) -> np.ndarray:
        """Return the number of the worst sample of each video, `(N,)`."""
        return _best(self.samples[metric], not METRICS[metric].lower_is_better)

    def of(self, metric: str, chosen: np.ndarray) -> np.ndarray:
        """Return the scores `(N,)` of one sample per video, by number `(N,)`."""
        return np.take_along_axis(self.samples[metric], chosen[:, None], axis=1)[:, 0]

    def summary(self, metric: str) -> Summary:
        """Return mean and interval: of the best samples over videos; of FVD over repetitions.

        A single FVD has its interval over videos. So has KVD, on average over repetitions.
        """
        if METRICS[metric].of == "frames":
            return summarise(self.of(metric, self.best(metric)))
        if METRICS[metric].of == "clips":
            return summarise(self.forecast[metric])
        values, ci95 = np.array([(d.value, d.ci95) for d in self.sets(metric)]).T
        if metric == "kvd" or len(values) == 1:
            return Summary(float(values.mean()), float(ci95.mean()))
        return summarise_repetitions(values)


def _best(values: np.ndarray, lower: bool) -> np.ndarray:
    return values.argmin(axis=1) if lower else values.argmax(axis=1)


def summarise(values: np.ndarray) -> Summary:
    """Return the mean of `(N,)` values and the half width of its 95 % interval.

    A single value has no interval: NaN.
    """
    ci95 = 1.96 * values.std() / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Summary(float(values.mean()), float(ci95))


def summarise_repetitions(values: np.ndarray) -> Summary:
    """Return the mean of 1 to 10 values and the half width of its 95 % interval (Student's t).

    A single value has no interval: NaN.
    """
    if len(values) == 1:
        return Summary(float(values[0]), np.nan)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return Summary(float(values.mean()), float(STUDENT_T[len(values) - 2] * error))


def metrics_table(scores: dict[str, Scores]) -> pd.DataFrame:
    """Return a row per predictor: mean and 95 % interval of every metric.

    The label of FVD tells how many videos it compared, and their frames.
    """
    columns = {}
    first = next(iter(scores.values()))
    for metric in first.metrics:
        label = METRICS[metric].label
        for compared in first.sets(metric)[:1]:
            label += f" ({compared.videos} videos of {compared.frames} frames)"
        summaries = {name: s.summary(metric) for name, s in scores.items()}
        columns[label] = {name: summary.mean for name, summary in summaries.items()}
        columns[f"± {label}"] = {name: summary.ci95 for name, summary in summaries.items()}
    return pd.DataFrame(columns)


def curves_table(scores: dict[str, Scores], experiment: Experiment) -> pd.DataFrame:
    """Return predictor, metric, frame (from 1), mean and ci95 over videos of the best samples."""
    first = experiment.evaluation.conditioning_frames + 1
    rows = [
        (name, metric, frame, *summarise(values))
        for name, s in scores.items()
        for metric, curves in s.curves.items()
        for frame, values in enumerate(curves.T, start=first)
    ]
    return pd.DataFrame(rows, columns=["predictor", "metric", "frame", "mean", "ci95"])


def videos_table(scores: dict[str, Scores]) -> pd.DataFrame:
    """Return predictor, metric, video, and the score of its best, first and worst sample.

    The energy score is of all samples, and under `best`.
    """
    columns = ["predictor", "metric", "video", "best", "first", "worst"]
    tables = [
        pd.DataFrame(
            {
                "predictor": name,
                "metric": metric,
                "video": np.arange(len(values)),
                "best": s.of(metric, s.best(metric)),
                "first": values[:, 0],
                "worst": s.of(metric, s.worst(metric)),
            }
        )
        for name, s in scores.items()
        for metric, values in s.samples.items()
    ] + [
        pd.DataFrame(
            {"predictor": name, "metric": metric, "video": np.arange(len(values)), "best": values}
        )
        for name, s in scores.items()
        for metric, values in s.forecast.items()
        if metric in METRICS and METRICS[metric].of == "clips"
    ]
    # FVD alone has no scores of videos, the energy score alone no first and worst ones.
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return table.reindex(columns=columns)


def forecasts_table(scores: dict[str, Scores], experiment: Experiment) -> pd.DataFrame:
    """Return calibration and best of N of every predictor: rows of `srvp.evaluation.forecasts`."""
    first = experiment.evaluation.conditioning_frames + 1
    return forecasts.table(
        row
        for name, s in scores.items()
        if s.forecast
        for row in forecasts.rows(name, s.forecast, s.samples, first)
    )


def write_scores(
    scores: dict[str, Scores], experiment: Experiment, source: Path, out: Path
) -> None:
    """Write `metrics.json`, three tables and `protocol.json` into `out`.

    `metrics.json` has the summaries, `curves.csv` the metrics frame by frame, `forecasts.csv` what
    all samples are worth together, `videos.csv` the scores of every video, `protocol.json` what it
    takes to make the numbers again. Then the unfinished results in `out/partial` are removed.

    Args:
        scores: by predictor.
        experiment: whose protocol was followed.
        source: where the predictions came from: the model's file, or another program's.
        out: folder for the files.
    """
    write_json(out / "metrics.json", {name: _summaries(s) for name, s in scores.items()})
    write_json(out / "protocol.json", protocol(experiment, source))
    _write_csv(curves_table(scores, experiment), out / "curves.csv")
    _write_csv(forecasts_table(scores, experiment), out / "forecasts.csv", digits=4)
    _write_csv(videos_table(scores), out / "videos.csv")
    shutil.rmtree(out / "partial", ignore_errors=True)


@torch.inference_mode()
def write_examples(
    predict: Callable[[Clips, list[int], Sequence[int]], Iterator[Tensor]],
    clips: Clips,
    n_given: int,
    scores: Scores,
    out: Path,
) -> None:
    """Sample the best, a random and the worst future of the first test clips again, for figures.

    `examples.safetensors` has, as uint8, `truth` `(B, T, C, H, W)` and of the predicted frames
    `random`, the first sample, and `METRIC.best` and `METRIC.worst` for every metric of frames, all
    `(B, F, C, H, W)`.

    Args:
        predict: from given frames, clips' numbers and samples' numbers, one for each clip.
        clips: the first B test clips, with uint8 frames.
        n_given: how many frames of a clip are given.
        scores: of the predictor.
        out: folder for the file.
    """
    numbers = list(range(len(clips.frames)))
    samples = {"random": [0] * len(numbers)}
    for metric in scores.samples:
        samples[f"{metric}.best"] = scores.best(metric)[numbers].tolist()
        samples[f"{metric}.worst"] = scores.worst(metric)[numbers].tolist()
    given = Clips(clips.frames.float() / 255, clips.actions).until(n_given)
    examples = {"truth": clips.frames.cpu().numpy()}
    for name, chosen in samples.items():
        (futures,) = predict(given, numbers, chosen)
        examples[name] = (255 * futures[:, 0]).round().byte().cpu().numpy()
    with atomic_write(out / "examples.safetensors") as temporary:
        save_file(examples, temporary)


def _summaries(scores: Scores) -> dict[str, float]:
    values: dict[str, float] = {}
    for metric in scores.metrics:
        mean, ci95 = scores.summary(metric)
        values[metric] = round(mean, 6)
        if not np.isnan(ci95):
            values[f"{metric}_ci95"] = round(ci95, 6)
        for compared in scores.sets(metric)[:1]:
            values |= {f"{metric}_videos": compared.videos, f"{metric}_frames": compared.frames}
    if scores.forecast:
        found = forecasts.summary(scores.forecast)
        values |= {k: round(value, 6) for k, value in found.items() if not np.isnan(value)}
    return values


def _write_csv(table: pd.DataFrame, path: Path, digits: int = 6) -> None:
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format=f"%.{digits}g")


def protocol(experiment: Experiment, source: Path) -> dict:
    """Return all that the numbers depend on, as plain JSON types."""
    entry, metrics = to_entry(experiment), experiment.evaluation.metrics
    return {
        "experiment": experiment.name,
        "protocol": describe(experiment),
        "source": {"file": source.name, "sha256": digest(source)},
        "srvp": code_version(),
        "convolutions_on_cpu": choice.describe(),
        "weights": weights_provenance(metrics),
        "data": entry["data"],
        "evaluation": entry["evaluation"],
    }


def describe(experiment: Experiment) -> str:
    """Return the protocol in words."""
    config, data = experiment.evaluation, experiment.data
    parts = [f"{config.conditioning_frames} frames given, {experiment.predicted_frames} predicted"]
    many = data.test_videos > 1
    over = f"mean over {data.test_videos} videos and 1.96 standard errors" if many else "one video"
    if frames := kind(config.metrics, "frames"):
        best = f"the best of {config.samples} samples" if config.samples > 1 else "one sample"
        parts += [f"per video and metric {best} by the mean over predicted frames", over]
    if kind(config.metrics, "clips"):
        parts.append(f"energy score of {config.samples} samples, in groups of {GROUP}")
        parts += [] if frames else [over]
    if sets := kind(config.metrics, "sets"):
        repeats, names = min(config.samples, FVD_REPEATS), " and ".join(map(str.upper, sets))
        parts.append(
            f"{names} of one random sample per video, given frames included, 8-bit frames, "
            f"{data.test_videos} videos of {data.test_frames} frames on each side"
        )
        if repeats > 1:
            parts.append(f"mean over {repeats} such samples and its 95 % interval (Student's t)")
        single = "where there is one sample, " if repeats > 1 else ""
        parts.append(f"{single}95 % interval over videos (jackknife of {JACKKNIFE_GROUPS} groups)")
    if config.precision == "bfloat16":
        parts.append("decoders in bfloat16" + (", I3D too" if sets else ""))
    return "; ".join(parts) + "."


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listing = "\n".join(f"{sha256(p)} {p.relative_to(path).as_posix()}" for p in files)
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def code_version() -> str:
    """Return the package's version and, in a clone, the commit: `0.1.0+4f3a…`.

    `.modified` follows if a file of the package differs from the commit.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return __version__
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--", "srvp")
    except (OSError, subprocess.CalledProcessError):  # no git, or it does not trust the folder
        return __version__
    return f"{__version__}+{commit}{'.modified' if changed else ''}"


def _git(root: Path, *command: str) -> str:
    command = ("git", "-C", root, *command)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
