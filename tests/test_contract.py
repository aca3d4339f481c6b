"""A model, a metric and a data set, each added as one file; and the laws of a training step.

The toys of `tests/toys` and README's model are added to a copy of the package, whose commands then
run from raw files to figures.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, generator
from safetensors.numpy import load_file
from toys.toy_gan import FIRST_STEP, Config, Prediction

from srvp.data.config import DataConfig
from srvp.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from srvp.models.interface import Clips
from srvp.store import build_model
from srvp.training.loop import read_checkpoint
from srvp.training.run import Run, rate_factor
from srvp.training.validation import validation_scores

# Three files, and a row in each of the two tables.
ADDED = {
    "toy_gan": "models",
    "toy_metric": "metrics",
    "toy_set": "data/sets",
}
ROWS = {
    "metrics/table.py": (
        "METRICS = {",
        '"toy_metric": Metric("absolute error", "toy_metric", lower_is_better=True, decimals=3),',
    ),
    "data/sets/__init__.py": (
        "SETS = {",
        '"toy_set": DataSet("moving square", "toy_set", "squares", channels=1, actions=2),',
    ),
}
PARAMS = """
experiments:
  toy:
    data: &data {dataset: toy_set, channels: 1, size: 16, actions: 2, test_videos: 3,
      test_frames: 6}
    model: {name: toy_gan, nz: 2, gan_weight: 0.1, anneal_steps: 5}
    training: &training {frames: 4, batch_size: 4, constant_steps: 4, decay_steps: 6,
      decay: cosine, clip_norm: 1.0, lr: 1.0e-2, validation_frames: 6, validation_interval: 5,
      validation_videos: 2, validation_samples: 2, checkpoint_interval: 3, device: cpu,
      precision: float32, optimizers: {discriminator: {lr: 3.0e-3, betas: [0.5, 0.9]}}}
    evaluation: &evaluation {conditioning_frames: 2, samples: 3, metrics: [psnr, toy_metric]}
  still:
    data: {<<: *data, actions: 0}
    model: {name: still, level: 0.5}
    training: {<<: *training, optimizers: {}}
    evaluation: *evaluation
"""
# The training command, killed in its seventh step, between the discriminator and the generator.
KILLED = """
import os, signal
from srvp import __main__
from srvp.models.toy_gan import ToyGAN

loss, calls = ToyGAN.loss, []

def deadly(self, clips, randomness, objective):
    calls.append(objective)
    if calls.count("generator") == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, clips, randomness, objective)

ToyGAN.loss = deadly
__main__.main()
"""
FIGURES = """
from pathlib import Path
import pandas as pd
from safetensors.numpy import load_file
from srvp.report import figures
from srvp.store import load_model

run = Path("runs/toy")
model, experiment = load_model(run / "model.safetensors")
curves, history = pd.read_csv(run / "curves.csv"), pd.read_csv(run / "training.csv")
rows = figures.futures(load_file(run / "examples.safetensors"), 0, "toy_metric")
figures.save(figures.training_curves(history, model.config.terms), run, "training_curves")
figures.save(figures.metric_curves(curves), run, "metric_curves")
figures.save(figures.sample_grid(rows, given=2, columns=range(6)), run, "samples")
"""

STILL = """
from pathlib import Path
from srvp import commands

