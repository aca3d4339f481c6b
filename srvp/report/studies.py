"""Studies: settings compared over seeds, beside published numbers.

The runs come from `benchmarks/study.py`, a row per run in `reports/studies/NAME.csv`. A difference
between two settings is told seed by seed: runs of the same seed begin alike and see the same clips.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from srvp.evaluation.results import summarise_repetitions
from srvp.metrics.table import METRICS
from srvp.report.numbers import heading, markdown_table, number, with_interval

OF_FRAME = re.compile(r"psnr_(\d+)")  # of the best sample, at a predicted frame


def study_table(runs: Path, paper: pd.DataFrame) -> pd.DataFrame:
    """Return a row per setting.

    Args:
        runs: the table of a study.
        paper: published numbers of the data set, a row per model with a column per metric.

    Returns:
        `METRIC` is the mean over seeds and `METRIC_ci95` its 95 % interval (Student's t);
        `METRIC_ahead` is the difference to the study's first setting, with its interval;
        `METRIC_paper` is the published number of a model with the name of the setting; `psnr_FRAME`
        and `kl`, if the runs have them, are means over seeds.
    """
    table = pd.read_csv(runs)
    metrics = [metric for metric in METRICS if metric in table]
    by_seed = {name: runs.set_index("seed") for name, runs in table.groupby("setting", sort=False)}
    first = next(iter(by_seed.values()))
    rows = []
    for setting, found in by_seed.items():
        row = {"setting": setting, "seeds": len(found), "steps": found["steps"].iloc[0]}
        row["cpu_minutes"] = found["cpu_seconds"].mean() / 60
        published = paper[paper["model"] == setting]
        for metric in metrics:
            row |= _mean(found[metric], metric)
            row |= _mean((found[metric] - first[metric]).dropna(), f"{metric}_ahead")
            printed = published[metric].dropna() if metric in published else ()
            row[f"{metric}_paper"] = next(iter(printed), np.nan)
        details = [name for name in found if name == "kl" or OF_FRAME.fullmatch(name)]
        row |= {name: found[name].mean() for name in details}
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(values: pd.Series, name: str) -> dict[str, float]:
    """Return the mean of one value per seed and its interval, which a single value has not."""
    summary = summarise_repetitions(values.to_numpy())
    return {name: summary.mean, f"{name}_ci95": summary.ci95}


def study_markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown; a cell is a mean (the difference), *the published number*."""
    metrics = [metric for metric in METRICS if metric in table]
    frames = [match for name in table if (match := OF_FRAME.fullmatch(name))]
    head = ["", "steps", "CPU minutes", "seeds", *map(heading, metrics)]
    if frames:
        head.append(f"PSNR of frames {', '.join(match[1] for match in frames)}")
    head += ["KL (nats)"] if "kl" in table else []
    lines = []
    for position, row in table.iterrows():
        line = [row["setting"], f"{row['steps']:,}", f"{row['cpu_minutes']:.1f}", str(row["seeds"])]
        line += [_cell(row, metric, compared=position > 0) for metric in metrics]
        if frames:
            line.append(", ".join(f"{row[match[0]]:.1f}" for match in frames))
        line += [f"{row['kl']:.0f}"] if "kl" in table else []
        lines.append(line)
    return markdown_table(head, lines)


def _cell(row: pd.Series, metric: str, compared: bool) -> str:
    cell, spec = number(row, metric), f".{METRICS[metric].decimals}f"
    if compared:
        ahead, ci95 = row[f"{metric}_ahead"], row[f"{metric}_ahead_ci95"]
        cell += f" ({with_interval(ahead, ci95, '+' + spec)})"
    published = row[f"{metric}_paper"]
    return cell if np.isnan(published) else f"{cell}, *{published:{spec}}*"
