"""SV2P and SAVP in the training loop: killed and resumed, saved and loaded, in mixed precision."""

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
from srvp.store import load_model, save_model
from srvp.training.loop import train
from srvp.training.run import Run

MODELS = ("sv2p", "savp")


def experiment(name: str, **training) -> Experiment:
    """The tiny experiment of params.yaml, on the CPU."""
    tiny = load_experiment(ROOT / "params.yaml", f"{name}_tiny")
    changes = {"device": "cpu", "validation_frames": tiny.training.frames} | training
    return replace(tiny, training=replace(tiny.training, **changes))


def blobs() -> TrainingVideos:
    """Squares that move in frames of 32 pixels."""
    digits = torch.zeros(20, 14, 14, dtype=torch.uint8)
    for i, digit in enumerate(digits):
        digit[i // 2 : i // 2 + 4, 6 - i // 4 : 10] = 200
    return TrainingVideos(*2 * [MovingMNIST(digits, deterministic=False)])


RUN = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
from test_savp_training import blobs, experiment, train
train(experiment("savp"), blobs(), Path(sys.argv[1]))
"""


def test_a_gan_training_that_is_killed_resumes_bit_for_bit(tmp_path) -> None:
    """SIGKILL in the middle, then the same command: weights, discriminators, spectral norm's u."""

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", RUN, str(folder)], cwd=ROOT)

    killed = start(tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    while not checkpoint.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert start(tmp_path / "killed").wait() == 0
    train(experiment("savp"), blobs(), tmp_path / "whole")
    whole, resumed = (
        load_model(tmp_path / n / "model.safetensors")[0] for n in ("whole", "killed")
    )
    own = whole.state_dict()
    assert any(name.endswith("next_u") for name in own)
    for name, value in resumed.state_dict().items():
        assert value.equal(own[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_predicts_as_before(name: str, tmp_path) -> None:
    settings = experiment(name, constant_steps=2, decay_steps=0, validation_interval=2)
    model = train(settings, blobs(), tmp_path)
    save_model(model, settings, tmp_path / "again.safetensors")
    loaded, _ = load_model(tmp_path / "again.safetensors")
    x = torch.rand(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = model.draw_noise(4, 5, torch.Generator().manual_seed(1))
    with torch.no_grad():
        futures = [m.predict(m.condition(x), 3, noise).x for m in (model, loaded)]
    # Training lays maps out with channels last: sums are rounded in another order.
    torch.testing.assert_close(*futures, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_bfloat16_costs_nearly_the_same(name: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        run = Run(experiment(name, precision=precision), torch.device("cpu"))
        run.model.train()
        frames = run.config.frames
        run.update(blobs().train.draw(2, frames, torch.Generator().manual_seed(0)))
        losses.append(torch.stack([v for k, v in run.sums.items() if k.endswith(("l1", "mse"))]))
    # bfloat16 has 8 bits; the frames themselves are moved in float32.
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0)


def test_impossible_lengths_are_found_before_training() -> None:
    for name, key in (("sv2p", "posterior_frames"), ("savp", "clip_length")):
        with pytest.raises(ValueError, match=rf"training.frames is 4, .* model.{key}"):
            experiment(name, frames=4)
    larger = replace(experiment("savp").data, size=16)
    with pytest.raises(ValueError, match="SAVP needs one of"):
        Run(replace(experiment("savp"), data=larger), torch.device("cpu"))