prepared = Path("prepared/toy")
commands.train("still", prepared, None, None)
commands.evaluate("still", None, None, None, None, prepared, None)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the package with the toys, their raw data, and the runs of all commands."""
    folder = tmp_path_factory.mktemp("clone")
    add_toys(folder)
    write_squares(folder / "data" / "squares")
    command(folder, "-m", "srvp", "prepare", "toy")
    command(folder, "-m", "srvp", "train", "toy")
    command(folder, "-m", "srvp", "evaluate", "toy")
    command(folder, "-c", FIGURES)
    return folder


def add_toys(folder: Path) -> None:
    package = folder / "srvp"
    shutil.copytree(ROOT / "srvp", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, subject in ADDED.items():
        shutil.copy(ROOT / "tests" / "toys" / f"{name}.py", package / subject)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (still,) = (block for block in blocks if "class Config(ModelConfig)" in block)
    (package / "models" / "still.py").write_text(still)
    for file, (table, row) in ROWS.items():
        text = (package / file).read_text()
        assert text.count(f"\n{table}\n") == 1
        (package / file).write_text(text.replace(f"\n{table}\n", f"\n{table}\n    {row}\n"))
    (folder / "params.yaml").write_text(PARAMS)


def write_squares(raw: Path) -> None:
    """Write 20 training and 3 test videos of 8 frames of 16x16 pixels."""
    random = np.random.default_rng(0)
    for fold, count in (("train", 20), ("test", 3)):
        (raw / fold).mkdir(parents=True)
        for i in range(count):
            actions = random.integers(-2, 3, (8, 2))
            corners = (6 + actions.cumsum(axis=0) - actions) % 12
            frames = np.zeros((8, 16, 16), np.uint8)
            for frame, (top, left) in zip(frames, corners, strict=True):
                frame[top : top + 4, left : left + 4] = 200
            np.savez(raw / fold / f"{i:02d}.npz", frames=frames, actions=actions)


def command(folder: Path, *args: str, ends_with: int = 0) -> str:
    """Run Python in the clone; return what it printed."""
    env = {**os.environ, "PYTHONPATH": str(folder), "SRVP_ROOT": str(folder)}
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == ends_with, done.stderr
    return done.stdout


def test_the_prepared_set_has_the_raw_frames_and_actions(clone):
    raw = np.load(clone / "data" / "squares" / "test" / "01.npz")
    test = clone / "prepared" / "toy" / "test"
    assert np.array_equal(np.load(test / "frames.npy")[8:16, 0], raw["frames"])
    assert np.array_equal(np.load(test / "actions.npy")[8:16], raw["actions"])


def test_a_gan_that_is_killed_resumes_to_the_same_bytes(clone):
    """SIGKILL in the middle of step 7 of 10, when only the discriminator has moved."""
    train = ("train", "toy", "--out", "runs/killed")
    command(clone, "-c", KILLED, *train, ends_with=-signal.SIGKILL)
    killed, whole = clone / "runs" / "killed", clone / "runs" / "toy"
    assert [path.name for path in killed.iterdir()] == ["checkpoint.pt"]
    assert "is at step 6: training resumes there" in command(clone, "-m", "srvp", *train)
    for name in ("model.safetensors", "training.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_curves_have_the_terms_of_both_objectives(clone):
    """The discriminator's from its first step on; the weight rises over 5 steps to 0.1."""
    curves = pd.read_csv(clone / "runs" / "toy" / "training.csv")
    steps = curves.dropna(subset="generator_total").set_index("step")
    assert steps["discriminator_total"].dropna().index.tolist() == list(range(FIRST_STEP, 11))
    weights = [0.02, 0.04, 0.06, 0.08, *[0.1] * 6]
    assert steps["generator_gan_weight"].tolist() == pytest.approx(weights)
    cosine = [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(1, 7)]
    assert steps["lr"].tolist() == pytest.approx([0.01] * 4 + [0.01 * x for x in cosine], abs=1e-7)


def test_the_toy_metric_is_in_every_result(clone):
    """And it is the mean absolute error: of the last frame repeated, as computed here."""
    run = clone / "runs" / "toy"
    scores = json.loads((run / "metrics.json").read_text())
    truth = load_file(run / "examples.safetensors")["truth"].astype(float) / 255
    expected = abs(truth[:, 2:] - truth[:, 1:2]).mean()
    assert scores["copy last frame"]["toy_metric"] == pytest.approx(expected, abs=1e-5)
    for name in ("curves.csv", "videos.csv"):
        table = pd.read_csv(run / name)
        counts = table[table["predictor"] == "toy"]["metric"].value_counts()
        assert counts["toy_metric"] == counts["psnr"] > 0
    videos = pd.read_csv(run / "videos.csv")
    errors = videos[videos["metric"] == "toy_metric"]
    assert (errors["best"] <= errors["worst"]).all()  # lower is better
    assert (errors["best"] < errors["worst"]).any()


def test_the_figures_of_the_toy_are_drawn(clone):
    drawn = sorted(path.name for path in (clone / "runs" / "toy" / "figures").iterdir())
    assert drawn == ["metric_curves.png", "samples.png", "training_curves.png"]


