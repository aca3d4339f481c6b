"""Studies: settings compared over seeds, beside published numbers.

The runs come from `benchmarks/study.py`, a row per run in `reports/studies/NAME.csv`. A difference
between two settings is told seed by seed: runs of the same seed begin alike and see the same clips.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from srvp.evaluation.results import summarise_repetitions
from srvp.metrics.table import METRICS
from srvp.report.numbers import heading, number


def study_table(runs: Path, paper: pd.DataFrame) -> pd.DataFrame:
    """Return a row per setting.

    Args:
        runs: the table of a study.
        paper: published numbers of the data set, a row per model with a column per metric.

    Returns:
        Of every metric: its mean over seeds and the 95 % interval (`METRIC_ci95`, Student's t), the
        same of the difference to the study's first setting (`METRIC_ahead`), and the published
        number of a model with the name of the setting (`METRIC_paper`).
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
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(values: pd.Series, name: str) -> dict[str, float]:
    """Return the mean of one value per seed and its interval, which a single value has not."""
    mean, ci95 = values.mean(), np.nan
    if len(values) > 1:
        mean, ci95 = summarise_repetitions(values.to_numpy())
    return {name: mean, f"{name}_ci95": ci95}


def study_markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown; a cell is a mean (the difference), *the published number*."""
    metrics = [metric for metric in METRICS if metric in table]
    lines = [["", "steps", "CPU minutes", "seeds", *map(heading, metrics)]]
    lines.append(["---"] * len(lines[0]))
    for position, row in table.iterrows():
        line = [row["setting"], f"{row['steps']:,}", f"{row['cpu_minutes']:.1f}", str(row["seeds"])]
        for metric in metrics:
            cell, decimals = number(row, metric), METRICS[metric].decimals
            if position > 0:
                ahead, ci95 = row[f"{metric}_ahead"], row[f"{metric}_ahead_ci95"]
                cell += f" ({ahead:+.{decimals}f}"
                cell += ")" if np.isnan(ci95) else f" ± {ci95:.{decimals}f})"
            if not np.isnan(published := row[f"{metric}_paper"]):
                cell += f", *{published:.{decimals}f}*"
            line.append(cell)
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
