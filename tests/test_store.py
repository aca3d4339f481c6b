"""Pretrained models: how one is made and scored, and what its card must say."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
import torch
from conftest import ROOT, generator

from srvp import __main__ as command_line
from srvp import load_pretrained, store
from srvp.experiment import load_experiment, load_params
from srvp.files import sha256
from srvp.metrics.table import METRICS
from srvp.report.numbers import number
from srvp.store import build_model, load_model, publish, save_model
from srvp.training.loop import train

PRETRAINED = sorted(card.parent.name for card in (ROOT / "pretrained").glob("*/README.md"))
RUN = load_params(ROOT / "params.yaml")["run"]


def test_a_pretrained_model_predicts_as_that_of_the_run(tiny, blobs, tmp_path):
    """Its matrices have 8 bits: a weight moves by 1/254 of its channel's largest at most."""
    model = train(tiny, blobs, tmp_path / "run")
    path = publish(tmp_path / "run", tmp_path / "published")
    rounded, experiment = load_model(path)
    assert experiment == tiny
    assert path.stat().st_size < 0.4 * (tmp_path / "run" / path.name).stat().st_size
    assert {p.name for p in path.parent.iterdir()} == {"model.safetensors", "training.csv"}
    x = torch.rand(1, 5, 1, 64, 64, generator=generator())
    noise = model.draw_noise(3, 25, generator(1))
    with torch.inference_mode():
        frames, same = (m.predict(m.condition(x), 20, noise).x for m in (rounded, model))
    assert not torch.equal(frames, same)
    assert (frames - same).abs().mean() < 1 / 255


@pytest.mark.parametrize("axis", [0, 1])
def test_bytes_are_within_half_a_step_of_a_channel(axis):
    """Channels of very different size keep their precision, whatever axis they lie on."""
    size = torch.tensor([1e-6, 1.0, 1e3, 0.0]).unflatten(0, (-1, *[1] * (3 - axis)))
    matrix = torch.randn(4, 4, 3, 3, generator=generator()) * size
    rounded, scale = store.to_bytes(matrix, axis)
    assert scale.shape[axis] == 4 and scale.numel() == 4
    assert ((rounded * scale - matrix).abs() <= 0.5001 * scale).all()


def test_what_cannot_be_published_is_said(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="training.csv is missing: train the model first"):
        publish(tmp_path, tmp_path / "published")
    (tmp_path / "training.csv").touch()
    model = build_model(tiny.model, tiny.shape, seed=0)
    model.p_z[0].weight.data[0, 0] = float("nan")
    save_model(model, tiny, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has weights that are no numbers: p_z\.0\.weight"):
        publish(tmp_path, tmp_path / "published")


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
    command_line.main()


def test_any_model_is_scored_from_the_command_line(tiny, tmp_path, monkeypatch, capsys):
    """By the protocol of the experiment `tiny`, on two of its four test clips."""
    call(monkeypatch, "prepare", "tiny", "--out", tmp_path / "prepared")
    model, path = build_model(tiny.model, tiny.shape, seed=0), tmp_path / "other.safetensors"
    save_model(model, replace(tiny, name="other"), path)
    places = ["--model", path, "--prepared", tmp_path / "prepared", "--out", tmp_path / "out"]
    call(monkeypatch, "evaluate", "tiny", *places, "--clips", 2)
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert protocol["experiment"] == "other" and "mean over 2 videos" in protocol["protocol"]
    assert protocol["source"] == {"file": path.name, "sha256": sha256(path)}
    assert list(metrics)[:2] == ["other", "other, dt = 1/2"] and "black frame" in metrics
    assert (tmp_path / "out" / "examples.safetensors").is_file()  # that figures show
    assert "other" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "evaluate", "tiny", *places, "--clips", 5)
    assert (
        stop.value.code == 2
        and "test_videos 4, but data.test_videos is 5" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_card_tells_the_checksum_and_the_scores(name):
    """Of the weights that DVC fetches, and of the evaluation that is committed with them."""
    folder = ROOT / "pretrained" / name
    weights, card = sha256(folder / "model.safetensors"), (folder / "README.md").read_text()
    assert weights in card
    # Scores of 5,000 clips may be of the same weights in 16 bits; the card then tells both.
    assert json.loads((folder / "protocol.json").read_text())["source"]["sha256"] in card
    rows = {line.split("|")[1].strip(" *"): line for line in card.splitlines() if line[:1] == "|"}
    metrics = json.loads((folder / "metrics.json").read_text())
    table = pd.DataFrame.from_dict(metrics, orient="index")
    computed = [metric for metric in METRICS if metric in table]
    for (predictor, scores), metric in product(table.iterrows(), computed):
        assert f"| {number(scores, metric)} |" in rows[predictor], (predictor, metric)


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name in RUN])
def test_scores_on_a_part_of_the_test_set_agree_with_those_of_the_card(name):
    """What `make repro` finds for a published model: its 95 % intervals hold the card's values."""
    full = json.loads((ROOT / "pretrained" / name / "metrics.json").read_text())[name]
    part = json.loads((ROOT / "runs" / name / "metrics.json").read_text())[name]
    for metric in ("psnr", "ssim"):
        assert abs(part[metric] - full[metric]) <= part[f"{metric}_ci95"], metric