def test_the_model_of_the_readme_trains_on_the_same_set_without_its_actions(clone):
    """The prepared set is used as it is."""
    command(clone, "-c", STILL)
    level = load_file(clone / "runs" / "still" / "model.safetensors")["level"]
    assert 0 < abs(level - 0.5) < 0.11  # it moved, at most by 0.01 per step
    scores = json.loads((clone / "runs" / "still" / "metrics.json").read_text())
    assert scores["still"].keys() >= {"psnr", "toy_metric"}


# The toy in this process, with the shape of another set with actions.


def toy(**training) -> Experiment:
    settings = {
        "frames": 4, "batch_size": 3, "constant_steps": 8, "decay_steps": 0, "lr": 0.01,
        "validation_frames": 4, "device": "cpu", "precision": "float32",
    }  # fmt: skip
    data = DataConfig("bair", channels=3, test_videos=2, test_frames=6, size=16, actions=4)
    model = Config(nz=2, gan_weight=0.1, anneal_steps=5)
    evaluation = EvaluationConfig(conditioning_frames=2, metrics=("psnr",))
    return Experiment("toy", data, model, TrainingConfig(**settings | training), evaluation)


def start(**training) -> Run:
    return Run(toy(**training), torch.device("cpu"))


def random_clips(seed: int = 0) -> Clips:
    frames = torch.rand(3, 4, 3, 16, 16, generator=generator(seed))
    return Clips(frames, torch.randn(3, 6, 4, generator=generator(seed + 1)))


def weights_of(run: Run, group: str) -> torch.Tensor:
    parameters = run.model.parameter_groups()[group]
    return torch.cat([p.detach().flatten() for p in parameters]).double()


def gradient_of(run: Run, group: str) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in run.model.parameter_groups()[group]]).double()


@torch.no_grad()
def test_actions_drive_the_futures_from_their_time_on():
    """The action at t leads to frame t + 1: those before and after do not change that frame."""
    experiment, clips = toy(), random_clips()
    model = build_model(experiment.model, experiment.shape, seed=0)
    noise = model.draw_noise(6, 7, generator())

    def futures(changed: int | None = None) -> torch.Tensor:
        actions = clips.actions.clone()
        if changed is not None:
            actions[:, changed] += 1
        given = model.condition(Clips(clips.frames, actions).until(3))
        return model.predict(given, 3, noise).x

    assert torch.equal(futures(), futures(changed=1))  # its frame was given
    assert torch.equal(futures(), futures(changed=5))  # its frame is not predicted
    for frame in range(3):
        same = (futures() == futures(changed=2 + frame)).flatten(2).all(dim=2)
        assert same[:, :frame].all() and not same[:, frame:].any()


def test_actions_are_learnt_from():
    runs = start(), start()
    for run, seed in zip(runs, (0, 5), strict=True):
        run.update(random_clips()._replace(actions=random_clips(seed).actions))
    first, second = (weights_of(run, "generator") for run in runs)
    assert not torch.equal(first, second)


def test_the_discriminator_trains_from_its_first_step_on():
    """Before, neither its weights nor its optimizer move; the generator moves in every step."""
    run, clips = start(), random_clips()
    for step in range(1, FIRST_STEP + 2):
        before = {group: weights_of(run, group) for group in run.optimizers}
        run.update(clips)
        moved = {group: not torch.equal(w, weights_of(run, group)) for group, w in before.items()}
        assert moved == {"generator": True, "discriminator": step >= FIRST_STEP}
        assert bool(run.optimizers["discriminator"].state) == (step >= FIRST_STEP)


def test_each_optimizer_steps_by_its_own_rate_and_betas_and_by_the_rate_of_the_step():
    """Against Adam's recursion (Kingma and Ba, 2015) in float64, with the rates written out.

    Weights are float32 of order 1: they are rounded by 6e-8, and steps are 1e-2.
    """
    own = {"discriminator": OptimizerConfig(lr=0.003, betas=(0.5, 0.9))}
    schedule = {"warmup_steps": 3, "constant_steps": 4, "decay_steps": 4}
    run = start(betas=(0.8, 0.95), optimizers=own, **schedule)
    shares = [1 / 3, 2 / 3, 1, 1, 0.75, 0.5, 0.25, 0]
    settings = {"generator": (0.01, 0.8, 0.95), "discriminator": (0.003, 0.5, 0.9)}
    moments = {group: (0.0, 0.0, 0) for group in settings}
    for step, share in enumerate(shares, 1):
        before = {group: weights_of(run, group) for group in settings}
        run.update(random_clips(step))
        for group, (lr, beta_1, beta_2) in settings.items():
            if group not in {g for groups in run.model.objectives(step).values() for g in groups}:
                continue
            g, (m, v, n) = gradient_of(run, group), moments[group]
            m, v, n = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2, n + 1
            moments[group] = m, v, n
            change = (m / (1 - beta_1**n)) / ((v / (1 - beta_2**n)).sqrt() + 1e-8)
            expected = before[group] - lr * share * change
            torch.testing.assert_close(weights_of(run, group), expected, atol=5e-7, rtol=0)


