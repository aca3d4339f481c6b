"""Several processes on a CPU (gloo) take the steps of one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from synchronised import synchronise_batch_norm
from torch import distributed as group
from torch.multiprocessing import spawn

from srvp.data import prepare
from srvp.experiment import load_experiment
from srvp.models import sv2p
from srvp.models.interface import Clips
from srvp.training import distributed
from srvp.training.launch import train_everywhere
from srvp.training.run import Run

STEPS = 5


def experiments():
    """SRVP without and with skips, SVG with either prior; all with an average of the weights."""
    tiny = load_experiment(ROOT / "params.yaml", "tiny")
    svg = load_experiment(ROOT / "params.yaml", "svg_tiny")
    skips = {"architecture": "vgg", "skip_connections": True, "euler_steps": 2}
    fixed = load_experiment(ROOT / "params.yaml", "svg_kth").model
    sizes = {k: getattr(svg.model, k) for k in ("architecture", "nf", "g_dim", "z_dim", "rnn_size")}
    chosen = {
        "srvp": tiny,
        "srvp_skips": replace(tiny, model=replace(tiny.model, **skips)),
        "svg_lp": svg,
        "svg_fp": replace(svg, model=replace(fixed, **sizes, conditioning_frames=5)),
    }
    changes = {"frames": 6, "device": "cpu", "ema": 0.9}
    return {name: replace(e, training=replace(e.training, **changes)) for name, e in chosen.items()}


def take_steps(experiment):
    """Return gradients of the first step, the state after the last, and the mean loss terms.

    In float64: two processes add up in another order what one computes, and where a gradient is
    zero (of a bias that batch norm follows), Adam makes whole steps of the rounding of float32.
    """
    torch.set_default_dtype(torch.float64)
    try:
        run = Run(experiment, torch.device("cpu"))
        run.model.train()
        shape = (8, experiment.training.frames, 1, 64, 64)
        for _ in range(STEPS):
            run.update(Clips(torch.rand(shape, generator=run.generator)))
            if run.step == 1:
                trained = [(n, p) for n, p in run.model.named_parameters() if p.grad is not None]
                gradients = {name: p.grad.clone() for name, p in trained}
        averages = {f"ema.{name}": value for name, value in run.average.state_dict().items()}
        return gradients, run.model.state_dict() | averages, run.close_row()
    finally:
        torch.set_default_dtype(torch.float32)


def process(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.synchronise_batch_norm = synchronise_batch_norm  # PyTorch's own needs GPUs
    group.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes
    )
    for name, experiment in experiments().items():
        torch.save(take_steps(experiment), folder / f"{name}.{rank}.pt")
    group.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    spawn(process, (2, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ["srvp", "srvp_skips", "svg_lp", "svg_fp"])
def test_two_processes_make_the_steps_of_one(two_processes, name):
    """In float64, differences of 1e-14 are seen, and of 1e-10 where a gradient is zero."""
    gradients, state, row = take_steps(experiments()[name])
    first, second = (
        torch.load(two_processes / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    for key, gradient in gradients.items():
        assert (first[0][key] - gradient).norm() <= 1e-10 * gradient.norm() + 1e-14, key
    for key, value in state.items():
        torch.testing.assert_close(first[1][key], value, atol=1e-9, rtol=1e-9, msg=key)
        assert torch.equal(first[1][key], second[1][key]), key
    assert first[2] == second[2] == pytest.approx(row, rel=1e-6)  # sums and KL are of float32


def test_a_machine_with_several_devices_trains_on_all(tiny, tmp_path):
    """Rows arrive in the calling process, one file is written, and both runs agree.

    SV2P has no batch norm, which PyTorch can share only among GPUs.
    """
    model = sv2p.Config(conditioning_frames=2, posterior_frames=6, beta=1e-3, nf=2)
    changes = {"frames": 6, "constant_steps": 4, "decay_steps": 0, "validation_interval": 2}
    changes |= {"lr": 3e-4, "validation_videos": 3, "validation_frames": 8}
    training = replace(tiny.training, **changes)
    evaluation = replace(tiny.evaluation, predict=({},))
    experiment = replace(tiny, model=model, training=training, evaluation=evaluation)
    prepare(tiny.data, ROOT / "data", tmp_path / "prepared")
    rows, models = {}, {}
    for processes in (1, 2):
        rows[processes], out = [], tmp_path / f"{processes}"
        models[processes] = train_everywhere(
            experiment, tmp_path / "prepared", out, rows[processes].append, processes
        )
        written = {path.name for path in out.iterdir()}
        assert written == {"checkpoint.pt", "model.safetensors", "training.csv"}
    for one, two in zip(rows[1], rows[2], strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert not models[2].training


def test_batch_norm_is_not_left_apart_between_cpu_processes(tiny, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="several processes on a CPU cannot share batch norm"):
        Run(tiny, torch.device("cpu"))


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size is 4, which 3 processes cannot share"):
        distributed.check_batch(4)
    distributed.check_batch(6)
