"""Figures of StructVRNN's keypoints: over the frames, and along the futures of a clip.

Keypoints are float arrays `(..., K, 3)` as in `srvp.models.parts.keypoints`: x, y and scale.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from srvp.report.figures.frames import image, sample_grid
from srvp.report.figures.style import COLUMN, CURVES, GIVEN

LINES = [color for color in CURVES if color != GIVEN]


def pixels(keypoints: np.ndarray, size: int) -> np.ndarray:
    """Return columns and rows `(..., K, 2)` of keypoints, in frames of `size` pixels."""
    x, y = keypoints[..., 0], keypoints[..., 1]
    return np.stack([1 + x, 1 - y], axis=-1) * (size - 1) / 2


def distance_to_nearest(keypoints: np.ndarray, centres: np.ndarray, size: int) -> float:
    """Return the mean distance in pixels from an object's centre to the nearest keypoint.

    Args:
        keypoints: `(..., K, 3)`.
        centres: `(..., objects, 2)`, rows and columns.
        size: of the frames, in pixels.
    """
    offsets = centres[..., :, None, ::-1] - pixels(keypoints, size)[..., None, :, :]
    return float(np.linalg.norm(offsets, axis=-1).min(axis=-1).mean())


def keypoint_grid(
    rows: Mapping[str, np.ndarray],
    keypoints: Mapping[str, np.ndarray],
    given: int | Mapping[str, int],
    columns: Sequence[int],
    title: str = "",
) -> Figure:
    """Draw videos as rows of frames, with the keypoints over them.

    A keypoint has the same colour everywhere; the smaller its scale, the smaller its mark.

    Args:
        rows: videos by label, uint8 `(T, C, H, W)`.
        keypoints: of every frame, `(T, K, 3)`, by the same labels.
        given: how many frames were given to the model; by label, if the rows differ in it.
        columns: which frames to draw, counted from 0.
        title: of the figure.
    """
    figure = sample_grid(rows, given, columns, title)
    lines = np.reshape(figure.axes, (len(rows), len(columns)))
    for (label, video), line in zip(rows.items(), lines, strict=True):
        places = pixels(keypoints[label], video.shape[-1])
        for frame, ax in zip(columns, line, strict=True):
            scales = keypoints[label][frame, :, 2].clip(0, 1)  # predicted ones may be negative
            colors = [f"C{k % 10}" for k in range(len(scales))]
            ax.scatter(*places[frame].T, s=16 * scales, c=colors, lw=0.3, ec="white")
    return figure


def keypoint_trajectories(
    frame: np.ndarray,
    given: np.ndarray,
    futures: np.ndarray,
    shown: int = 4,
    branches: int = 3,
    ahead: int = 6,
) -> Figure:
    """Draw where the strongest keypoints of a clip come from, and where some futures take them.

    Every keypoint has its colour in the futures, which end in dots. More or longer ones would hide
    each other.

    Args:
        frame: the last given one, uint8 `(C, H, W)`.
        given: keypoints of the given frames, `(T, K, 3)`.
        futures: those of the predicted frames, `(S, frames, K, 3)`.
        shown: how many keypoints to draw.
        branches: how many futures.
        ahead: how many of their frames.
    """
    futures = futures[:branches, :ahead]
    strongest = np.argsort(-given[..., 2].mean(axis=0))[:shown]
    past = pixels(given, frame.shape[-1])[:, strongest].swapaxes(0, 1)
    paths = pixels(futures, frame.shape[-1])[:, :, strongest].transpose(2, 0, 1, 3)
    figure = Figure(figsize=(COLUMN, COLUMN), layout="constrained")
    ax = figure.subplots()
    ax.imshow(image(frame // 2), cmap="gray", vmin=0, vmax=255)  # dark behind the lines
    for i, (start, ends) in enumerate(zip(past, paths, strict=True)):
        segments = [np.concatenate([start[-1:], path]) for path in ends]
        ax.add_collection(LineCollection(segments, colors=LINES[i], lw=1))
        ax.scatter(*ends[:, -1].T, s=12, color=LINES[i], zorder=3)
        ax.plot(*start.T, color=GIVEN, lw=2)
        ax.plot(*start[-1], "o", color=GIVEN, ms=4)
    ax.set(xticks=[], yticks=[], xlim=(-0.5, frame.shape[-1] - 0.5))
    ax.set_ylim(frame.shape[-1] - 0.5, -0.5)
    handles = [Line2D([], [], color=color) for color in (GIVEN, LINES[0])]
    told = ["given", f"{len(futures)} futures, {futures.shape[1]} frames"]
    figure.legend(handles, told, loc="outside lower center", ncols=2)
    return figure