def test_a_step_has_the_gradients_of_its_own_clips(tmp_path):
    """A run that was restored has none of the steps before."""
    run, restored = start(), start()
    run.update(random_clips(1))
    run.save(tmp_path / "checkpoint.pt")
    restored.restore(read_checkpoint(tmp_path / "checkpoint.pt", run.device))
    for either in (run, restored):
        either.update(random_clips(2))
    assert torch.equal(gradient_of(run, "generator"), gradient_of(restored, "generator"))


def test_a_row_has_the_means_of_the_steps_since_the_last_row():
    """The discriminator's terms are means over fewer steps: it begins later. float32: 1e-6."""
    each, together = (start(constant_steps=4, decay_steps=4) for _ in range(2))
    rows = []
    for step in range(1, FIRST_STEP + 3):
        for run in (each, together):
            run.update(random_clips(step))
        rows.append(each.close_row())
    first = together.close_row()
    assert first["step"] == 5 and first["lr"] == 0.01 * 0.75
    for name in first.keys() - {"step", "lr"}:
        values = [row[name] for row in rows if name in row]
        assert first[name] == pytest.approx(np.mean(values), rel=1e-6, abs=1e-7)
    assert min(len([row for row in rows if name in row]) for name in first) == 3
    for run in (each, together):
        run.update(random_clips())
    assert each.close_row() == together.close_row()


def test_a_restored_run_goes_on_as_the_run_it_was(tmp_path):
    """Between two rows, with a moving average and the best weights so far."""
    run, restored = (start(ema=0.5, select_best=True) for _ in range(2))
    for step in range(1, 4):
        run.update(random_clips(step))
    run.best = {"psnr": 20.0, "weights": {"w": torch.ones(1)}}
    run.history.append({"step": 3, "validation_psnr": 20.0})
    run.save(tmp_path / "checkpoint.pt")
    restored.restore(read_checkpoint(tmp_path / "checkpoint.pt", run.device))
    for either in (run, restored):
        either.update(random_clips(4))
        either.close_row()
    assert restored.step == 4 and restored.history == run.history and restored.best == run.best
    for model in ("model", "average"):
        ours, theirs = (getattr(either, model).state_dict() for either in (restored, run))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_randomness_is_drawn_for_the_step_it_is_used_in(monkeypatch):
    """Steps count from 1: weights that rise, and frames that are given, depend on them."""
    run, steps = start(), []
    draw = run.model.draw_randomness

    def watched(count, frames, step, random):
        steps.append(step)
        return draw(count, frames, step, random)

    monkeypatch.setattr(run.model, "draw_randomness", watched)
    for _ in range(3):
        run.update(random_clips())
    assert steps == [1, 2, 3]


def test_clipping_bounds_the_norm_of_an_objective_and_keeps_its_direction():
    """PyTorch adds 1e-6 to the norm that it divides by: 1e-4 of these norms."""
    free = start()
    free.update(random_clips())
    gradient = gradient_of(free, "generator")
    for bound in (0.1 * gradient.norm(), 10 * gradient.norm()):
        clipped = start(clip_norm=bound.item())
        clipped.update(random_clips())
        expected = gradient * min(1, bound / gradient.norm())
        torch.testing.assert_close(gradient_of(clipped, "generator"), expected, rtol=1e-4, atol=0)


