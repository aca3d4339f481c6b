"""Our results beside the published ones: one table, as Markdown and as CSV.

Published numbers stand in `reports/paper_results.csv`, a row per number, with the source, the
setting as printed there and notes. Those on our data sets, with as many given and predicted frames,
are compared; of a number printed in several places, the first with an interval counts. Our numbers
are those of the `metrics.json` of runs and published models, made as the `protocol.json` beside it
says. Experiments on the same test clips can also be laid side by side, frame by frame.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from safetensors.numpy import load_file

from srvp.evaluation.results import LABELS, LOWER_IS_BETTER
from srvp.files import atomic_write, project_root
from srvp.models.trivial import TRIVIAL

DATASETS = {  # as published numbers call them
    "smmnist": "SM-MNIST",
    "dmmnist": "DM-MNIST",
    "kth": "KTH",
    "human36m": "Human3.6M",
    "bair": "BAIR",
    "videos": "own videos",
}
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4, "fvd": 0}
COLUMNS = [
    "dataset",
    "model",
    "setting",  # given -> all frames, and what else the source tells
    *(column for metric in LABELS for column in (metric, f"{metric}_ci95")),
    "videos",  # ours: how many test clips
    "folder",  # ours: of the results, such as `runs/quick`; empty for published ones
    "source",
    "note",
]


def experiments_to_report(params: Path) -> list[str]:
    """Return the experiments that `run` and `published` of a `params.yaml` name."""
    content = yaml.safe_load(Path(params).read_text())
    return [*content["run"], *content["published"]]


def report(folders: list[Path], published: Path) -> pd.DataFrame:
    """Return our results, and below those of each data set the published ones.

    Args:
        folders: of results: runs and published models.
        published: the CSV file of published numbers.

    Returns:
        A row per model, with `COLUMNS`; numbers that there are not are NaN.

    Raises:
        FileNotFoundError: an experiment has not been evaluated.
    """
    ours = pd.concat([_our_rows(folder) for folder in folders])
    # Results on the same clips have the same baselines.
    ours = ours.drop_duplicates([c for c in ours if c not in ("folder", "source", "note")])
    ours = _models_first(ours, "model")
    rows = pd.concat([ours, published_rows(published, ours)])
    order = {dataset: i for i, dataset in enumerate(ours["dataset"].unique())}
    rows = rows.sort_values("dataset", key=lambda names: names.map(order), kind="stable")
    return rows.reindex(columns=COLUMNS).reset_index(drop=True)


def _models_first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Order a table's rows: those of models, then those of the trivial baselines."""
    return table.sort_values(
        column, key=lambda names: names.isin(TRIVIAL), kind="stable", ignore_index=True
    )


def _our_rows(folder: Path) -> pd.DataFrame:
    """Return a row per predictor of a folder of results."""
    protocol = _read(folder / "protocol.json")
    data, evaluation, source = (protocol[key] for key in ("data", "evaluation", "source"))
    given, total = evaluation["conditioning_frames"], data["test_frames"]
    root = project_root()
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    rows = []
    for predictor, values in _read(folder / "metrics.json").items():
        samples = 1 if predictor in TRIVIAL else evaluation["samples"]
        counts = f"{'1 sample' if samples == 1 else f'best of {samples}'}, {data['test_videos']}"
        rows.append(
            {
                "dataset": DATASETS[data["dataset"]],
                "model": predictor,
                "frames": f"{given}->{total}",
                "setting": f"{given}->{total}, {counts} videos",
                **values,
                "videos": data["test_videos"],
                "folder": place.as_posix(),
                "note": protocol["protocol"],
                "source": f"srvp {protocol['srvp']}, {source['file']} {source['sha256'][:8]}",
            }
        )
    return pd.DataFrame(rows)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run 03_evaluate, or `dvc repro`, first")
    return json.loads(path.read_text())


