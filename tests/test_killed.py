"""StructVRNN and KVAE, killed in training, resume bit for bit: the tiny experiments."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from srvp.data import TrainingVideos
from srvp.data.sets.moving_mnist import MovingMNIST
from srvp.experiment import Experiment, load_experiment
from srvp.training.loop import train

RUN = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
from test_killed import experiment, squares, train
train(experiment(sys.argv[1]), squares(sys.argv[1]), Path(sys.argv[2]))
"""


def experiment(name: str) -> Experiment:
    tiny = load_experiment(ROOT / "params.yaml", name)
    # KVAE's phases change after step 10: with a kill after step 3, within the resumed part.
    steps = {"checkpoint_interval": 3, "constant_steps": 10, "decay_steps": 5, "device": "cpu"}
    return replace(tiny, training=replace(tiny.training, **steps, validation_interval=15))


def squares(name: str) -> TrainingVideos:
    """Squares that move in frames of the experiment's size."""
    digit_size = experiment(name).data.size * 7 // 16
    digits = torch.zeros(20, digit_size, digit_size, dtype=torch.uint8)
    for i, digit in enumerate(digits):
        digit[i // 2 : i // 2 + 4, 6 - i // 4 : 10] = 255
    return TrainingVideos(*2 * [MovingMNIST(digits, deterministic=False)])


@pytest.mark.parametrize("name", ["structvrnn_tiny", "kvae_tiny"])
def test_a_training_that_is_killed_resumes_to_the_same_files(name, tmp_path):
    """SIGKILL in the middle, then the same command: the model and its curves."""

    def start():
        command = [sys.executable, "-c", RUN, name, str(tmp_path / "killed")]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    killed = start()
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    while not checkpoint.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert start().wait() == 0
    train(experiment(name), squares(name), tmp_path / "whole")
    for file in ("model.safetensors", "training.csv"):
        resumed, whole = ((tmp_path / run / file).read_bytes() for run in ("killed", "whole"))
        assert resumed == whole, file
