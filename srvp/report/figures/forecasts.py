"""Figures of what all samples of a clip are worth together: is their spread honest, what luck pays.

All take the rows of `forecasts.csv`: columns predictor, measure, at, value and ci95 (see
`srvp.evaluation.forecasts.rows`), of one or several predictors.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srvp.report.figures.style import PREDICTED, WIDTH, add_curve, looks


def reliability(forecasts: pd.DataFrame) -> Figure:
    """Draw spread over skill against the frame, and how often the truth is the odd one out.

    Samples of an honest forecast differ from each other as much as the truth differs from them: a
    curve at 1, flat bars. The bars are the rank histogram of the distance to the mean of a group.
    """
    names = _predictors(forecasts, "spread_skill")
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, 2.3 + 1.2 * rows), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.8, 0.5 + 1.2 * rows])
    styles, ax = looks(names), upper.subplots()
    _curves(ax, forecasts, "spread_skill", styles)
    top = min(max(1.25, ax.get_ylim()[1]), 2)  # early frames of few clips have wide intervals
    ax.axhline(1, color="black", lw=0.8)
    ax.axhspan(0, 1, color=PREDICTED, alpha=0.08, lw=0)
    ax.set(ylim=(0, top), xlabel="frame", ylabel="spread / error")
    ax.locator_params(axis="x", integer=True)
    beside = {"transform": ax.transAxes, "fontsize": 7, "va": "center"}
    ax.text(1.01, 0.5 / top, "overconfident:\nfutures too alike", **beside)
    ax.text(1.01, 0.5 + 0.5 / top, "futures too\ndifferent", **beside)
    upper.legend(loc="outside upper center", ncols=columns)
    panels = lower.subplots(rows, columns, sharey=True, squeeze=False)
    for name, ax in zip(names, panels.flat, strict=False):
        _bars(ax, forecasts, name, styles[name]["color"])
    for ax in panels.flat[len(names) :]:
        ax.remove()
    panels[0, 0].set_ylabel("share of frames")
    told = "flat is honest; a tall right end: the truth is the odd one out, overconfident"
    lower.suptitle(told, fontsize=8)
    lower.supxlabel("of ten samples, how many are nearer to the others than the truth", fontsize=8)
    return figure


def best_of(forecasts: pd.DataFrame, metric: str = "psnr", label: str = "PSNR (dB)") -> Figure:
    """Draw the score of the best of N samples against N; dotted, that of their mean (PSNR).

    Where the dotted line is high, the score pays for hedging.
    """
    names = _predictors(forecasts, f"best_of_{metric}")
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    ax = figure.subplots()
    styles = looks(names)
    _curves(ax, forecasts, f"best_of_{metric}", styles, ls="-")
    means = forecasts[forecasts["measure"] == "psnr_of_mean"].groupby("predictor")["value"].mean()
    for name in names if metric == "psnr" else ():
        ax.axhline(means[name], ls=":", color=styles[name]["color"])
    numbers = sorted(forecasts.loc[forecasts["measure"] == f"best_of_{metric}", "at"].unique())
    ax.set(xscale="log", xlabel="N samples", ylabel=f"best of N: {label}", xticks=numbers)
    ax.set_xticklabels([f"{n:g}" for n in numbers])
    ax.minorticks_off()
    _legend(ax, len(names), "dotted: the mean of all samples" if metric == "psnr" else None)
    return figure


def spread_and_error(forecasts: pd.DataFrame) -> Figure:
    """Draw the error of the mean of the samples against the frame; dashed, their spread."""
    names = _predictors(forecasts, "spread")
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    ax = figure.subplots()
    styles = looks(names)
    _curves(ax, forecasts, "error", styles, ls="-")
    _curves(ax, forecasts, "spread", styles, ls="--")
    ax.set(xlabel="frame", ylabel="of a pixel in [0, 1]", ylim=(0, None))
    ax.locator_params(axis="x", integer=True)
    _legend(ax, len(names), "error of the mean; dashed: spread (diversity)")
    return figure


def digit_tracks(tracks: pd.DataFrame) -> Figure:
    """Draw how far digits are from their true places, and how many are still themselves.

    Args:
        tracks: columns predictor, frame, error (pixels) and kept (share), a row per frame.
    """
    names = list(tracks["predictor"].unique())
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for name, look in looks(names).items():
        line = tracks[tracks["predictor"] == name]
        for ax, column in zip(axes, ("error", "kept"), strict=True):
            ax.plot(line["frame"], line[column], label=name, color=look["color"])
            ax.locator_params(axis="x", integer=True)
    axes[0].set(xlabel="frame", ylabel="distance of a digit (pixels)", ylim=(0, None))
    axes[1].set(xlabel="frame", ylabel="digits that keep their shape", ylim=(0, 1.02))
    axes[0].legend()
    return figure


def _predictors(forecasts: pd.DataFrame, measure: str) -> list[str]:
    return list(forecasts.loc[forecasts["measure"] == measure, "predictor"].unique())


def _curves(
    ax: Axes,
    forecasts: pd.DataFrame,
    measure: str,
    styles: Mapping[str, dict[str, str]],
    **line: str,
) -> None:
    """Draw a measure of several predictors, with bands."""
    shown = forecasts[forecasts["measure"] == measure].groupby("predictor")
    for name, look in styles.items():
        rows = shown.get_group(name)
        add_curve(ax, rows["at"], rows["value"], rows["ci95"], label=name, **(look | line))


def _bars(ax: Axes, forecasts: pd.DataFrame, name: str, color: str) -> None:
    ranks = forecasts[forecasts["measure"] == "rank_distance"]
    shares = ranks[ranks["predictor"] == name]
    ax.bar(shares["at"], shares["value"], width=0.9, color=color)
    ax.axhline(1 / len(shares), color="black", lw=0.8)
    ax.set_title(name)


def _legend(ax: Axes, count: int, title: str | None) -> None:
    """Draw a legend of the first `count` curves above the axes, which curves may fill."""
    handles, labels = (found[:count] for found in ax.get_legend_handles_labels())
    where = {"loc": "outside upper center", "ncols": 4}
    ax.figure.legend(handles, labels, title=title, title_fontsize=7, **where)
