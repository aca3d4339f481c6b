"""Figures of SRVP's states: what they depend on, how far they move, and where."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from srvp.report.figures.style import COLUMN, WIDTH, add_curve


def generative_model() -> Figure:
    """Draw SRVP as a graphical model: what depends on what (figure 1 of the paper)."""
    figure = Figure(figsize=(COLUMN + 0.5, 2.3))
    ax = figure.subplots()
    nodes = {"$w$": (0.3, 1)}
    for i in (1, 2, 3):
        nodes |= {f"$y_{i}$": (1.5 * i, 1), f"$x_{i}$": (1.5 * i, 0)}
        if i > 1:
            nodes[f"$z_{i}$"] = (1.5 * i - 0.75, 2)
    for i in (1, 2, 3):
        _arrow(ax, nodes[f"$y_{i}$"], nodes[f"$x_{i}$"])
        _arrow(ax, nodes["$w$"], nodes[f"$x_{i}$"])
        if i > 1:
            _arrow(ax, nodes[f"$y_{i - 1}$"], nodes[f"$z_{i}$"])
            _arrow(ax, nodes[f"$z_{i}$"], nodes[f"$y_{i}$"])
            _arrow(ax, nodes[f"$y_{i - 1}$"], nodes[f"$y_{i}$"])
    for label, center in nodes.items():
        seen = label.startswith("$x")
        ax.add_patch(Circle(center, 0.24, fc="0.85" if seen else "white", ec="black", zorder=2))
        ax.text(*center, label, ha="center", va="center", zorder=3)
    ax.text(5.0, 1, "…", va="center")
    ax.set(xlim=(-0.1, 5.3), ylim=(-0.4, 2.4), aspect="equal")
    ax.axis("off")
    return figure


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = {"arrowstyle": "-|>", "shrinkA": 12, "shrinkB": 12, "lw": 0.8, "color": "0.3"}
    ax.annotate("", end, start, arrowprops=arrow)


def residual_norms(norms: np.ndarray, bounces: np.ndarray | None = None, shown: int = 3) -> Figure:
    """Draw how far the state moves at every frame, and its mean around bounces if they are known.

    Args:
        norms: `(N, T - 1)`, of frames 2, ..., T.
        bounces: bool `(N, T - 1)`, whether a digit changed its speed on the way to that frame.
        shown: how many videos have a curve of their own.
    """
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    single, *around = figure.subplots(1, 1 if bounces is None else 2, squeeze=False)[0]
    frames = np.arange(2, norms.shape[1] + 2)
    for i, norm in enumerate(norms[:shown]):
        (line,) = single.plot(frames, norm, lw=1, label=f"clip {i}")
        if bounces is not None:
            hit = bounces[i]
            single.plot(frames[hit], norm[hit], "o", ms=4, color=line.get_color())
    marks = "" if bounces is None else "; dots: a digit bounces"
    single.set(xlabel="frame", ylabel="norm of the residual", title=f"single clips{marks}")
    figure.legend(loc="outside upper center", ncols=shown)
    for ax in around:
        table = around_bounces(norms, bounces)
        add_curve(ax, table.index, table["mean"], table["ci95"])
        ax.axhline(norms.mean(), ls="--", color="0.5", lw=1)
        told = "mean, 95 % interval; dashed: of all frames"
        ax.set(xlabel="frames after a bounce", ylabel="", title=told)
    return figure


def around_bounces(norms: np.ndarray, bounces: np.ndarray, reach: int = 4) -> pd.DataFrame:
    """Return mean and ci95 (1.96 standard errors) by distance from a bounce, in frames.

    Args:
        norms: `(N, T - 1)`.
        bounces: bool `(N, T - 1)`.
        reach: the largest distance.
    """
    rows = [
        (offset, norms[video, frame + offset])
        for video, frame in np.argwhere(bounces)
        for offset in range(-reach, reach + 1)
        if 0 <= frame + offset < norms.shape[1]
    ]
    groups = pd.DataFrame(rows, columns=["offset", "norm"]).groupby("offset")["norm"]
    return pd.DataFrame({"mean": groups.mean(), "ci95": 1.96 * groups.sem(ddof=0)})


def trajectories(given: np.ndarray, futures: np.ndarray, steps: int = 1) -> Figure:
    """Draw states in the plane in which they vary most.

    Args:
        given: `(T, 2)`, of the given frames.
        futures: `(S, F * steps, 2)`; each continues from the last given state.
        steps: states per frame; those at whole times are drawn larger.
    """
    figure = Figure(figsize=(COLUMN, 2.8), layout="constrained")
    ax = figure.subplots()
    for i, future in enumerate(futures):
        path = np.concatenate([given[-1:], future])
        color = f"C{i}"
        ax.plot(*path.T, lw=0.8, color=color, label=f"future {i + 1}")
        ax.scatter(*path[1:].T, s=2, color=color)
        ax.scatter(*path[steps::steps].T, s=10, color=color)
    ax.plot(*given.T, "-o", ms=4, lw=1.5, color="black", label="given")
    ax.set(xlabel="first principal axis of $y$", ylabel="second principal axis of $y$")
    figure.legend(loc="outside right upper")
    return figure
