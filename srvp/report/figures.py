"""Figures of predictions, metrics, states and training: one look, the same bytes every time.

Every function returns a closed matplotlib figure: as the last line of a notebook cell it is shown,
once; `save` writes it as PNG and PDF.
Frames given to the model have a green border, predicted ones a red one, those between whole times a
blue one. Videos are uint8 `(T, C, H, W)` arrays.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image, ImageChops, ImageStat
from torch import Tensor

from srvp.evaluation.results import LABELS, LOWER_IS_BETTER
from srvp.files import atomic_write
from srvp.report.table import number

# Green, red and blue of the colour-blind safe Okabe-Ito palette.
GIVEN, PREDICTED, BETWEEN = "#009e73", "#d55e00", "#0072b2"
WIDTH = 6.75  # inches: two columns of a paper, or half a slide
COLUMN = 3.25  # inches: one column
TERMS = {
    "total": "loss",
    "nll": "negative log-likelihood",
    "kl_y": "KL of the first state",
    "kl_z": "KL of z",
    "residual": "residual norm",
    "mse": "squared error per pixel",
    "kl": "KL of z",
    "validation_psnr": "validation PSNR, best sample",
}
UNITS = dict.fromkeys(("nll", "kl_y", "kl_z", "kl"), "nats per video") | {"validation_psnr": "dB"}
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.dpi": 110,
    "font.size": 8,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    "savefig.dpi": 160,
}


def use_style() -> None:
    """Make matplotlib and seaborn draw in the repository's style."""
    sns.set_theme(style="ticks", palette="colorblind", context="paper", rc=STYLE)


