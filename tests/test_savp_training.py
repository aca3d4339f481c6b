"""SV2P and SAVP in the training loop: killed and resumed, saved and loaded, in mixed precision."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, kill_after_checkpoint, squares

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


RUN = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
from conftest import squares
from test_savp_training import experiment, train
train(experiment("savp"), squares(32), Path(sys.argv[1]))
"""


def test_a_gan_training_that_is_killed_resumes_bit_for_bit(tmp_path) -> None:
    """SIGKILL in the middle, then the same command: weights, discriminators, spectral norm's u."""

    def start(folder):
        return subprocess.Popen([sys.executable, "-c", RUN, str(folder)], cwd=ROOT)

    killed = start(tmp_path / "killed")
    kill_after_checkpoint(killed, tmp_path / "killed")
    assert start(tmp_path / "killed").wait() == 0
    train(experiment("savp"), squares(32), tmp_path / "whole")
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
    model = train(settings, squares(32), tmp_path)
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
        run.update(squares(32).train.draw(2, frames, torch.Generator().manual_seed(0)))
        losses.append(torch.stack([v for k, v in run.sums.items() if k.endswith(("l1", "mse"))]))
    # bfloat16 has 8 bits; the frames themselves are moved in float32.
    torch.testing.assert_close(losses[0], losses[1], rtol=0.05, atol=0)


def test_impossible_lengths_are_found_before_training(blobs, tmp_path) -> None:
    for name, key in (("sv2p", "posterior_frames"), ("savp", "clip_length")):
        with pytest.raises(ValueError, match=rf"training.frames is 4, .* model.{key}"):
            train(experiment(name, frames=4), blobs, tmp_path)
    larger = replace(experiment("savp").data, size=16)
    with pytest.raises(ValueError, match="SAVP needs one of"):
        Run(replace(experiment("savp"), data=larger), torch.device("cpu"))
