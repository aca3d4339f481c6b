"""Fixtures that several test files share: a small experiment and small videos."""

import os

# Tests compute on tiny tensors: a second thread costs more than it brings, and on a busy machine a
# hundred times more. Notebook kernels inherit this.
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["SRVP_WORKERS"] = "1"  # small files are decoded before a pool of processes is up
os.environ["TQDM_DISABLE"] = "1"

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from projects import ROOT

from srvp.data import TrainingVideos
from srvp.data.sets.moving_mnist import MovingMNIST
from srvp.experiment import Experiment, load_experiment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the pipeline, so that no core waits for them at the end."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


def generator(seed: int = 0) -> torch.Generator:
    """Return a generator of random numbers on the CPU."""
    return torch.Generator().manual_seed(seed)


def squares(size: int) -> TrainingVideos:
    """Return moving videos of squares, in frames of `size` pixels: no file is read."""
    side = size * 7 // 16
    digits = torch.zeros(20, side, side, dtype=torch.uint8)
    for i, digit in enumerate(digits):
        digit[i // 2 : i // 2 + 4, 6 - i // 4 : 10] = 255
    return TrainingVideos(*2 * [MovingMNIST(digits, deterministic=False)])


def kill_after_checkpoint(training: subprocess.Popen, folder: Path) -> None:
    """Kill a training (SIGKILL) that has a checkpoint in its folder, but no model yet."""
    while not (folder / "checkpoint.pt").exists():
        assert training.poll() is None
        time.sleep(0.01)
    training.kill()
    training.wait()
    assert not (folder / "model.safetensors").exists()


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    """The `tiny` experiment of params.yaml, on the CPU."""
    experiment = load_experiment(ROOT / "params.yaml", "tiny")
    return replace(experiment, training=replace(experiment.training, device="cpu"))


@pytest.fixture(scope="session")
def blobs() -> TrainingVideos:
    """Moving videos of random squares in place of digits: no file is read."""
    digits = torch.zeros(20, 28, 28, dtype=torch.uint8)
    for i, digit in enumerate(digits):
        digit[i : i + 6, 20 - i : 28 - i] = 200
    return TrainingVideos(*2 * [MovingMNIST(digits, deterministic=False)])