def save(figure: Figure, run: Path, name: str) -> None:
    """Write `run/figures/NAME.png` to look at and `run/print/NAME.pdf` for papers.

    Neither holds dates or versions, which would change its bytes.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    with atomic_write(run / "figures" / f"{name}.png") as temporary:
        _to_palette(Image.open(drawn).convert("RGB")).save(temporary, format="PNG", optimize=True)
    with atomic_write(run / "print" / f"{name}.pdf") as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})


def _to_palette(picture: Image.Image) -> Image.Image:
    """Return a picture in 256 colours of its own, half the bytes, or itself if that shows.

    It hardly does on plots and grey frames; photographs would have steps in their shades.
    """
    reduced = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    error = ImageChops.difference(picture, reduced.convert("RGB"))
    return reduced if max(ImageStat.Stat(error).mean) < 1 else picture


def sample_grid(
    rows: Mapping[str, np.ndarray],
    given: int | Mapping[str, int],
    columns: Sequence[int],
    title: str = "",
) -> Figure:
    """Draw videos as rows of frames.

    Args:
        rows: videos by label, all of one length.
        given: how many frames were given to the model; by label, if the rows differ in it.
        columns: which frames to draw, counted from 0.
        title: of the figure.
    """
    size = WIDTH / (len(columns) + 1.2)
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(WIDTH, size * len(rows) + 0.35), squeeze=False
    )
    for (label, video), line in zip(rows.items(), axes, strict=True):
        known = given if isinstance(given, int) else given[label]
        for frame, ax in zip(columns, line, strict=True):
            _show(ax, video[frame], GIVEN if frame < known else PREDICTED)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for frame, ax in zip(columns, axes[0], strict=True):
        ax.set_title(f"t = {frame + 1}", fontsize=7, pad=3)
    figure.suptitle(title, fontsize=9)
    figure.subplots_adjust(wspace=0.06, hspace=0.06, top=1 - 0.45 / figure.get_figheight())
    plt.close(figure)
    return figure


def _show(ax: Axes, frame: np.ndarray, border: str) -> None:
    ax.imshow(image(frame), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=border, linewidth=1.2)


def spread(given: int, total: int, predicted: int = 7) -> list[int]:
    """Return which frames to draw: the first and last given, then some evenly spaced later ones."""
    later = np.linspace(given, total - 1, min(predicted, total - given)).round().astype(int)
    return sorted({0, given - 1, *later.tolist()})


def image(frame: np.ndarray) -> np.ndarray:
    """Return a frame `(C, H, W)` as what imaging libraries take: `(H, W)` or `(H, W, 3)`."""
    return frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)


def to_bytes(x: Tensor) -> np.ndarray:
    """Return frames in [0, 1] as figures take them: uint8."""
    return (255 * x).round().byte().cpu().numpy()


def futures(examples: dict[str, np.ndarray], video: int, metric: str = "psnr") -> dict:
    """Return truth, best, random and worst sample of a test video, each with the given frames.

    Of one sample a video, these are one: the truth and the prediction are returned.

    Args:
        examples: what `evaluation.write_examples` wrote.
        video: its number.
        metric: that best and worst refer to.
    """
    truth = examples["truth"][video]
    best, worst = f"{metric}.best", f"{metric}.worst"
    rows = {f"best {metric.upper()}": best, "random": "random", f"worst {metric.upper()}": worst}
    if np.array_equal(examples[best], examples[worst]):
        rows = {"prediction": "random"}
    given = truth[: len(truth) - len(examples["random"][video])]
    samples = {label: examples[name][video] for label, name in rows.items()}
    return {"truth": truth, **{k: np.concatenate([given, v]) for k, v in samples.items()}}


def metric_curves(curves: pd.DataFrame) -> Figure:
    """Draw each metric against the frame, with 95 % bands.

    Args:
        curves: columns predictor, metric, frame, mean, ci95 (`evaluation.curves_table`).
    """
    metrics = list(curves["metric"].unique())
    figure, axes = plt.subplots(1, len(metrics), figsize=(WIDTH, 2.6), squeeze=False)
    for metric, ax in zip(metrics, axes[0], strict=True):
        shown = curves[curves["metric"] == metric]
        sns.lineplot(shown, x="frame", y="mean", hue="predictor", style="predictor", ax=ax)
        for (_, line), drawn in zip(shown.groupby("predictor", sort=False), ax.lines, strict=False):
            low, high = line["mean"] - line["ci95"], line["mean"] + line["ci95"]
            ax.fill_between(line["frame"], low, high, color=drawn.get_color(), alpha=0.2, lw=0)
        ax.set(xlabel="frame", ylabel=LABELS[metric])
        # Equal frames score 100 dB: a frame that comes back would flatten all other curves.
        limit = 2 * shown["mean"].median()
        if metric == "psnr" and shown["mean"].max() > limit:
            ax.set_ylim(top=limit)
        ax.get_legend().remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, loc="lower center", ncols=4, bbox_to_anchor=(0.5, 1.0))
    plt.close(figure)
    return figure


def training_curves(history: pd.DataFrame) -> Figure:
    """Draw the loss terms and the validation PSNR against the optimisation step.

    Args:
        history: the rows of a run's curves, one column per quantity.
    """
    terms = [name for name in history if name not in ("step", "lr")]
    columns = (len(terms) + 1) // 2
    figure, axes = plt.subplots(2, columns, figsize=(WIDTH, 3.4), sharex=True, squeeze=False)
    for name, ax in zip(terms, axes.flat, strict=False):
        shown = history[["step", name]].dropna()
        ax.plot(shown["step"], shown[name], marker="." if len(shown) < 20 else None, lw=1)
        ax.set(title=TERMS.get(name, name), ylabel=UNITS.get(name, ""))
        if name != "validation_psnr" and len(shown) > 20:  # the first steps would hide the rest
            settled = shown[name].iloc[len(shown) // 20 :]
            ax.set_ylim(settled.min(), settled.max())
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax in list(axes.flat)[len(terms) :]:
        ax.remove()
    figure.tight_layout()
    plt.close(figure)
    return figure


def report_table(table: pd.DataFrame) -> Figure:
    """Draw results with 95 % intervals: a row per model, a column per metric, a block per data set.

    Args:
        table: of `srvp.report.table.report`. Ours are drawn in colour, published ones in grey.
    """
    metrics = [metric for metric in LABELS if table[metric].notna().any()]
    blocks = list(table.groupby("dataset", sort=False))
    figure, axes = plt.subplots(
        len(blocks),
        len(metrics),
        figsize=(WIDTH, 0.17 * len(table) + 0.55 * len(blocks)),
        height_ratios=[len(block) for _, block in blocks],
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for (dataset, block), line in zip(blocks, axes, strict=True):
        for metric, ax in zip(metrics, line, strict=True):
            _interval_plot(block, metric, ax)
        line[0].set_title(dataset, loc="left")
        labels = [_label(row) for _, row in block.iterrows()]
        line[0].set(yticks=range(len(block)), yticklabels=labels)
        line[0].set_ylim(len(block) - 0.5, -0.5)
    for metric, ax in zip(metrics, axes[-1], strict=True):
        label = f"{LABELS[metric]} {'↓' if metric in LOWER_IS_BETTER else '↑'}"
        ax.set_xlabel(label, fontsize=8)
    plt.close(figure)
    return figure


def _label(row: pd.Series) -> str:
    return f"{row['model']}, {row['videos']:.0f} videos" if row["folder"] else row["model"]


def _interval_plot(rows: pd.DataFrame, metric: str, ax: Axes) -> None:
    """Draw a point with its interval and value for each row that has the metric."""
    for y, (_, row) in enumerate(rows.iterrows()):
        if number(row, metric):
            color, error = (PREDICTED if row["folder"] else "0.35"), row[f"{metric}_ci95"]
            ax.errorbar(row[metric], y, xerr=error, fmt="o", ms=3, lw=1, color=color)
            value, _, _ = number(row, metric).partition(" ")
            place = {"xytext": (4, 3), "textcoords": "offset points"}
            ax.annotate(value, (row[metric], y), **place, fontsize=5, color=color)
    ax.margins(x=0.3)  # room for the values
    ax.tick_params(labelsize=7)
    if rows[metric].isna().all():
        ax.set_xticks([])


def diversity_maps(samples: np.ndarray, columns: Sequence[int], first: int) -> Figure:
    """Draw where futures of one video differ: one of them, their mean, their deviation per pixel.

    Args:
        samples: `(S, T, C, H, W)`, predicted frames of all futures.
        columns: which of the T frames to draw, counted from 0.
        first: number of the first predicted frame in the video, from 1.
    """
    deviation = samples.mean(axis=2).std(axis=0) / 255  # (T, H, W), of grey values
    figure, axes = plt.subplots(
        3, len(columns), figsize=(WIDTH, 2.6), squeeze=False, layout="constrained"
    )
    for column, frame in enumerate(columns):
        _show(axes[0, column], samples[0, frame], PREDICTED)
        _show(axes[1, column], samples[:, frame].mean(axis=0).round().astype(np.uint8), PREDICTED)
        heat = axes[2, column].imshow(deviation[frame], cmap="mako", vmin=0, vmax=0.4)
        axes[2, column].set(xticks=[], yticks=[])
        axes[2, column].spines[:].set(visible=True, color="0.5")
        axes[0, column].set_title(f"t = {first + frame}", fontsize=7, pad=3)
    for label, ax in zip(("a future", f"mean of {len(samples)}", "deviation"), axes, strict=True):
        ax[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.colorbar(heat, ax=axes[2], aspect=6, label="deviation")
    plt.close(figure)
    return figure


def frame_rates(videos: Mapping[int, np.ndarray], first: int, frames: int) -> Figure:
    """Draw predictions of one future at several frame rates, each frame at its time.

    Args:
        videos: by number of frames per unit of time, each `(frames * rate, C, H, W)` or longer.
        first: time of the first predicted frame.
        frames: whole times to draw.
    """
    finest = max(videos)
    slots = (frames - 1) * finest + 1
    size, left = (WIDTH - 0.6) / slots, 0.6
    height = len(videos) * (size + 0.05) + 0.35
    figure = plt.figure(figsize=(WIDTH, height))
    for row, (rate, video) in enumerate(videos.items()):
        bottom = height - 0.25 - (row + 1) * (size + 0.05)
        figure.text(0.55 / WIDTH, (bottom + size / 2) / height, f"{rate}x", ha="right", va="center")
        for i in range((frames - 1) * rate + 1):
            where = (left + i * finest / rate * size, bottom, 0.94 * size, 0.94 * size)
            ax = figure.add_axes(np.array(where) / (WIDTH, height, WIDTH, height))
            # Of a frame's `rate` states the last is at its whole time.
            _show(ax, video[i + rate - 1], BETWEEN if i % rate else PREDICTED)
            if row == 0:
                ax.set_title(f"t = {first + i}", fontsize=7, pad=3)
    plt.close(figure)
    return figure


def residual_norms(norms: np.ndarray, bounces: np.ndarray | None = None, shown: int = 3) -> Figure:
    """Draw how far the state moves at every frame, and its mean around bounces if they are known.

    Args:
        norms: `(N, T - 1)`, of frames 2, ..., T.
        bounces: bool `(N, T - 1)`, whether a digit changed its speed on the way to that frame.
        shown: how many videos to draw singly.
    """
    panels = 1 if bounces is None else 2
    figure, axes = plt.subplots(1, panels, figsize=(WIDTH, 2.4), squeeze=False)
    frames = np.arange(2, norms.shape[1] + 2)
    for i, norm in enumerate(norms[:shown]):
        (line,) = axes[0, 0].plot(frames, norm, lw=1, label=f"clip {i}")
        if bounces is not None:
            hit = bounces[i]
            axes[0, 0].plot(frames[hit], norm[hit], "o", ms=4, color=line.get_color())
    marks = "" if bounces is None else "; dots: a digit bounces"
    axes[0, 0].set(xlabel="frame", ylabel="norm of the residual", title=f"single clips{marks}")
    axes[0, 0].legend(fontsize=6)
    if bounces is not None:
        table = around_bounces(norms, bounces)
        sns.lineplot(table, x="offset", y="norm", ax=axes[0, 1], errorbar=("ci", 95), seed=0)
        axes[0, 1].axhline(norms.mean(), ls="--", color="0.5", lw=1, label="mean of all frames")
        axes[0, 1].set(xlabel="frames after a bounce", ylabel="", title="mean, 95 % interval")
        axes[0, 1].legend(fontsize=6)
    figure.tight_layout()
    plt.close(figure)
    return figure


def around_bounces(norms: np.ndarray, bounces: np.ndarray, reach: int = 4) -> pd.DataFrame:
    """Return a row (offset, norm) per bounce and frame within `reach` frames of it."""
    rows = [
        (offset, norms[video, frame + offset])
        for video, frame in np.argwhere(bounces)
        for offset in range(-reach, reach + 1)
        if 0 <= frame + offset < norms.shape[1]
    ]
    return pd.DataFrame(rows, columns=["offset", "norm"])


def trajectories(given: np.ndarray, futures: np.ndarray, steps: int = 1) -> Figure:
    """Draw states in the plane in which they vary most.

    Args:
        given: `(T, 2)`, of the given frames.
        futures: `(S, F * steps, 2)`, that go on from the last given one.
        steps: states per frame; those at whole times are drawn larger.
    """
    figure, ax = plt.subplots(figsize=(COLUMN, 2.8))
    for i, future in enumerate(futures):
        path = np.concatenate([given[-1:], future])
        color = sns.color_palette("colorblind")[i % 10]
        ax.plot(*path.T, lw=0.8, color=color, label=f"future {i + 1}")
        ax.scatter(*path[1:].T, s=2, color=color)
        ax.scatter(*path[steps::steps].T, s=10, color=color)
    ax.plot(*given.T, "-o", ms=4, lw=1.5, color="black", label="given")
    ax.set(xlabel="first principal axis of $y$", ylabel="second principal axis of $y$")
    figure.tight_layout()
    ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    plt.close(figure)
    return figure


def step_sizes(scores: pd.DataFrame) -> Figure:
    """Draw the metrics against the number of Euler steps per predicted frame.

    Args:
        scores: columns steps, metric, mean and ci95.
    """
    metrics = list(scores["metric"].unique())
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(COLUMN * min(2, len(metrics)), 2.2), squeeze=False
    )
    for metric, ax in zip(metrics, axes[0], strict=True):
        shown = scores[scores["metric"] == metric]
        ax.errorbar(shown["steps"], shown["mean"], yerr=shown["ci95"], fmt="-o", ms=3, lw=1)
        ax.set(xlabel="Euler steps per frame, 1 / dt", ylabel=LABELS[metric])
        ax.set_xticks(sorted(shown["steps"].unique()))
    figure.tight_layout()
    plt.close(figure)
    return figure


def generative_model() -> Figure:
    """Draw SRVP as a graphical model: what depends on what (figure 1 of the paper)."""
    figure, ax = plt.subplots(figsize=(COLUMN + 0.5, 2.3))
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
    plt.close(figure)
    return figure


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = {"arrowstyle": "-|>", "shrinkA": 12, "shrinkB": 12, "lw": 0.8, "color": "0.3"}
    ax.annotate("", end, start, arrowprops=arrow)
