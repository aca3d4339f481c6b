"""Figures of metrics with their intervals: the table of results, and the options of prediction."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srvp.metrics.table import METRICS
from srvp.report.figures.style import OTHERS, OURS, WIDTH
from srvp.report.numbers import heading, number


def results_table(table: pd.DataFrame) -> Figure:
    """Draw results with 95 % intervals: a row per model, a column per metric, a block per data set.

    Args:
        table: of `srvp.report.table.results_table`. Ours are in colour, the paper's in grey.
    """
    metrics = [metric for metric in METRICS if table[metric].notna().any()]
    blocks = list(table.groupby("dataset", sort=False))
    figure = Figure(figsize=(WIDTH, 0.17 * len(table) + 0.75 * len(blocks)), layout="constrained")
    heights = [len(block) for _, block in blocks]
    axes = figure.subplots(
        len(blocks), len(metrics), sharey="row", squeeze=False, height_ratios=heights
    )
    for (dataset, block), line in zip(blocks, axes, strict=True):
        colors = np.where(block["folder"] != "", OURS, OTHERS)
        _draw_block(block, [_label(row) for _, row in block.iterrows()], colors, line, metrics)
        line[0].set_title(dataset, loc="left")
        for ax in line:
            # Columns are narrow: few ticks, with short labels.
            ax.locator_params(axis="x", nbins=2, steps=[1, 2, 5, 10], min_n_ticks=1)
    return figure


def _label(row: pd.Series) -> str:
    return f"{row['model']}, {row['videos']:.0f} videos" if row["folder"] else row["model"]


def prediction_options(
    summaries: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> Figure:
    """Draw the metrics of one model under each option of prediction, a row per option.

    Args:
        summaries: content of a run's `metrics.json`.
        names: of the model under each option (`Experiment.option_name`).
    """
    table = pd.DataFrame.from_dict({name: summaries[name] for name in names}, orient="index")
    metrics = [metric for metric in METRICS if metric in table]
    table = table.reindex(columns=[*metrics, *(f"{metric}_ci95" for metric in metrics)])
    figure = Figure(figsize=(WIDTH, 0.25 * len(names) + 0.6), layout="constrained")
    axes = figure.subplots(1, len(metrics), sharey="row", squeeze=False)[0]
    _draw_block(table, names, [OURS] * len(names), axes, metrics)
    return figure


def _draw_block(
    rows: pd.DataFrame,
    labels: Sequence[str],
    colors: Sequence[str],
    axes: Sequence[Axes],
    metrics: Sequence[str],
) -> None:
    """Draw a point with interval and value per row and metric, the first row on top."""
    for metric, ax in zip(metrics, axes, strict=True):
        for y, ((_, row), color) in enumerate(zip(rows.iterrows(), colors, strict=True)):
            if number(row, metric):
                error = row[f"{metric}_ci95"]
                ax.errorbar(row[metric], y, xerr=error, fmt="o", ms=3, lw=1, color=color)
                value, _, _ = number(row, metric).partition(" ")
                place = {"xytext": (4, 3), "textcoords": "offset points"}
                ax.annotate(value, (row[metric], y), **place, fontsize=5, color=color)
        ax.margins(x=0.3)  # room for the values
        ax.locator_params(axis="x", nbins=2)
        ax.set_xlabel(heading(metric))
        if rows[metric].isna().all():
            ax.set_axis_off()
    axes[0].set(yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.5, -0.5))
