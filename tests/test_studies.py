"""Studies: their settings are experiments, their tables have all of them, variants do as told."""

import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import ROOT, generator

from srvp.data.sets.moving_digits import MovingMNIST
from srvp.experiment import load_experiment
from srvp.models.parts import networks
from srvp.report.studies import study_markdown, study_table
from srvp.store import build_model
from srvp.training.run import Run

sys.path.insert(0, str(ROOT / "benchmarks"))
import study
import variants


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_setting_is_an_experiment_that_its_changes_have_reached(name):
    for setting in study.STUDIES[name].values():
        experiment = study.experiment_of(setting, seed=7)
        assert experiment.training.seed == 7
        for key, value in setting.items():
            if key == "variant":
                assert value in variants.VARIANTS
            elif key != "experiment":
                section, key = key.split(".")
                assert getattr(getattr(experiment, section), key) == value


@pytest.mark.parametrize("name", study.STUDIES)
def test_the_table_has_every_setting_with_the_same_three_seeds(name):
    table = pd.read_csv(ROOT / "reports" / "studies" / f"{name}.csv")
    seeds = table.groupby("setting", sort=False)["seed"].agg(list).to_dict()
    assert seeds == {setting: [1, 2, 3] for setting in study.STUDIES[name]}
    assert table.notna().all(axis=None)


@pytest.fixture
def warp():
    return load_experiment(ROOT / "params.yaml", "warp_tiny")


def steps(experiment, blobs, count):
    """A run after some steps."""
    run, c = Run(experiment, torch.device("cpu")), experiment.training
    run.model.train()
    for _, clips in zip(range(count), blobs.train.batches(c.batch_size, c.frames, 0), strict=False):
        run.update(clips)
    return run


def test_muon_moves_weights_of_convolutions_by_orthogonal_matrices(tiny, blobs):
    tiny = replace(tiny, training=replace(tiny.training, constant_steps=1, decay_steps=0))
    before = build_model(tiny.model, tiny.shape, tiny.training.seed).state_dict()
    with variants.muon(tiny):
        run = steps(tiny, blobs, 1)
    moved = {name: value - before[name] for name, value in run.model.state_dict().items()}
    down = moved["encoder.stages.1.0.weight"].flatten(1)  # (out, in k k)
    up = moved["decoder.stages.1.0.weight"].transpose(0, 1).flatten(1)  # stored as (in, out, k, k)
    for matrix in (down, up):
        # The documented scale; five iterations leave singular values between 0.7 and 1.2.
        values = torch.linalg.svdvals(matrix) / (0.2 * max(matrix.shape) ** 0.5 * run.config.lr)
        assert values.median() > 0.6 and values.max() < 1.3
    adam = moved["q_z.weight"].abs().max()  # an output
    assert adam <= 1.01 * run.config.lr


def test_a_price_rises_to_that_of_the_experiment(warp, blobs, monkeypatch):
    warp = replace(warp, training=replace(warp.training, constant_steps=8, decay_steps=0))
    prices, add = [], Run._add_to_sums

    def noted(run, *given):
        prices.append(run.model.config.beta_z)
        add(run, *given)

    monkeypatch.setattr(Run, "_add_to_sums", noted)
    with variants.rising_price(warp):
        steps(warp, blobs, 6)
    beta = warp.model.beta_z
    expected = [beta * 0.1 ** (1 - step / 4) for step in range(1, 4)] + 3 * [beta]
    assert prices == pytest.approx(expected)


def test_short_sequences_come_first_and_a_resumed_run_goes_on_with_its_own(warp, blobs):
    warp = replace(warp, training=replace(warp.training, constant_steps=4, decay_steps=2))
    with variants.short_first(warp):
        whole = blobs.train.batches(4, 12, seed=0)
        drawn = [next(whole).frames for _ in range(5)]
        resumed = [next(blobs.train.batches(4, 12, seed=0, first=n)).frames for n in range(5)]
    assert [tuple(x.shape[:2]) for x in drawn] == 3 * [(6, 8)] + 2 * [(4, 12)]
    assert all(map(torch.equal, drawn, resumed))
    assert MovingMNIST.batches.__name__ == "batches"  # as it was


def test_coordinates_are_two_more_channels_of_the_layers_named(tiny):
    plain = build_model(tiny.model, tiny.shape, seed=0)
    with variants.coordinates(tiny):
        model = build_model(tiny.model, tiny.shape, seed=0)
    inputs = [
        [layer.in_channels for layer in m.modules() if isinstance(layer, kind)]
        for kind in (networks.DownConv, networks.UpConv)
        for m in (plain, model)
    ]
    assert inputs[1] == [inputs[0][0] + 2, *inputs[0][1:]]
    assert inputs[3] == [inputs[2][0] + 2, inputs[2][1] + 2, *inputs[2][2:]]
    x = torch.rand(2, 6, 1, 64, 64, generator=generator())
    given = model.eval().condition(x)
    assert model.predict(given, 1, model.draw_noise(2, 7, generator())).x.shape[2:] == (1, 64, 64)


def test_the_page_on_the_recipe_has_the_table_of_its_study():
    nothing = pd.DataFrame({"model": []})
    table = study_table(ROOT / "reports" / "studies" / "recipe.csv", nothing)
    assert study_markdown(table) in (ROOT / "docs" / "recipe.md").read_text()