@pytest.mark.parametrize("name", [name for name in RUN if name.startswith("sv2p")])
def test_sv2p_beats_the_copied_last_frame_at_first(name):
    """In the mean over the first five predicted frames of the test clips."""
    curves = pd.read_csv(ROOT / "runs" / name / "curves.csv").query("metric == 'psnr'")
    means = curves.groupby("predictor")["mean"].apply(lambda psnr: psnr.head(5).mean())
    assert means[name] > means["copy last frame"] + 0.5  # dB


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_model_loads_by_name_with_the_settings_of_params_yaml(name):
    """Its card points there: whoever trains NAME anew must find the settings that made the file."""
    model, experiment = load_pretrained(name)
    assert not model.training and experiment.model == model.config
    settings = load_experiment(ROOT / "params.yaml", name)
    # How it is evaluated made nothing of it.
    assert replace(experiment, evaluation=settings.evaluation) == settings


def test_an_unknown_name_is_told_from_the_pretrained_ones():
    with pytest.raises(ValueError, match=r"has no model 'nothing': there are \['dmmnist"):
        load_pretrained("nothing")


def test_a_pretrained_model_has_a_card_and_its_results_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "project_root", lambda: tmp_path)
    for file in ("b/README.md", "b/metrics.json", "a/README.md", "without_a_card/metrics.json"):
        path = tmp_path / "pretrained" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert store.pretrained_folders() == [tmp_path / "pretrained" / name for name in "ab"]
    assert store.pretrained_results() == [tmp_path / "pretrained" / "b"]


def python(code, cwd, **environment):
    """Run code in another folder, without this one on the path."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SRVP_ROOT")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True)


LOAD = "import srvp; print(srvp.load_pretrained('smmnist_gpu')[1].name)"


@pytest.mark.parametrize("beside", ["", "srvp/", "params.yaml"])
def test_a_pretrained_model_loads_from_any_folder(beside, tmp_path):
    """Beside a folder `srvp`, as that which holds a clone; and in another project of DVC."""
    if beside.endswith("/"):
        (tmp_path / beside).mkdir()
    elif beside:
        (tmp_path / beside).write_text("train: {lr: 1}\n")
    done = python(LOAD, tmp_path)
    assert done.stdout.strip() == "smmnist_gpu", done.stderr


def test_a_variable_names_the_clone_and_a_wrong_one_is_said(tmp_path):
    assert python(LOAD, tmp_path, SRVP_ROOT=str(ROOT)).stdout.strip() == "smmnist_gpu"
    wrong = python(LOAD, tmp_path, SRVP_ROOT=str(tmp_path))
    assert "SRVP_ROOT is" in wrong.stderr and "set it to a clone" in wrong.stderr
