import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, kill_after_checkpoint, squares
from tqdm import tqdm

from srvp.data import TrainingVideos
from srvp.data.prepared import ClipSampler, PreparedVideos
from srvp.devices import instruction_set, pick_device
from srvp.experiment import load_experiment, load_params, to_entry
from srvp.metrics.psnr import psnr
from srvp.models.interface import Clips
from srvp.models.parts.fast import choice, winograd
from srvp.store import build_model, load_model, save_model
from srvp.training import loop
from srvp.training import run as runs
from srvp.training.loop import obstacle_to_resuming, read_checkpoint, train
from srvp.training.run import Run, rate_factor
from srvp.training.validation import validation_scores

TINY = [n for n in load_params(ROOT / "params.yaml")["experiments"] if n.endswith("tiny")]


def with_training(experiment, **changes):
    return replace(experiment, training=replace(experiment.training, **changes))


def test_the_learning_rate_is_constant_then_falls_linearly_to_zero(tiny):
    config = replace(tiny.training, constant_steps=3, decay_steps=4)
    rates = [rate_factor(config, step) for step in range(1, 8)]
    assert rates == [1, 1, 1, 0.75, 0.5, 0.25, 0]
    warm = replace(config, warmup_steps=2)
    assert [rate_factor(warm, step) for step in range(1, 8)] == [0.5, *rates[1:]]


def test_training_lowers_the_loss_and_writes_a_model_that_loads(tiny, blobs, tmp_path):
    rows = []
    experiment = with_training(tiny, constant_steps=30, decay_steps=10)
    model = train(experiment, blobs, tmp_path, log=rows.append)
    nll = [row["nll"] for row in rows if "nll" in row]
    assert nll[-1] < 0.8 * nll[0]
    assert [row["step"] for row in rows if "validation_psnr" in row] == [10, 20, 30, 40]
    written = sorted(p.name for p in tmp_path.iterdir())
    assert written == ["checkpoint.pt", "model.safetensors", "training.csv"]
    curves = pd.read_csv(tmp_path / "training.csv")
    assert curves["nll"].dropna().tolist() == pytest.approx(nll, rel=1e-5)  # six digits
    loaded, saved = load_model(tmp_path / "model.safetensors")
    assert saved == experiment
    same_weights(loaded, model)


def test_training_takes_the_statistics_of_its_batches_from_the_first_step_on(tiny, blobs, tmp_path):
    experiment = with_training(tiny, constant_steps=2, decay_steps=0, validation_interval=2)
    model = train(experiment, blobs, tmp_path, log=[].append)
    means = [mean for name, mean in model.named_buffers() if name.endswith("running_mean")]
    assert means and all(mean.any() for mean in means)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_validation_is_of_the_weights_of_its_step(name, ema, tmp_path):
    """Nothing that a model keeps from an earlier validation may be left in a later one."""
    settings = load_experiment(ROOT / "params.yaml", name)
    steps = {"constant_steps": 3, "decay_steps": 0, "validation_interval": 1, "ema": ema}
    settings = with_training(settings, **steps, device="cpu")
    videos, rows = squares(settings.data.size), []
    train(settings, videos, tmp_path, log=rows.append)
    again, _ = load_model(tmp_path / "model.safetensors")
    again.to(memory_format=torch.channels_last)
    scores = validation_scores(again, videos.validation, settings, torch.device("cpu"), 1)
    assert rows[-1] == {"step": 3, **scores}


