"""Figures of what states know: quantities that probes read, and errors over time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from srvp.report.figures.style import WIDTH, add_curve


def readings(
    true: np.ndarray, read: Mapping[str, np.ndarray], names: Sequence[str], scores: np.ndarray
) -> Figure:
    """Draw what probes read against the truth: a row per model, a column per quantity.

    Args:
        true: values `(frames, E)`.
        read: by model, of the same shape.
        names: of the E quantities, with units.
        scores: R^2 by model and quantity, `(models, E)`.
    """
    figure = Figure(figsize=(WIDTH, 1.9 * len(read)), layout="constrained")
    axes = figure.subplots(len(read), len(names), squeeze=False, sharex="col", sharey="col")
    for (model, values), line, row in zip(read.items(), axes, scores, strict=True):
        for e, (ax, score) in enumerate(zip(line, row, strict=True)):
            ax.plot(true[:, e], values[:, e], ".", ms=1.5, alpha=0.3, mew=0)
            ax.axline((0, 0), slope=1, color="0.5", lw=0.8)
            ax.set_title(f"$R^2$ = {score:.2f}")
        line[0].set_ylabel(f"{model}\nread")
    for name, ax in zip(names, axes[-1], strict=True):
        ax.set_xlabel(f"true {name}")
    return figure


def over_time(curves: Mapping[str, np.ndarray], first: float, label: str, rate: int = 1) -> Figure:
    """Draw the mean of a quantity over videos at every frame, with 95 % bands.

    Args:
        curves: values by label, `(videos, frames)`.
        first: time of the first frame, counted from 1.
        label: of the quantity.
        rate: frames per unit of time.
    """
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    ax = figure.subplots()
    for name, values in curves.items():
        frames = first + np.arange(values.shape[1]) / rate
        mean = values.mean(axis=0)
        half = 1.96 * values.std(axis=0, ddof=1) / len(values) ** 0.5
        add_curve(ax, frames, mean, half, label=name)
    ax.set(xlabel="frame", ylabel=label)
    ax.locator_params(axis="x", integer=True)
    ax.set_ylim(bottom=0)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
