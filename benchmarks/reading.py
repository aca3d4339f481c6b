"""How many files of the package a reader of one training step, and of one evaluation, goes through.

    python benchmarks/reading.py

It counts the files whose functions run, on a CPU, for the experiment `tiny`: while the clips of a
step are drawn and `Run.update` takes it; and in all of `evaluate_experiment`, but for the files of
results that it writes at the end: test clips are read, predicted by the model and by the predictors
that learn nothing, and scored; the scores are saved and loaded. The faster forms of layers are left
out (`models/parts/fast`): they compute what PyTorch's do.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import srvp
from srvp.data.prepared import PreparedVideos
from srvp.data.sets.moving_mnist import MovingMNIST
from srvp.data.staging import Fold, Video, write_prepared
from srvp.evaluation import protocol
from srvp.experiment import Experiment, load_experiment
from srvp.files import project_root
from srvp.training.run import Run

PACKAGE = Path(srvp.__file__).parent
CPU = torch.device("cpu")


def files_of(call: Callable[[], Any]) -> list[str]:
    """Return the files of the package whose functions run in a call."""
    found = set()

    def watch(frame, event, argument) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    inside = (
        Path(name) for name in found if name.startswith(str(PACKAGE)) and "/fast/" not in name
    )
    return sorted(path.relative_to(PACKAGE).as_posix() for path in inside)


def step(experiment: Experiment, digits: torch.Tensor) -> list[str]:
    """Return the files of a training step."""
    run = Run(experiment, CPU)
    batches = MovingMNIST(digits, deterministic=False).batches(4, 12, seed=1)
    return files_of(lambda: run.update(next(batches)))


def evaluation(experiment: Experiment, digits: torch.Tensor) -> list[str]:
    """Return the files of an evaluation, from the test clips to the scores."""
    frames = experiment.data.test_frames
    draw = MovingMNIST(digits, deterministic=False).draw
    clips = (255 * draw(2, frames, torch.Generator().manual_seed(0)).frames).byte().numpy()
    with tempfile.TemporaryDirectory() as folder:
        fold = Fold(clips=[(0, 0), (1, 0)], clip_frames=frames)
        stored = [Video(str(i), clip) for i, clip in enumerate(clips)]
        write_prepared(Path(folder) / "test", stored, fold, dataset="smmnist")
        videos = PreparedVideos.open(Path(folder) / "test")
        # Other options of prediction are checked once more, in `srvp.schema`.
        config = replace(experiment.evaluation, predict=({},))
        experiment = replace(experiment, evaluation=config)
        model, source = Run(experiment, CPU).model, Path(folder) / "model.safetensors"
        source.touch()
        arguments = (model, experiment, videos, source, Path(folder))
        with patch.multiple(protocol, write_examples=DEFAULT, write_scores=DEFAULT):
            return files_of(lambda: protocol.evaluate_experiment(*arguments))


def main() -> None:
    """Print both lists."""
    experiment = load_experiment(project_root() / "params.yaml", "tiny")
    digits = torch.randint(256, (20, 28, 28), dtype=torch.uint8)
    for name, count in (("step", step), ("evaluation", evaluation)):
        files = count(experiment, digits)
        print(f"files {name} {len(files)}:", *files)


if __name__ == "__main__":
    main()
