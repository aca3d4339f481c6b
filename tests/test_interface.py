"""Every public method of every model checks what it is given, in one place and one line."""

import pkgutil
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, generator

from srvp import models
from srvp.experiment import load_experiment, model_config
from srvp.models import kvae, structvrnn
from srvp.models.interface import Clips, VideoShape
from srvp.store import build_model

GIVEN, PREDICTED = 5, 3


def entry(name):
    return load_experiment(ROOT / "params.yaml", name).model


SRVP = entry("tiny")
KINDS = {  # config and size of frames
    "srvp": (SRVP, 64),
    "srvp_gru": (replace(SRVP, transition="gru"), 64),
    "srvp_without_z": (replace(SRVP, nz=0), 64),
    "srvp_warp": (entry("warp_tiny"), 64),
    "svg": (entry("svg_tiny"), 64),
    "sv2p": (entry("sv2p_tiny"), 32),
    "savp": (replace(entry("savp_tiny"), clip_length=GIVEN - 1), 32),
    "structvrnn": (
        structvrnn.Config(conditioning_frames=5, beta=0.1, keypoints=2, nf=2, rnn_size=4),
        64,
    ),
    "kvae": (kvae.Config(nf=2, alpha_size=3), 32),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    config, size = KINDS[request.param]
    return build_model(config, VideoShape(1, size), seed=0).eval()


@pytest.fixture
def frames(model):
    size = model.shape.size
    return torch.rand(2, GIVEN, 1, size, size, generator=generator(1))


def predict(model, frames, count, total, samples=2, predicted=PREDICTED):
    noise = model.draw_noise(count * samples, total, generator())
    with torch.no_grad():
        return model.predict(model.condition(frames), predicted, noise).x


def test_all_models_are_here():
    found = [info.name for info in pkgutil.iter_modules(models.__path__)]
    named = {name for name in found if model_config(name) is not None}
    assert named == {type(config).__module__.rpartition(".")[2] for config, _ in KINDS.values()}


def test_predictions_have_the_form_that_the_contract_asks_for(model, frames):
    x = predict(model, frames, 2, GIVEN + PREDICTED)
    assert x.shape == (4, PREDICTED, *frames.shape[2:])
    assert x.min() >= 0 and x.max() <= 1 and x.isfinite().all()
    with torch.no_grad():
        assert torch.equal(x, predict(model, Clips(frames), 2, GIVEN + PREDICTED))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: 255 * x, r"from [\d.]+ to 2\d\d.*, expected floating point in \[0, 1\]"),
        (lambda x: x - 0.5, r"expected floating point in \[0, 1\]"),
        (lambda x: x * torch.nan, r"expected floating point in \[0, 1\]"),
        (lambda x: (255 * x).byte(), r"torch.uint8 .* divide 8-bit frames by 255"),
        (lambda x: x[..., ::2, ::2], r"have shape .*, expected \(clips, frames, 1, "),
        (lambda x: x.expand(-1, -1, 3, -1, -1), r"have shape .*, expected \(clips, frames, 1, "),
        (lambda x: x[:, 0], r"have shape .*, expected \(clips, frames, 1, "),
        (lambda x: x[:, :0], r"0 frames were given, but the model needs \d"),
    ],
)
def test_frames_of_another_form_are_refused_in_one_line(model, frames, change, message):
    with pytest.raises(ValueError, match=message) as error:
        model.condition(change(frames))
    assert "\n" not in str(error.value)


def test_a_loss_refuses_frames_of_another_shape(model, frames):
    randomness = model.draw_randomness(2, GIVEN, 1, generator())
    for objective in model.objectives(1):
        with pytest.raises(ValueError, match="have shape"):
            model.loss(frames[..., ::2, ::2], randomness, objective)


def test_noise_that_does_not_fit_is_refused(model, frames):
    fitting = model.draw_noise(2, GIVEN + PREDICTED, generator())
    longer = model.draw_noise(2, GIVEN + PREDICTED + 1, generator())
    changes_with_length = any(a.shape != b.shape for a, b in zip(fitting, longer, strict=True))
    if changes_with_length:
        with pytest.raises(ValueError, match=r"draw_noise\(futures, 8, generator\)"):
            predict(model, frames, 2, PREDICTED)
    with pytest.raises(ValueError, match="expected a multiple of the 2 clips"):
        predict(model, frames, 3, GIVEN + PREDICTED, samples=1)
    with pytest.raises(ValueError, match="expected a multiple of the 2 clips"):
        predict(model, frames, 0, GIVEN + PREDICTED)
    with pytest.raises(ValueError, match="0 frames were asked for"):
        predict(model, frames, 2, GIVEN + PREDICTED, predicted=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_models_that_take_actions_are_those_that_read_them(kind):
    config, size = KINDS[kind]
    model = build_model(config, VideoShape(1, size, actions=2), seed=0).eval()
    frames = torch.rand(1, GIVEN, 1, size, size, generator=generator(1))
    actions = torch.randn(2, 1, GIVEN + PREDICTED, 2, generator=generator(2))
    noise = model.draw_noise(1, GIVEN + PREDICTED, generator())
    first, second = (
        model.predict(model.condition(Clips(frames, plan)), PREDICTED, noise).x for plan in actions
    )
    assert config.takes_actions != torch.equal(first, second)


@pytest.mark.parametrize("futures", [[4], [4, 2], [2, 2, 2]])
def test_every_clip_needs_noise_of_as_many_futures(model, frames, futures):
    """Else the futures of two clips would be shared out among them, without a word."""
    noise = [model.draw_noise(n, GIVEN + PREDICTED, generator()) for n in futures]
    with pytest.raises(ValueError, match=r"is of \[.*\] futures, expected .* each of the 2 clips"):
        next(model.futures(frames, PREDICTED, noise, at_once=1000))


def test_an_option_that_a_model_has_not_is_refused(model, frames):
    noise = model.draw_noise(2, GIVEN + PREDICTED, generator())
    with pytest.raises(ValueError, match="options.solver is not a known key"):
        model.predict(model.condition(frames), PREDICTED, noise, solver="rk4")
