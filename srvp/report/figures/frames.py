"""Figures of video frames: samples, how much futures differ, frame rates.

Given frames have a green border, predicted ones a red one, those between whole times a blue one
(`style.py`). Videos are uint8 arrays `(T, C, H, W)`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from srvp.report.figures.style import BETWEEN, GIVEN, PREDICTED, WIDTH


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
    figure = Figure(figsize=(WIDTH, size * len(rows) + 0.35))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for (label, video), line in zip(rows.items(), axes, strict=True):
        n_given = given if isinstance(given, int) else given[label]
        for frame, ax in zip(columns, line, strict=True):
            _show(ax, video[frame], GIVEN if frame < n_given else PREDICTED)
        _label_row(line[0], label)
    for frame, ax in zip(columns, axes[0], strict=True):
        ax.set_title(f"t = {frame + 1}", pad=3)
    figure.suptitle(title)
    figure.subplots_adjust(wspace=0.06, hspace=0.06, top=1 - 0.45 / figure.get_figheight())
    return figure


def diversity_maps(samples: np.ndarray, columns: Sequence[int], first: int) -> Figure:
    """Draw where futures of one video differ: one of them, their mean, their deviation per pixel.

    Args:
        samples: `(S, T, C, H, W)`, predicted frames of all futures.
        columns: which of the T frames to draw, counted from 0.
        first: number of the first predicted frame in the video, from 1.
    """
    deviation = samples.mean(axis=2).std(axis=0) / 255  # (T, H, W), of grey values
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for column, frame in enumerate(columns):
        _show(axes[0, column], samples[0, frame], PREDICTED)
        _show(axes[1, column], samples[:, frame].mean(axis=0).round().astype(np.uint8), PREDICTED)
        heat = axes[2, column].imshow(deviation[frame], cmap="inferno", vmin=0, vmax=0.4)
        axes[2, column].set(xticks=[], yticks=[])
        axes[2, column].spines[:].set(visible=True, color="0.5")
        axes[0, column].set_title(f"t = {first + frame}", pad=3)
    for label, ax in zip(("a future", f"mean of {len(samples)}", "deviation"), axes, strict=True):
        _label_row(ax[0], label)
    figure.colorbar(heat, ax=axes[2], aspect=6)
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
    figure = Figure(figsize=(WIDTH, height))
    for row, (rate, video) in enumerate(videos.items()):
        bottom = height - 0.25 - (row + 1) * (size + 0.05)
        figure.text(0.55 / WIDTH, (bottom + size / 2) / height, f"{rate}x", ha="right", va="center")
        for i in range((frames - 1) * rate + 1):
            where = (left + i * finest / rate * size, bottom, 0.94 * size, 0.94 * size)
            ax = figure.add_axes(np.array(where) / (WIDTH, height, WIDTH, height))
            # The last of a frame's `rate` states is at its whole time.
            _show(ax, video[i + rate - 1], BETWEEN if i % rate else PREDICTED)
            if row == 0:
                ax.set_title(f"t = {first + i}", pad=3)
    return figure


def _show(ax: Axes, frame: np.ndarray, border: str) -> None:
    ax.imshow(image(frame), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=border, linewidth=1.2)


def _label_row(ax: Axes, label: str) -> None:
    ax.set_ylabel(label, rotation=0, ha="right", va="center")


def spread(given: int, total: int, predicted: int = 7) -> list[int]:
    """Return which frames to draw: the first and last given, then some evenly spaced later ones."""
    later = np.linspace(given, total - 1, min(predicted, total - given)).round().astype(int)
    return sorted({0, given - 1, *later.tolist()})


def image(frame: np.ndarray) -> np.ndarray:
    """Return a frame `(C, H, W)` as imaging libraries take it: `(H, W)` or `(H, W, 3)`."""
    return frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)


def to_bytes(x: Tensor) -> np.ndarray:
    """Return frames in [0, 1] as figures take them: uint8."""
    return (255 * x).round().byte().cpu().numpy()


def futures(
    examples: Mapping[str, np.ndarray], video: int, metric: str = "psnr"
) -> dict[str, np.ndarray]:
    """Return truth, best, random and worst sample of a test video, each with the given frames.

    With one sample per video, the three coincide: then there are truth and prediction only.

    Args:
        examples: content of a run's `examples.safetensors`.
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
