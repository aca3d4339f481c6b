"""Sampling with decoders in bfloat16."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT, generator

from srvp.devices import pick_precision
from srvp.evaluation.precision import decoding_in, settled
from srvp.evaluation.protocol import sampler
from srvp.experiment import load_experiment
from srvp.models.interface import Clips, VideoShape
from srvp.store import build_model

CPU = torch.device("cpu")


def make(name):
    experiment = load_experiment(ROOT / "params.yaml", name)
    return build_model(experiment.model, VideoShape(1), seed=0).eval(), experiment


@pytest.mark.parametrize("name", ["tiny", "svg_tiny"])
def test_frames_are_those_of_float32_but_for_rounding(name):
    model, experiment = make(name)
    given = Clips(torch.rand(2, 5, 1, 64, 64, generator=generator()))
    futures = {}
    for precision in ("float32", "bfloat16"):
        config = replace(experiment.evaluation, precision=precision, samples=3)
        futures[precision] = torch.cat(list(sampler(model, config, 4, {})(given, [0, 1])), dim=1)
    exact, rounded = futures["float32"], futures["bfloat16"]
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    # Numbers of bfloat16 have 8 bits. SVG encodes what it has decoded, which keeps errors small.
    assert (rounded - exact).square().mean().sqrt() < 2**-8


def test_states_stay_float32_and_the_model_is_left_as_it_was():
    model, _ = make("tiny")
    given = model.condition(torch.rand(1, 5, 1, 64, 64, generator=generator()))
    noise = model.draw_noise(1, 25, generator())
    exact = model.predict(given, 20, noise)
    with decoding_in(model, "bfloat16", CPU):
        rounded = model.predict(given, 20, noise)
    assert torch.equal(rounded.y, exact.y) and not torch.equal(rounded.x, exact.x)
    assert torch.equal(model.predict(given, 20, noise).x, exact.x)
    with pytest.raises(KeyError), decoding_in(model, "bfloat16", CPU):
        raise KeyError
    assert torch.equal(model.predict(given, 20, noise).x, exact.x)


def test_auto_is_told_from_the_hardware_and_stays_what_it_became():
    experiment = load_experiment(ROOT / "params.yaml", "smmnist")
    assert experiment.evaluation.precision == "auto"
    found = settled(experiment, CPU)
    assert found.evaluation.precision == pick_precision("auto", CPU) in ("float32", "bfloat16")
    assert settled(found, CPU) == found
    asked = replace(experiment.evaluation, precision="bfloat16")
    asked = replace(experiment, evaluation=asked)
    assert settled(asked, CPU) == asked
