"""Figures of curves: metrics frame by frame, and training step by step."""

from collections.abc import Mapping
from math import ceil
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srvp.metrics.table import METRICS
from srvp.report.figures.style import WIDTH, add_curve, looks

TERMS = {  # of any model
    "total": "loss",
    "validation_psnr": "validation PSNR, best sample (dB)",
    "validation_energy": "validation energy score",
}
PSNR_OF_FRAME = "validation_psnr_"  # and the number of the predicted frame


def metric_curves(curves: pd.DataFrame) -> Figure:
    """Draw each metric against the frame, with 95 % bands.

    Args:
        curves: columns predictor, metric, frame, mean and ci95: a run's `curves.csv`.
    """
    metrics = list(curves["metric"].unique())
    styles = looks(curves["predictor"].unique())
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for metric, ax in zip(metrics, axes, strict=True):
        shown = curves[curves["metric"] == metric]
        for name, line in shown.groupby("predictor", sort=False):
            add_curve(ax, line["frame"], line["mean"], line["ci95"], label=name, **styles[name])
        ax.set(xlabel="frame", ylabel=METRICS[metric].label)
        ax.locator_params(axis="x", integer=True)
        # Equal frames score 100 dB: a frame that comes back would flatten all other curves.
        limit = 2 * shown["mean"].median()
        if metric == "psnr" and shown["mean"].max() > limit:
            ax.set_ylim(top=limit)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def training_curves(history: pd.DataFrame, terms: Mapping[str, str]) -> Figure:
    """Draw the terms of the loss and the validation scores against the optimisation step.

    The PSNR of single frames is dotted beside the validation PSNR.

    Args:
        history: the rows of a run's curves, one column per quantity. Terms that are always 0, since
            the model leaves them out, are not drawn.
        terms: how the model calls its terms (`ModelConfig.terms`), such as "KL of z (nats)".
            Others are called by their column's name.
    """
    frames = [name for name in history if name.startswith(PSNR_OF_FRAME)]
    left_out = {"step", "lr", *frames}
    names = [name for name in history if name not in left_out and history[name].any()]
    rows = max(2, ceil(len(names) / 4))
    columns = ceil(len(names) / rows)
    figure = Figure(figsize=(WIDTH, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for name, ax in zip(names, axes.flat, strict=False):
        shown = history[["step", name]].dropna()
        ax.plot(shown["step"], shown[name], marker="." if len(shown) < 20 else None, lw=1)
        called = (TERMS | dict(terms)).get(name, name.replace("_", " "))
        title, _, unit = called.partition(" (")
        ax.set(title=fill(title, 80 // columns), ylabel=unit.removesuffix(")"))
        settled = shown[name].iloc[len(shown) // 20 :]  # the first steps would hide the rest
        if name == "validation_psnr":
            _add_frames(ax, history, frames)
        if len(shown) > 20 and settled.nunique() > 1:
            ax.set_ylim(settled.min(), settled.max())
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax in axes.flat[len(names) :]:
        ax.remove()
    return figure


def _add_frames(ax: Axes, history: pd.DataFrame, frames: list[str]) -> None:
    for name in frames:
        shown = history[["step", name]].dropna()
        (line,) = ax.plot(shown["step"], shown[name], ":", lw=1)
        called = f"frame {name.removeprefix(PSNR_OF_FRAME)}"
        beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 6}
        for end in shown[["step", name]].tail(1).to_numpy():  # none, if nothing was validated
            ax.annotate(called, end, **beside, color=line.get_color())