def same_weights(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


RUN = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
import torch
from dataclasses import replace
from conftest import MovingMNIST, TrainingVideos, load_experiment
from srvp.training.loop import train

tiny = load_experiment("params.yaml", "tiny")
settings = replace(tiny.training, device="cpu", constant_steps=60, decay_steps=20,
                   checkpoint_interval=7, validation_interval=15)
digits = torch.zeros(20, 28, 28, dtype=torch.uint8)
for i, digit in enumerate(digits):
    digit[i : i + 6, 20 - i : 28 - i] = 200
videos = TrainingVideos(*2 * [MovingMNIST(digits, deterministic=False)])
train(replace(tiny, training=settings), videos, Path(sys.argv[1]),
      log=lambda row: print(row, flush=True))
"""


def test_a_run_that_is_killed_goes_on_to_the_same_weights_bit_for_bit(tmp_path):
    """SIGKILL in the middle of 80 steps, then the same command again."""

    def start(folder):
        command = [sys.executable, "-c", RUN, str(folder)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    output, _ = whole.communicate()
    killed = start(tmp_path / "killed")
    kill_after_checkpoint(killed, tmp_path / "killed")
    resumed = start(tmp_path / "killed")
    resumed_output, _ = resumed.communicate()
    said, rows = resumed_output.split("\n", 1)
    assert "training resumes there" in said
    assert rows == output  # the curves, from their first row on
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == expected


def entry_of(run) -> dict:
    return json.loads(json.dumps(to_entry(run.experiment)))


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({}, None),
        ({"minutes": 3.0, "checkpoint_interval": 9, "device": "cpu"}, None),
        ({"constant_steps": 11, "decay_steps": 9}, None),  # step 5 is in the constant part of both
        ({"constant_steps": 4}, "other learning rates"),
        ({"lr": 0.5}, "training.lr is 0.002, now 0.5"),
        ({"batch_size": 8}, "training.batch_size is 4, now 8"),
        ({"constant_steps": 3, "decay_steps": 0}, "other learning rates|only 3 steps"),
    ],
)
def test_a_run_is_resumed_only_if_its_steps_would_be_the_same(tiny, changes, obstacle):
    run = Run(tiny, torch.device("cpu"))
    found = obstacle_to_resuming(entry_of(run), 5, with_training(tiny, **changes))
    assert found is None if obstacle is None else re.search(obstacle, found)


class Broken:
    """A source of videos that fails after some batches, as a run that is killed there."""

    def __init__(self, source, after: int):
        self.source, self.after = source, after

    def batches(self, *args, **kwargs):
        yield from islice(self.source.batches(*args, **kwargs), self.after)
        raise RuntimeError("stop")


def test_a_run_of_other_settings_begins_anew_and_keeps_the_old_files(tiny, blobs, tmp_path, capsys):
    """The old model is there until the new one is whole; what differs is said."""
    old = train(with_training(tiny, minutes=0.0), blobs, tmp_path)
    capsys.readouterr()
    broken = blobs._replace(train=Broken(blobs.train, after=0))
    with pytest.raises(RuntimeError, match="stop"):
        train(with_training(tiny, lr=0.001), broken, tmp_path)
    said = capsys.readouterr().out
    assert "checkpoint.pt is at step 10, but its training.lr is 0.002, now 0.001" in said
    assert (tmp_path / "checkpoint.replaced.pt").is_file()
    same_weights(load_model(tmp_path / "model.safetensors")[0], old)
    train(with_training(tiny, lr=0.001, minutes=0.0), blobs, tmp_path)
    assert (tmp_path / "checkpoint.replaced.pt").is_file()  # the new run is at step 10 of 20
    train(with_training(tiny, lr=0.001), blobs, tmp_path)
    assert not (tmp_path / "checkpoint.replaced.pt").exists()


@pytest.mark.parametrize("steps", [20, 10])
def test_settings_that_come_back_go_on_where_they_were(
    steps, tiny, blobs, tmp_path, capsys, monkeypatch
):
    """Cut off at step 10 or finished there; killed once more after the checkpoints are swapped."""
    experiment = with_training(tiny, constant_steps=steps, decay_steps=0)
    whole = train(experiment, blobs, tmp_path / "whole")
    out = tmp_path / "run"
    train(with_training(experiment, minutes=0.0), blobs, out)
    train(with_training(tiny, lr=0.001, minutes=0.0), blobs, out)
    capsys.readouterr()
    with monkeypatch.context() as killed, pytest.raises(TypeError):
        killed.setattr(loop, "_optimise", None)
        train(experiment, blobs, out)
    said = capsys.readouterr().out
    assert "checkpoint.replaced.pt is of these settings: it takes the place of run/" in said
    aside = read_checkpoint(out / "checkpoint.replaced.pt", torch.device("cpu"))
    assert json.loads(aside["experiment"])["training"]["lr"] == 0.001
    same_weights(train(experiment, blobs, out), whole)
    assert "run/checkpoint.pt is at step 10: training resumes there" in capsys.readouterr().out
    same_weights(load_model(out / "model.safetensors")[0], whole)
    assert not (out / "checkpoint.replaced.pt").exists()


def test_a_finished_run_is_not_taken_for_the_one_that_makes_it_anew(tiny, blobs, tmp_path):
    """The new one was killed before its first checkpoint: the old one has its settings."""
    experiment = with_training(tiny, constant_steps=2, decay_steps=0)
    train(experiment, blobs, tmp_path)
    for _ in range(2):  # each begins at step 1
        with pytest.raises(RuntimeError, match="stop"):
            train(experiment, blobs._replace(train=Broken(blobs.train, after=1)), tmp_path)
        assert not (tmp_path / "checkpoint.pt").exists()


def test_of_two_old_checkpoints_the_one_with_more_steps_stays(tiny, blobs, tmp_path, capsys):
    train(with_training(tiny, minutes=0.0), blobs, tmp_path)
    for lr, after, expected in ((0.001, 7, {5, 10}), (0.003, 0, {5, 10}), (0.003, 12, {10})):
        with pytest.raises(RuntimeError, match="stop"):
            broken = Broken(blobs.train, after)
            train(with_training(tiny, lr=lr), blobs._replace(train=broken), tmp_path)
        files = tmp_path.glob("checkpoint*.pt")
        assert {read_checkpoint(f, torch.device("cpu"))["step"] for f in files} == expected
    said = capsys.readouterr().out
    assert "checkpoint.replaced.pt, at step 10, too; this checkpoint is overwritten" in said


def test_a_model_that_could_not_be_written_is_written_by_the_next_call(
    tiny, blobs, tmp_path, monkeypatch
):
    """In the place of an older one, of a shorter run."""
    experiment = with_training(tiny, constant_steps=12, decay_steps=0)
    whole = train(experiment, blobs, tmp_path / "whole")
    out = tmp_path / "run"
    train(with_training(experiment, constant_steps=6), blobs, out)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space left"):
        disk.setattr(loop, "save_model", full)
        train(experiment, blobs, out)
    monkeypatch.setattr(Run, "update", None)  # no step is taken
    same_weights(train(experiment, blobs, out), whole)
    same_weights(load_model(out / "model.safetensors")[0], whole)


def test_a_finished_run_is_continued_by_more_steps_bit_for_bit(tiny, blobs, tmp_path, capsys):
    """As one run of all steps, if the schedule is constant; the same settings begin anew."""
    short = with_training(tiny, constant_steps=6, decay_steps=0)
    long = with_training(tiny, constant_steps=12, decay_steps=0)
    whole = train(long, blobs, tmp_path / "whole")
    train(short, blobs, tmp_path / "short")
    capsys.readouterr()
    same_weights(train(long, blobs, tmp_path / "short"), whole)
    assert "is at step 6: training resumes there" in capsys.readouterr().out
    same_weights(train(long, blobs, tmp_path / "short"), whole)
    assert "but the run is finished: training begins at step 1" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(content, tiny, blobs, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*: remove it to begin"):
        train(tiny, blobs, tmp_path)


@pytest.mark.parametrize(("rows", "noticed"), [(20, 8), (1, 10)])  # at a row, at a checkpoint
def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_checkpoint(
    rows, noticed, tiny, blobs, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "LOG_POINTS", rows)

    class Poisoned:
        def batches(self, *args, **kwargs):
            for number, clips in enumerate(blobs.train.batches(*args, **kwargs)):
                yield Clips(clips.frames * (float("nan") if number == 7 else 1))

    with pytest.raises(FloatingPointError, match=rf"loss \(total\) is nan at step {noticed}:"):
        train(tiny, blobs._replace(train=Poisoned()), tmp_path)
    run = Run(tiny, torch.device("cpu"))
    run.restore(read_checkpoint(tmp_path / "checkpoint.pt", run.device))
    assert run.step == 5


def test_weights_that_are_not_finite_are_not_saved(tiny, blobs, tmp_path):
    """Gradients may overflow where the loss does not."""
    run = Run(tiny, torch.device("cpu"))
    run.update(blobs.train.draw(2, 8, run.generator))
    run.model.q_z.weight.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"weights q_z.weight is inf at step 1: lower"):
        run.save(tmp_path / "checkpoint.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_validated_weights_are_kept_if_asked_for(tiny, blobs, tmp_path, monkeypatch, ema):
    """Those of the moving average, if that is what is validated."""
    scores = iter([10.0, 12.0, 11.0, 9.0])
    monkeypatch.setattr(
        runs, "validation_scores", lambda *args: {"validation_psnr": next(scores), "other": 0.0}
    )
    experiment = with_training(
        tiny, constant_steps=20, decay_steps=0, validation_interval=5, select_best=True, ema=ema
    )
    best = train(experiment, blobs, tmp_path / "best")
    shorter = with_training(experiment, constant_steps=10, select_best=False)
    monkeypatch.setattr(runs, "validation_scores", lambda *args: {"validation_psnr": 0.0})
    same_weights(best, train(shorter, blobs, tmp_path / "shorter"))


def test_a_run_bounded_by_minutes_writes_its_model_and_goes_on(tiny, blobs, tmp_path, capsys):
    """Stopped at step 10 of 20, then continued without a bound: bit for bit the unbounded run."""
    whole = train(tiny, blobs, tmp_path / "whole")
    capsys.readouterr()
    train(with_training(tiny, minutes=0.0), blobs, tmp_path / "bounded")
    message = "training.minutes (0) are over at step 10 of 20: the next training resumes there"
    assert message in capsys.readouterr().out
    so_far, _ = load_model(tmp_path / "bounded" / "model.safetensors")
    assert not torch.equal(so_far.q_z.weight, whole.q_z.weight)
    assert (tmp_path / "bounded" / "checkpoint.pt").exists()
    rows = []
    same_weights(train(tiny, blobs, tmp_path / "bounded", rows.append), whole)
    assert [row["step"] for row in rows if "nll" in row] == list(range(1, 21))


def test_training_starts_from_given_weights(tiny, blobs, tmp_path):
    path = tmp_path / "first" / "model.safetensors"
    first = train(with_training(tiny, seed=3), blobs, path.parent)
    run = Run(with_training(tiny, init_from=str(path)), torch.device("cpu"))
    same_weights(run.model, first)
    assert run.step == 0


def test_weights_of_another_model_are_refused_in_one_line(tiny, tmp_path):
    other = replace(tiny, model=replace(tiny.model, nh_res=8))
    path = tmp_path / "model.safetensors"
    save_model(build_model(other.model, other.shape, seed=0), other, path)
    wanted = with_training(tiny, init_from=str(path))
    with pytest.raises(
        ValueError, match=r"init_from: .*p_z.0.bias \(8,\), this model \(32,\)"
    ) as e:
        Run(wanted, torch.device("cpu"))
    assert "\n" not in str(e.value)


def test_the_moving_average_is_the_model_and_resumes_exactly(tiny, blobs, tmp_path):
    """Against the recursion itself: decay 0.5, or less in the first steps, of weights and buffers.

    lerp_(x, w) rounds once more than the recursion: 1e-6.
    """
    experiment = with_training(tiny, ema=0.5)
    run = Run(experiment, torch.device("cpu"))
    expected = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.model.train()
    for step in range(1, 9):
        run.update(blobs.train.draw(2, 8, run.generator))
        decay = min(0.5, (1 + step) / (10 + step))
        for key, value in run.model.state_dict().items():
            if value.is_floating_point():
                expected[key] = decay * expected[key] + (1 - decay) * value
    for key, value in run.result.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-5)
    plain = train(tiny, blobs, tmp_path / "plain")
    whole = train(experiment, blobs, tmp_path / "whole")
    assert not torch.equal(whole.q_z.weight, plain.q_z.weight)
    same_weights(load_model(tmp_path / "whole" / "model.safetensors")[0], whole)
    train(with_training(experiment, minutes=0.0), blobs, tmp_path / "bounded")
    same_weights(train(experiment, blobs, tmp_path / "bounded"), whole)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_are_the_plain_ones_and_resume(tiny, blobs, tmp_path):
    """Four steps; then the last two again, after a restart from the checkpoint of the second.

    Compiled code adds in another order than plain code, and Adam amplifies what that changes: the
    terms of the loss are compared, to 1e-3. The restarted run uses the same code: 1e-6.
    """
    experiment = with_training(tiny, compile=True, frames=6, lr=3e-4)
    device = torch.device("cpu")
    whole, resumed = Run(experiment, device), Run(experiment, device)
    plain = Run(with_training(experiment, compile=False), device)
    for run, first in ((plain, 0), (whole, 0), (resumed, 2)):
        if first:
            run.restore(read_checkpoint(tmp_path / "checkpoint.pt", device))
        run.model.train()
        for step in range(first, 4):
            if run is whole and step == 2:
                run.save(tmp_path / "checkpoint.pt")
            run.update(blobs.train.draw(2, 6, run.generator))
    assert whole.close_row() == pytest.approx(plain.close_row(), rel=1e-3)
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, atol=1e-6, rtol=1e-6)


def test_compile_auto_is_for_a_gpu(tiny):
    run = Run(with_training(tiny, compile="auto"), torch.device("cpu"))
    assert run.loss == run.model.loss and run.captured is None


def test_validation_videos_that_are_too_short_are_found_before_training(tiny, tmp_path):
    """The checkpoint of an earlier run is not touched."""
    contents = {"names": ["a", "b"], "frames": [30, 24]}
    videos = [{"name": n, "frames": f} for n, f in zip(*contents.values(), strict=True)]
    manifest = {"videos": videos, "validation": [1], "clips": [], "clip_frames": 0}
    np.save(tmp_path / "frames.npy", np.zeros((54, 1, 64, 64), np.uint8))
    prepared = PreparedVideos(tmp_path, manifest | {"frame_step": 1, "notes": []})
    folds = (prepared.training, prepared.validation)
    sources = TrainingVideos(*(ClipSampler(prepared, fold) for fold in folds))
    (tmp_path / "checkpoint.pt").write_bytes(b"of an earlier run")
    message = "training.validation_frames is 25, but none of the 1 videos of .* has 25 frames"
    with pytest.raises(ValueError, match=message):
        train(tiny, sources, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"of an earlier run"


def test_each_fold_is_asked_for_the_clips_of_the_settings(tiny, blobs, tmp_path, monkeypatch):
    """Batches of the training fold, from where the run is; validation clips of the other.

    The model takes them in training mode.
    """
    asked, update = [], Run.update

    def watched(run, clips):
        assert run.model.training
        update(run, clips)

    monkeypatch.setattr(Run, "update", watched)

    class Training:
        def batches(self, *given, first):
            asked.append((*given, first))
            return blobs.train.batches(*given, first=first)

    class Validation:
        def draw(self, *given):
            asked.append(given[:2])
            return blobs.validation.draw(*given)

    settings = {"frames": 7, "batch_size": 2, "seed": 3, "validation_frames": 9}
    experiment = with_training(tiny, **settings, constant_steps=2, decay_steps=0)
    videos = TrainingVideos(Training(), Validation())
    train(experiment, videos, tmp_path)
    assert asked == [(1, 9), (2, 7, 3, 0), (1, 9), (1, 9)]  # a first look, then two validations
    del asked[:]
    train(with_training(experiment, constant_steps=4), videos, tmp_path)
    assert asked[:2] == [(1, 9), (2, 7, 3, 2)]


def test_small_losses_are_shown(tiny, blobs, tmp_path, monkeypatch):
    """SVG's and SV2P's are errors per pixel: the bar would show 0.0."""
    shown = []

    class Bar(tqdm):
        def set_postfix(self, values, refresh):
            shown.append(values["loss"])

    monkeypatch.setattr(loop, "tqdm", Bar)
    monkeypatch.setattr(Run, "close_row", lambda run: {"step": run.step, "total": 0.00123456})
    train(with_training(tiny, constant_steps=1, decay_steps=0), blobs, tmp_path)
    assert shown == ["0.001235"]


def test_validation_leaves_training_as_it_was(tiny, blobs):
    run = Run(tiny, torch.device("cpu"))
    before = run.generator.get_state()
    first, second = run.validate(blobs.validation), run.validate(blobs.validation)
    assert first == second
    assert torch.equal(run.generator.get_state(), before)
    assert run.model.training


def test_the_moving_average_is_what_is_validated(tiny, blobs, monkeypatch):
    validated = []

    def score(model, *args):
        validated.append(model)
        return {"validation_psnr": 0.0}

    monkeypatch.setattr(runs, "validation_scores", score)
    run = Run(with_training(tiny, ema=0.5), torch.device("cpu"))
    run.validate(blobs.validation)
    assert validated == [run.average] and run.average is not run.model


@torch.no_grad()
def test_videos_validated_together_score_as_each_alone(tiny, blobs):
    """Five videos, four at a time and one by one, with the same draws; float32: 1e-4 dB."""
    experiment = with_training(tiny, validation_videos=5, validation_samples=3)
    evaluation = replace(tiny.evaluation, conditioning_frames=7)  # more than the model needs
    experiment = replace(experiment, evaluation=evaluation)
    device = torch.device("cpu")
    run = Run(experiment, device)
    found = validation_scores(run.model, blobs.validation, experiment, device, at_once=4)
    together = found["validation_psnr"]
    generator = torch.Generator().manual_seed(experiment.training.seed)
    frames, best = experiment.training.validation_frames, []
    run.model.eval()
    for count in (4, 1):
        videos = blobs.validation.draw(count, frames, generator)
        noise = run.model.draw_noise(3 * count, frames, generator)
        for i, x in enumerate(videos.frames.split(1)):
            own = type(noise)(*(part[3 * i : 3 * i + 3] for part in noise))
            futures = run.model.predict(run.model.condition(x[:, :7]), frames - 7, own).x
            best.append(psnr(futures, x[:, 7:]).mean(dim=1).max().item())
    assert together == pytest.approx(np.mean(best), abs=1e-4)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a machine without accelerator")
def test_a_device_that_is_not_there_is_refused_rather_than_replaced():
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="the device is 'cuda', but only the CPU is"):
        pick_device("cuda")


def test_bfloat16_changes_the_loss_by_little(tiny, blobs):
    losses = []
    for precision in ("float32", "bfloat16"):
        run = Run(with_training(tiny, precision=precision), torch.device("cpu"))
        run.update(blobs.train.draw(4, 12, torch.Generator().manual_seed(0)))
        losses.append(run.sums["nll"])
    # bfloat16 has 8 bits of precision: 0.4 % a product, far less in a sum of 49,152 pixels.
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=0)


def test_the_fast_path_learns_as_plain_float32_does(monkeypatch, tiny, blobs):
    """200 steps on the same videos and noise: PyTorch's plain path, in float32 with the default
    memory layout and Adam, beside bfloat16 autocast, channels last, fused Adam and our convolutions
    (which wide layers have on a CPU), with their rounding.

    Compared are the means over the last 50 steps of the loss and its likelihood, at the published
    rate: rounding makes runs drift apart, the further the higher the rate.
    """
    steps, means = 200, {}
    for fast in (False, True):
        precision = "bfloat16" if fast else "float32"
        run = Run(with_training(tiny, precision=precision), torch.device("cpu"))
        if fast:
            rules = {(instruction_set(), torch.bfloat16): choice.Rule(winograd=4)}
            monkeypatch.setattr(choice, "RULES", rules)
            monkeypatch.setattr(winograd, "FEW", 1)
        else:
            run.model.to(memory_format=torch.contiguous_format)
            plain = torch.optim.Adam(run.model.parameters(), fused=False, foreach=False)
            run.optimizers = {"model": plain}
        run.model.train()
        while run.step < steps:
            run.config = replace(run.config, constant_steps=steps)
            run.optimizers["model"].defaults["lr"] = 3e-4
            run.update(blobs.train.draw(2, 8, run.generator))
            if run.step == steps - 50:
                run.close_row()
        means[fast] = run.close_row()
    for term in ("total", "nll"):
        assert means[True][term] == pytest.approx(means[False][term], rel=0.01)


def test_loading_says_what_is_wrong_with_a_file(tmp_path, tiny):
    with pytest.raises(FileNotFoundError, match="model.safetensors is missing: train the model"):
        load_model(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="model.safetensors is not a model of this program"):
        load_model(tmp_path / "model.safetensors")


def test_a_model_file_tells_its_experiment_without_this_program(tiny, tmp_path):
    model = build_model(tiny.model, tiny.shape, seed=0)
    save_model(model, tiny, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["experiment"])["tiny"]["model"]["name"] == "srvp"
