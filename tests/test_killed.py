"""StructVRNN and KVAE, killed in training, resume bit for bit: the tiny experiments."""

import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, kill_after_checkpoint, squares

from srvp.experiment import Experiment, load_experiment
from srvp.training.loop import train

RUN = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
from conftest import squares
from test_killed import experiment, train
trained = experiment(sys.argv[1])
train(trained, squares(trained.data.size), Path(sys.argv[2]))
"""


def experiment(name: str) -> Experiment:
    tiny = load_experiment(ROOT / "params.yaml", name)
    # KVAE's phases change after step 10: with a kill after step 3, within the resumed part.
    steps = {"checkpoint_interval": 3, "constant_steps": 10, "decay_steps": 5, "device": "cpu"}
    return replace(tiny, training=replace(tiny.training, **steps, validation_interval=15))


@pytest.mark.parametrize("name", ["structvrnn_tiny", "kvae_tiny"])
def test_a_training_that_is_killed_resumes_to_the_same_files(name, tmp_path):
    """SIGKILL in the middle, then the same command: the model and its curves."""

    def start():
        command = [sys.executable, "-c", RUN, name, str(tmp_path / "killed")]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    killed = start()
    kill_after_checkpoint(killed, tmp_path / "killed")
    assert start().wait() == 0
    train(experiment(name), squares(experiment(name).data.size), tmp_path / "whole")
    for file in ("model.safetensors", "training.csv"):
        resumed, whole = ((tmp_path / run / file).read_bytes() for run in ("killed", "whole"))
        assert resumed == whole, file
