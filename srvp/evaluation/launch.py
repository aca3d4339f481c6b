"""Start an evaluation: on all GPUs of this machine, a process each, or right here.

Every process scores some of the batches of clips. Their files are then the finished batches that
`srvp.evaluation.protocol` finds.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from srvp.data.prepared import PreparedVideos
from srvp.devices import all_like
from srvp.evaluation.precision import settled
from srvp.evaluation.protocol import batch_files, evaluate_experiment, parts, score_batches
from srvp.evaluation.results import Scores
from srvp.experiment import Experiment
from srvp.metrics.table import fetch_weights
from srvp.models.interface import VideoModel
from srvp.processes import in_processes


def evaluate_everywhere(
    model: VideoModel,
    experiment: Experiment,
    videos: PreparedVideos,
    source: Path,
    out: Path,
    devices: Sequence[torch.device] | None = None,
    references: Path | None = None,
) -> dict[str, Scores]:
    """Do what `evaluate_experiment` does, with several devices if there are any.

    Args:
        model, experiment, videos, source, out: as for `evaluate_experiment`.
        devices: that share the test set; by default all GPUs if the model is on one.
        references: as for `evaluate_experiment`.

    Returns:
        Scores by predictor.

    Raises:
        RuntimeError: a process failed; with the last line of its error.
    """
    device = next(model.parameters()).device
    experiment, devices = settled(experiment, device), devices or all_like(device)
    if len(devices) > 1:
        fetch_weights(experiment.evaluation.metrics)  # here, rather than in every process
        batches = [
            path
            for part in parts(model, experiment, videos, out, references)
            for path in batch_files(videos, experiment.evaluation, part.partial)
        ]
        args = (devices, copy.deepcopy(model).cpu(), experiment, videos, out, references)
        # A bar that is rarely drawn: every drawing is a line in an executed notebook.
        with tqdm(total=len(batches), desc="evaluate", unit="batch", mininterval=5) as bar:

            def show() -> None:
                bar.update(sum(path.exists() for path in batches) - bar.n)

            in_processes(_score_share, args, len(devices), meanwhile=show)
    return evaluate_experiment(model, experiment, videos, source, out, references)


def _score_share(
    rank: int,
    devices: Sequence[torch.device],
    model: VideoModel,
    experiment: Experiment,
    videos: PreparedVideos,
    out: Path,
    references: Path | None,
) -> None:
    """Score every n-th batch: the share of one of n processes."""
    device, config = devices[rank], experiment.evaluation
    for predictors, partial in parts(model.to(device), experiment, videos, out, references):
        batches = list(batch_files(videos, config, partial).items())[rank :: len(devices)]
        score_batches(dict(batches), predictors, videos, config, device, progress=False)
