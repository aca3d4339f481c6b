"""Figures of predictions, metrics and training: one look, the same bytes every time.

Every function returns a closed matplotlib figure: as the last line of a notebook cell it is shown,
once; `save` writes it as PNG and PDF.
Frames given to the model have a green border, predicted ones a red one.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from srvp.files import atomic_write
from srvp.report import number
from srvp.results import LABELS, LOWER_IS_BETTER

GIVEN, PREDICTED = "#009e73", "#d55e00"  # green and red of the colour-blind safe Okabe-Ito palette
WIDTH = 6.75  # inches: two columns of a paper
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
    "savefig.dpi": 200,
}


def use_style() -> None:
    """Make matplotlib and seaborn draw in the repository's style."""
    sns.set_theme(style="ticks", palette="colorblind", context="paper", rc=STYLE)


def save(figure: Figure, run: Path, name: str) -> None:
    """Write `run/figures/NAME.png` to look at and `run/print/NAME.pdf` for papers.

    Neither holds dates or versions, which would change its bytes.
    """
    with atomic_write(run / "figures" / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    with atomic_write(run / "print" / f"{name}.pdf") as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})


def sample_grid(
    rows: dict[str, np.ndarray], conditioning_frames: int, columns: Sequence[int], title: str = ""
) -> Figure:
    """Draw videos as rows of frames.

    Args:
        rows: uint8 videos `(T, C, H, W)` by label, all of one length.
        conditioning_frames: frames that were given to the model.
        columns: which frames to draw, counted from 0.
        title: of the figure.
    """
    size = WIDTH / (len(columns) + 1.2)
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(WIDTH, size * len(rows) + 0.35), squeeze=False
    )
    for (label, video), line in zip(rows.items(), axes, strict=True):
        for frame, ax in zip(columns, line, strict=True):
            ax.imshow(image(video[frame]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(
                visible=True,
                color=GIVEN if frame < conditioning_frames else PREDICTED,
                linewidth=1.2,
            )
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for frame, ax in zip(columns, axes[0], strict=True):
        ax.set_title(f"t = {frame + 1}", fontsize=7, pad=3)
    figure.suptitle(title, fontsize=9)
    figure.subplots_adjust(wspace=0.06, hspace=0.06, top=1 - 0.45 / figure.get_figheight())
    plt.close(figure)
    return figure


def spread(given: int, total: int, predicted: int = 7) -> list[int]:
    """Return which frames to draw: the first and last given, then some evenly spaced later ones."""
    later = np.linspace(given, total - 1, min(predicted, total - given)).round().astype(int)
    return sorted({0, given - 1, *later.tolist()})


def image(frame: np.ndarray) -> np.ndarray:
    """Return a frame `(C, H, W)` as what imaging libraries take: `(H, W)` or `(H, W, 3)`."""
    return frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)


def futures(examples: dict[str, np.ndarray], video: int, metric: str = "psnr") -> dict:
    """Return truth, best, random and worst sample of a test video, each with the given frames.

    Args:
        examples: what `evaluation.write_examples` wrote.
        video: its number.
        metric: that best and worst refer to.
    """
    truth = examples["truth"][video]
    samples = {
        f"best {metric.upper()}": examples[f"{metric}.best"][video],
        "random": examples["random"][video],
        f"worst {metric.upper()}": examples[f"{metric}.worst"][video],
    }
    given = truth[: len(truth) - len(examples["random"][video])]
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
        ax.get_legend().remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, bbox_to_anchor=(0.5, 1.09))
    figure.tight_layout()
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
        table: of `srvp.report.report`. Ours are drawn in colour, published ones in grey.
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
        line[0].set(yticks=range(len(block)), yticklabels=block["model"])
        line[0].set_ylim(len(block) - 0.5, -0.5)
    for metric, ax in zip(metrics, axes[-1], strict=True):
        label = f"{LABELS[metric]} {'↓' if metric in LOWER_IS_BETTER else '↑'}"
        ax.set_xlabel(label, fontsize=8)
    plt.close(figure)
    return figure


def _interval_plot(rows: pd.DataFrame, metric: str, ax: plt.Axes) -> None:
    """Draw a point with its interval and value for each row that has the metric."""
    for y, (_, row) in enumerate(rows.iterrows()):
        if number(row, metric):
            color, error = (PREDICTED if row["run"] else "0.35"), row[f"{metric}_ci95"]
            ax.errorbar(row[metric], y, xerr=error, fmt="o", ms=3, lw=1, color=color)
            value, _, _ = number(row, metric).partition(" ")
            place = {"xytext": (4, 3), "textcoords": "offset points"}
            ax.annotate(value, (row[metric], y), **place, fontsize=5, color=color)
    ax.margins(x=0.2)
    ax.tick_params(labelsize=7)
    if rows[metric].isna().all():
        ax.set_xticks([])


def animation(
    videos: Sequence[dict[str, np.ndarray]], conditioning_frames: int, path: Path, zoom: int = 2
) -> None:
    """Write a GIF: a row per test video, a column per label, as `futures` returns them.

    Args:
        videos: by label, uint8 `(T, C, H, W)`.
        conditioning_frames: frames that were given to the model; bordered green, others red.
        path: of the GIF.
        zoom: pixels on the screen per pixel of a frame.
    """
    length = len(next(iter(videos[0].values())))
    pages = []
    for t in range(length):
        color = mpl.colors.to_rgb(GIVEN if t < conditioning_frames else PREDICTED)
        rows = [
            np.concatenate([_bordered(v[t], color, zoom) for v in video.values()], axis=1)
            for video in videos
        ]
        pages.append(Image.fromarray(np.concatenate([_header(videos[0], rows[0]), *rows])))
    with atomic_write(path) as temporary:
        pages[0].save(
            temporary, format="GIF", save_all=True, append_images=pages[1:], duration=150, loop=0
        )


def _bordered(frame: np.ndarray, color: tuple[float, float, float], zoom: int) -> np.ndarray:
    """Enlarge a frame to uint8 RGB, with a border of `color` and a white margin."""
    picture = np.atleast_3d(image(frame)).repeat(zoom, axis=0).repeat(zoom, axis=1)
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    for width, value in ((zoom, np.round(255 * np.array(color)).astype(np.uint8)), (2 * zoom, 255)):
        framed = np.empty((*(np.array(picture.shape[:2]) + 2 * width), 3), np.uint8)
        framed[:] = value
        framed[width:-width, width:-width] = picture
        picture = framed
    return picture


def _header(labels: Sequence[str], row: np.ndarray) -> np.ndarray:
    """Draw the columns' labels on a white strip as wide as `row`."""
    strip = Image.new("RGB", (row.shape[1], 22), "white")
    draw, column = ImageDraw.Draw(strip), row.shape[1] / len(labels)
    for i, label in enumerate(labels):
        draw.text(((i + 0.5) * column, 12), label, fill="black", anchor="mm", font_size=13)
    return np.asarray(strip)
