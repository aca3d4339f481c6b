"""Our models side by side on the same test clips."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from srvp.evaluation.forecasts import COLUMNS
from srvp.evaluation.references import REFERENCES
from srvp.experiment import load_params
from srvp.report.table import mark_other_counts, models_first, read_results, sample_count

# Other systems are called by the name of their file, in capitals.
SYSTEMS = {"structvrnn": "StructVRNN", "srvp_warp": "SRVP-warp"}


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


def system_labels(runs: Path, experiments: list[str], params: Path) -> dict[str, str]:
    """Return by experiment what figures call it: system, experiment and number of samples.

    Args:
        runs: folder of the runs.
        experiments: on one data set.
        params: the `params.yaml` with the experiments.
    """
    entries, labels = load_params(params)["experiments"], {}
    for name in experiments:
        model = entries[name]["model"]["name"]
        samples = read_results(runs / name / "protocol.json")["evaluation"]["samples"]
        system = SYSTEMS.get(model, model.upper())
        labels[name] = f"{system}\n{name}\n{sample_count(samples)}"
    return labels


def joint_curves(runs: Path, experiments: list[str]) -> pd.DataFrame:
    """Return the metrics frame by frame of some runs, then those of the baselines they share.

    Every model is there once, without its other options of prediction.
    """
    tables = []
    for name in experiments:
        protocol = read_results(runs / name / "protocol.json")
        about = protocol["data"]["dataset"], protocol["evaluation"]["samples"]
        curves = _first_option(pd.read_csv(runs / name / "curves.csv"), name)
        tables.append(curves.assign(dataset=about[0], samples=about[1]))
    curves = mark_other_counts(pd.concat(tables, ignore_index=True), "predictor")
    curves = curves.drop(columns=["dataset", "samples"])
    return models_first(curves.drop_duplicates(["predictor", "metric", "frame"]), "predictor")


def joint_forecasts(runs: Path, experiments: list[str]) -> pd.DataFrame:
    """Return the rows of `forecasts.csv` of some runs, then those of the predictors they share.

    Runs that were evaluated without the energy score, or by an older version, have none.
    """
    files = {name: runs / name / "forecasts.csv" for name in experiments}
    found = {name: pd.read_csv(file) for name, file in files.items() if file.is_file()}
    tables = [_first_option(table, name) for name, table in found.items()]
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    forecasts = pd.concat(tables).drop_duplicates(["predictor", "measure", "at"])
    return models_first(forecasts, "predictor")


def _first_option(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table["predictor"].isin([name, *REFERENCES])]


def best_futures(
    runs: Path, labels: Mapping[str, str], video: int, metric: str
) -> dict[str, np.ndarray]:
    """Return a test clip and, by label, the best sample of each model: `(T, C, H, W)`.

    Args:
        runs: folder of the runs.
        labels: by experiment.
        video: number of the test clip.
        metric: by which samples are the best.
    """
    rows: dict[str, np.ndarray] = {}
    for name, label in labels.items():
        examples = load_file(runs / name / "examples.safetensors")
        truth, future = examples["truth"][video], examples[f"{metric}.best"][video]
        rows.setdefault("truth", truth)
        rows[label] = np.concatenate([truth[: len(truth) - len(future)], future])
    return rows
