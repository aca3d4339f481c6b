"""Our models side by side on the same test clips."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from srvp.evaluation.forecasts import COLUMNS
from srvp.report.table import models_first, read_results


def same_clips(runs: Path, experiments: list[str]) -> dict[str, list[str]]:
    """Return the experiments that can be compared clip by clip, by data set.

    These share the test clips, the number of given frames and the seed. A data set has its largest
    group only, and none if no two experiments can be compared.

    Raises:
        FileNotFoundError: an experiment has not been evaluated.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for name in experiments:
        protocol = read_results(runs / name / "protocol.json")
        data, given = protocol["data"], protocol["evaluation"]["conditioning_frames"]
        same = json.dumps([data, given], sort_keys=True)
        groups.setdefault(data["dataset"], {}).setdefault(same, []).append(name)
    largest = {dataset: max(found.values(), key=len) for dataset, found in groups.items()}
    return {dataset: names for dataset, names in largest.items() if len(names) > 1}


def frame_counts(runs: Path, experiment: str) -> tuple[int, int]:
    """Return how many frames a run's model was given, and how many a test clip has."""
    protocol = read_results(runs / experiment / "protocol.json")
    return protocol["evaluation"]["conditioning_frames"], protocol["data"]["test_frames"]


def joint_curves(runs: Path, experiments: list[str]) -> pd.DataFrame:
    """Return the metrics frame by frame of some runs, then those of the baselines they share."""
    curves = pd.concat([pd.read_csv(runs / name / "curves.csv") for name in experiments])
    return models_first(curves.drop_duplicates(["predictor", "metric", "frame"]), "predictor")


def joint_forecasts(runs: Path, experiments: list[str]) -> pd.DataFrame:
    """Return the rows of `forecasts.csv` of some runs, then those of the predictors they share.

    Runs that were evaluated without the energy score, or by an older version, have none.
    """
    files = [runs / name / "forecasts.csv" for name in experiments]
    tables = [pd.read_csv(file) for file in files if file.is_file()]
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    forecasts = pd.concat(tables).drop_duplicates(["predictor", "measure", "at"])
    return models_first(forecasts, "predictor")


def best_futures(
    runs: Path, experiments: list[str], video: int, metric: str
) -> dict[str, np.ndarray]:
    """Return a test clip and, by model, its best sample, given frames first: `(T, C, H, W)`."""
    rows: dict[str, np.ndarray] = {}
    for name in experiments:
        examples = load_file(runs / name / "examples.safetensors")
        truth, future = examples["truth"][video], examples[f"{metric}.best"][video]
        rows.setdefault("truth", truth)
        rows[name] = np.concatenate([truth[: len(truth) - len(future)], future])
    return rows