def published_rows(path: Path, ours: pd.DataFrame) -> pd.DataFrame:
    """Return a row per published model on the data sets and numbers of frames of ours."""
    numbers = pd.read_csv(path)
    numbers["metric"] = numbers["metric"].str.lower()
    numbers["frames"] = numbers["setting"].str.extract(r"^(\d+->\d+)")
    numbers = numbers.merge(ours[["dataset", "frames"]].drop_duplicates())
    numbers = numbers.sort_values("ci95", key=pd.isna, kind="stable")
    key = ["dataset", "frames", "model"]
    rows = []
    for (dataset, _, model), group in numbers.groupby(key, sort=False):
        chosen = group.drop_duplicates("metric").set_index("metric")
        rows.append(
            {
                "dataset": dataset,
                "model": model,
                "setting": max(chosen["setting"], key=len),
                **chosen["value"],
                **chosen["ci95"].add_suffix("_ci95"),
                "folder": "",
                "source": "; ".join(_sources(chosen)),
                "note": "; ".join(chosen["note"].dropna().unique()),
            }
        )
    return pd.DataFrame(rows)


def _sources(numbers: pd.DataFrame) -> list[str]:
    """Return each source with the tables that the numbers come from."""
    tables = numbers.groupby("source", sort=False)["table"].unique()
    return [f"{source}: {', '.join(names)}" for source, names in tables.items()]


def markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown, ours in bold, missing numbers left out."""
    labels = [f"{LABELS[m]} {'↓' if m in LOWER_IS_BETTER else '↑'}" for m in LABELS]
    lines = [["data set", "model", "frames", *labels, "source"], ["---"] * (4 + len(labels))]
    for _, row in table.iterrows():
        ours = bool(row["folder"])
        lines.append(
            [
                row["dataset"],
                f"**{row['model']}**" if ours else row["model"],
                row["setting"].replace("->", " → "),
                *(number(row, metric) for metric in LABELS),
                f"`{row['folder']}` ({row['source']})" if ours else row["source"],
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(row: pd.Series, metric: str) -> str:
    """Return a number with its interval, as `16.93 ± 0.07`, or nothing if there is none."""
    value, ci95, decimals = row[metric], row[f"{metric}_ci95"], DECIMALS[metric]
    if np.isnan(value):
        return ""
    return f"{value:.{decimals}f}" + ("" if np.isnan(ci95) else f" ± {ci95:.{decimals}f}")


def write_report(table: pd.DataFrame, folder: Path) -> None:
    """Write `table.md` and `table.csv` into `folder`."""
    with atomic_write(folder / "table.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    with atomic_write(folder / "table.md") as temporary:
        temporary.write_text(markdown(table), encoding="utf-8")


# Models side by side on the same test clips.


def same_clips(runs: Path, experiments: list[str]) -> dict[str, list[str]]:
    """Return the experiments that can be compared clip by clip, by data set.

    Those of a data set have the same test clips, given frames and seed; only what there are at
    least two of.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for name in experiments:
        protocol = _read(runs / name / "protocol.json")
        data, given = protocol["data"], protocol["evaluation"]["conditioning_frames"]
        same = json.dumps([data, given], sort_keys=True)
        groups.setdefault(data["dataset"], {}).setdefault(same, []).append(name)
    largest = {dataset: max(found.values(), key=len) for dataset, found in groups.items()}
    return {dataset: names for dataset, names in largest.items() if len(names) > 1}


def frames(runs: Path, experiment: str) -> tuple[int, int]:
    """Return how many frames a run was given, and how many a test clip has."""
    protocol = _read(runs / experiment / "protocol.json")
    return protocol["evaluation"]["conditioning_frames"], protocol["data"]["test_frames"]


def joint_curves(runs: Path, experiments: list[str]) -> pd.DataFrame:
    """Return the metrics frame by frame of some runs, then those of the baselines they share."""
    curves = pd.concat([pd.read_csv(runs / name / "curves.csv") for name in experiments])
    return _models_first(curves.drop_duplicates(["predictor", "metric", "frame"]), "predictor")


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
