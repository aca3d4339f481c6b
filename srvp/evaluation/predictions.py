"""Futures that another program predicted, scored by the protocol of an experiment.

    python -m srvp score other.npz --experiment quick --out runs/other

Predictions are the frames after the given ones, for every clip of the prepared test set, in its
order. They are

- an `.npy`, or an `.npz` with one array, which is unpacked to a temporary file (in TMPDIR): uint8,
  or floating point in [0, 1], of shape `(N, S, F, C, H, W)`, or `(N, F, C, H, W)` for one sample
  per clip;
- or a folder of N * S videos, files or folders of numbered images, in the order of the numbers in
  their names, the samples of a clip together: `0000.avi`, ... or `0000/00.avi`, ... Only lossless
  files hold the frames that were predicted.

N clips, S samples, F predicted frames.
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from srvp.data.prepared import PreparedVideos
from srvp.devices import pick_device
from srvp.evaluation.precision import settled
from srvp.evaluation.protocol import Part, evaluate_parts, partial_folder, reference_part
from srvp.evaluation.references import REFERENCES, Predictor
from srvp.evaluation.results import Scores, digest, write_scores
from srvp.experiment import Experiment
from srvp.models.interface import Clips

FORMAT = "an .npz with one array, an .npy, or a folder of videos"


class Predictions(NamedTuple):
    """Predicted videos."""

    samples: int  # S
    read: Callable[[int, int], np.ndarray]  # of clip and sample: (F, C, H, W)


def open_predictions(path: Path, shape: tuple[int, ...]) -> Predictions:
    """Open the predictions of another program.

    Args:
        path: of the file or folder.
        shape: expected, `(N, F, C, H, W)`.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged, or not of this shape.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, shape)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: predictions are {FORMAT}")
    array = _read_array(path)
    if array.ndim == 5:
        array = array[:, None]
    if array.ndim != 6 or (len(array), *array.shape[2:]) != shape or not array.shape[1]:
        clips, *video = shape
        raise ValueError(
            f"{path} has shape {array.shape}, expected ({clips} clips, samples, "
            f"{', '.join(map(str, video))}): all test clips, only their predicted frames"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"{path} is {array.dtype}, expected uint8, or float in [0, 1]")
    return Predictions(array.shape[1], lambda clip, sample: array[clip, sample])


def _read_array(path: Path) -> np.ndarray:
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            members = content.zip.namelist()
            if len(members) == 1:
                return _unpacked(content.zip, members[0])
    except Exception as error:  # whatever numpy, zipfile and zlib raise for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): expected {FORMAT}") from None
    count = "several arrays" if members else "no array"
    raise ValueError(f"{path} holds {count}: expected {FORMAT}")


def _unpacked(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """Return an array of an archive, from a temporary file: all samples may outgrow the memory."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "array.npy"
        with archive.open(member) as packed, open(path, "wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
        return np.load(path, mmap_mode="r", allow_pickle=False)  # the map outlives the file's name


def _open_folder(folder: Path, shape: tuple[int, ...]) -> Predictions:
    # Decoding needs PyAV and Pillow, which scoring arrays can do without.
    from srvp.data.folders import by_number, find_videos
    from srvp.data.raw import resized

    videos = sorted(find_videos(folder), key=lambda video: by_number(video.name))
    clips, *expected = shape
    samples, rest = divmod(len(videos), clips)
    if rest or not samples:
        raise ValueError(
            f"{folder} holds {len(videos)} videos, expected as many for each of {clips} test clips"
        )

    def read(clip: int, sample: int) -> np.ndarray:
        video = videos[clip * samples + sample]
        try:
            images = list(video.frames())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / video.name} cannot be read ({error})") from None
        frames = np.stack([resized(x, x.shape[:2], channels=expected[1]) for x in images])
        if list(frames.shape) != expected:
            raise ValueError(
                f"{folder / video.name} has shape {frames.shape}, expected (frames, channels, "
                f"height, width) = {tuple(expected)}"
            )
        return frames

    return Predictions(samples, read)


def evaluate_predictions(
    path: Path,
    experiment: Experiment,
    videos: PreparedVideos,
    out: Path,
    references: Path | None = None,
) -> dict[str, Scores]:
    """Score the predictions of another program, and the reference predictors; write the results.

    Args:
        path: of the predictions.
        experiment: whose protocol to follow; the number of samples is that of the predictions.
        videos: the test set.
        out: folder for what `write_scores` writes; an evaluation that was killed resumes there.
        references: as for `srvp.evaluation.protocol.evaluate_experiment`.

    Returns:
        Scores by predictor: `path` without its ending, then the references.

    Raises:
        FileNotFoundError, ValueError: the predictions are missing, damaged, too few, or no frames.
    """
    path, frames = Path(path), experiment.predicted_frames
    name = path.resolve().name if path.is_dir() else path.stem
    name = os.fsencode(name).decode(errors="replace")  # tables are UTF-8
    if name in REFERENCES:
        raise ValueError(f"{path} has the name of a predictor of every table: rename it")
    predictions = open_predictions(path, (len(videos.clips), frames, videos.channels, *videos.size))
    device = pick_device(experiment.training.device)
    experiment = settled(experiment, device)
    config = replace(experiment.evaluation, samples=predictions.samples)
    scored = replace(experiment, evaluation=config)
    partial = partial_folder(out, digest(path), config, videos)
    both = [
        Part({name: _predictor(predictions)}, partial),
        reference_part(scored, videos, device, references or out),
    ]
    scores = evaluate_parts(both, videos, config, device)
    write_scores(scores, scored, path, out)
    return scores


def _predictor(predictions: Predictions) -> Predictor:
    def predict(given: Clips, numbers: list[int]) -> Iterator[Tensor]:
        for sample in range(predictions.samples):
            frames = np.stack([predictions.read(clip, sample) for clip in numbers])
            scale = 255 if frames.dtype == np.uint8 else 1
            x = torch.from_numpy(frames.astype(np.float32)).to(given.frames.device)
            yield (x / scale)[:, None]

    return predict