def test_clipping_each_bounds_the_norm_of_every_parameter():
    free, clipped = start(), start(clip_norm=0.01, clip_each=True)
    for run in (free, clipped):
        run.update(random_clips())
    groups = (run.model.parameter_groups()["generator"] for run in (free, clipped))
    norms = [(a.grad.norm().item(), b.grad.norm().item()) for a, b in zip(*groups, strict=True)]
    assert max(before for before, _ in norms) > 0.01
    assert [after for _, after in norms] == pytest.approx(
        [min(before, 0.01) for before, _ in norms], rel=1e-3
    )


@pytest.mark.parametrize("decay", ["linear", "cosine", "exponential"])
def test_the_rate_falls_from_one_to_its_end(decay):
    config = replace(toy().training, constant_steps=5, decay_steps=10, decay=decay, final_lr=0.04)
    rates = [rate_factor(config, step) for step in range(1, 16)]
    assert rates[:5] == [1.0] * 5
    assert rates[-1] == pytest.approx(0.04)
    assert all(a > b for a, b in pairwise(rates[4:]))
    middle = {"linear": 0.52, "cosine": 0.52, "exponential": 0.2}  # arithmetic, geometric means
    assert rates[9] == pytest.approx(middle[decay])
    fifth = {"linear": 0.808, "exponential": 0.04**0.2}
    fifth["cosine"] = 0.52 + 0.48 * math.cos(math.pi / 5)  # half a turn from 1 to 0.04
    assert rates[6] == pytest.approx(fifth[decay])
    stairs = replace(config, decay_interval=5)
    assert [rate_factor(stairs, step) for step in range(1, 16)] == (
        [1.0] * 9 + [rates[9]] * 5 + [rates[14]]
    )


def test_the_rate_rises_linearly_first():
    config = replace(toy().training, warmup_steps=4, constant_steps=6)
    assert [rate_factor(config, step) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_validation_takes_the_sample_that_is_best_over_all_frames(monkeypatch):
    """Errors of 0.1, 0.01 and 0.001 score 20, 40 and 60 dB.

    Two samples of two frames: (40, 20) and (20, 60). The best mean is 40; the best frames', 50.
    """
    run = start(validation_videos=2, validation_samples=2)
    errors = torch.tensor([[0.01, 0.1], [0.1, 0.001]])[..., None, None, None]

    def predict(state, frames, noise):
        return Prediction(errors.expand(2, 2, 3, 16, 16))

    class Black:
        def draw(self, count, frames, generator):
            return Clips(torch.zeros(count, frames, 3, 16, 16), torch.zeros(count, frames, 4))

    monkeypatch.setattr(run.model, "_predict", predict)
    found = validation_scores(run.model, Black(), run.experiment, run.device, at_once=1)
    # The first frame of the best sample has an error of 0.1, which is 20 dB. With D values in a
    # frame, samples are sqrt(D) times their errors' norm from the truth, and from each other.
    assert found["validation_psnr"] == pytest.approx(40, abs=1e-4)
    assert found["validation_psnr_1"] == pytest.approx(20, abs=1e-4)
    assert "validation_psnr_5" not in found
    norms = [np.hypot(0.1, 0.001), np.hypot(0.01, 0.1), np.hypot(0.09, 0.099)]
    energy = np.sqrt(3 * 16 * 16) * ((norms[0] + norms[1]) / 2 - norms[2] / 2)
    assert found["validation_energy"] == pytest.approx(energy, rel=1e-4)  # sums of float32


def test_validation_compares_the_futures_of_a_clip_with_its_own_frames(monkeypatch):
    """Three clips of one brightness each, and two futures of each, of five frames, are exact."""
    run = start(validation_videos=3, validation_samples=2, validation_frames=7)
    brightness = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None, None]

    class Uniform:
        def draw(self, count, frames, generator):
            return Clips(brightness.expand(3, frames, 3, 16, 16), torch.zeros(3, frames, 4))

    def predict(state, frames, noise):
        return Prediction(brightness.repeat_interleave(2, dim=0).expand(6, frames, 3, 16, 16))

    monkeypatch.setattr(run.model, "_predict", predict)
    found = validation_scores(run.model, Uniform(), run.experiment, run.device, at_once=3)
    decibels = ("validation_psnr", "validation_psnr_1", "validation_psnr_5")
    exact = dict.fromkeys(decibels, 100) | {"validation_energy": 0}
    assert found == pytest.approx(exact, abs=1e-5)
