"""Against numbers of the authors' code, run on the same weights and noise.

tests/reference/README.md tells how the numbers were made. Two honest float32 implementations differ
by 5e-7 on frames and 4e-6 on states; a mistake moves frames by 7e-5 or more.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from srvp.models import official
from srvp.models.interface import VideoShape
from srvp.models.srvp import SRVP, Noise, Randomness

REFERENCE = ROOT / "tests" / "reference"
CASES = json.loads((REFERENCE / "cases.json").read_text())
FRAMES, STATES, GAUSSIANS = 1e-5, 5e-5, 1e-5  # absolute


class Case:
    def __init__(self, name: str):
        self.facts = CASES[name]
        self.tensors = load_file(REFERENCE / f"{name}.safetensors")
        self.weights = self.group("weights")
        self.model = official.load(
            self.weights,
            self.facts["config"],
            euler_steps=self.facts["n_euler_steps"],
            **self.facts["loss_settings"],
        )
        self.x = torch.from_numpy(np.load(REFERENCE / "clips.npz")[name]).float() / 255
        self.noise = Noise(self.tensors["input/eps_y0"], self.tensors["input/eps_z"])

    def group(self, prefix: str) -> dict:
        prefix += "/"
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def training_draws(self) -> Randomness:
        return Randomness(
            noise=Noise(self.noise.y, self.noise.z[:, : self.x.shape[1] - 1]),
            content_frames=self.tensors["input/w_frames"],
            skip_frame=self.tensors.get("input/skip_frames"),
        )


@pytest.fixture(params=CASES)
def case(request):
    return Case(request.param)


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def check_pass(out, inference, expected):
    close(out.x[..., ::7, ::7], expected["frames"], FRAMES)
    close(out.y, expected["y"], STATES)
    close(inference.w, expected["w"], GAUSSIANS)
    for name in ("q_y", "q_z", "p_z"):
        close(getattr(out, name).mean, expected[f"{name}_mean"], GAUSSIANS)
        close(getattr(out, name).stddev, expected[f"{name}_std"], GAUSSIANS)
    close(out.residuals, expected["residuals"], STATES)


def test_training_pass(case):
    expected, draws = case.group("train"), case.training_draws()
    model = case.model.train()
    out = model(case.x, draws)
    statistics = case.group("train/batch_norm")
    own = {official.official_name(n): t for n, t in model.state_dict().items()}
    for name, value in statistics.items():
        torch.testing.assert_close(own[name], value, atol=1e-5, rtol=1e-4)
    # Once more for w: in training mode only the running statistics differ.
    check_pass(out, model.infer(case.x, draws.content_frames, draws.skip_frame), expected)


def test_loss_terms_and_gradients(case):
    expected = case.facts["train"]
    loss = case.model.train().loss(case.x, case.training_draws())
    pairs = {"total": "loss", "nll": "nll", "kl_y": "kl_y0", "kl_z": "kl_z", "residual": "l2"}
    for ours, theirs in pairs.items():
        rtol = 3e-5 if ours.startswith("kl") else 1e-5
        assert getattr(loss, ours).item() == pytest.approx(expected[theirs], rel=rtol), ours
    loss.total.backward()
    for name, parameter in case.model.named_parameters():
        norm = expected["grad_norm"][official.official_name(name)]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3), name


def test_evaluation_pass(case):
    """In evaluation, w comes from the last k frames and the skips from the last one."""
    frames = case.x.shape[1]
    last = torch.arange(frames - case.model.config.inference_frames, frames)
    draws = case.training_draws()._replace(
        content_frames=last.expand(len(case.x), -1),
        skip_frame=torch.full((len(case.x),), frames - 1),
    )
    with torch.no_grad():
        out, inference = case.model(case.x, draws), case.model.infer(case.x)
    check_pass(out, inference, case.group("eval"))


@pytest.mark.parametrize(
    ("name", "steps"),
    [*((name, "predict") for name in CASES), ("vgg_skip_grey", "predict_test_steps")],
)
def test_prediction(name, steps):
    case = Case(name)
    expected, given = case.group(steps), case.facts["nt_cond"]
    options = {}
    if steps == "predict_test_steps":
        options = {"euler_steps": case.facts["test_n_euler_steps"]}
    frames = case.facts["nt_gen"] - given
    with torch.no_grad():
        condition = case.model.condition(case.x[:, :given])
        out = case.model.predict(condition, frames, case.noise, **options)
    close(out.x[..., ::7, ::7], expected["frames"][:, given:], FRAMES)
    close(out.y, expected["y"][:, given:], STATES)
    close(condition.state.w, expected["w"], GAUSSIANS)
    if "last_frame" in expected:
        close(out.x[0, -1], expected["last_frame"], FRAMES)
    prior = case.model.prior(expected["y"][:, given - 1 : -1])
    close(prior.mean, expected["p_z_mean"][:, given - 1 :], GAUSSIANS)
    close(prior.stddev, expected["p_z_std"][:, given - 1 :], GAUSSIANS)


def test_a_checkpoint_survives_the_round_trip_bit_for_bit(case, tmp_path):
    official.save(case.model, tmp_path)
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert written.keys() == case.weights.keys()
    for name, value in case.weights.items():
        assert torch.equal(written[name], value) and written[name].dtype == value.dtype
    assert json.loads((tmp_path / "config.json").read_text()) == case.facts["config"]
    again = official.load(tmp_path / "model.pt", tmp_path / "config.json")
    assert all(map(torch.equal, again.state_dict().values(), case.model.state_dict().values()))


def test_all_that_is_wrong_with_a_checkpoint_is_listed_at_once():
    case = Case("dcgan_grey")
    weights = dict(case.weights)
    del weights["q_z.bias"]
    weights["q_zz.bias"] = torch.zeros(1)
    weights["q_z.weight"] = torch.zeros(3, 2)
    with pytest.raises(ValueError) as error:
        official.load(weights, case.facts["config"])
    for problem in (
        "q_z.bias is missing",
        "q_zz.bias is unknown",
        "q_z.weight is (3, 2), expected",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}])
def test_checkpoints_as_people_have_them_load(wrap):
    """From DataParallel, with the prefix `module.`, and wrapped with other things."""
    case = Case("dcgan_grey")
    weights = wrap({f"module.{name}": value for name, value in case.weights.items()})
    model = official.load(weights, case.facts["config"])
    assert all(map(torch.equal, model.state_dict().values(), case.model.state_dict().values()))


def test_a_checkpoint_of_another_model_is_refused_in_a_short_line():
    weights = {f"x{i}": torch.zeros(1) for i in range(500)}
    with pytest.raises(ValueError, match=r"in \d+ of \d+ entries: .*; \.\.\.$") as error:
        official.load(weights, CASES["dcgan_grey"]["config"])
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("file", ["model.pt", "config.json"])
@pytest.mark.parametrize("content", [b"", b"[1, 2", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(file, content, tmp_path):
    official.save(Case("dcgan_grey").model, tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=file) as error:
        official.load(tmp_path / "model.pt", tmp_path / "config.json")
    assert "\n" not in str(error.value)


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path):
    torch.save({"q_z.bias": print}, tmp_path / "model.pt")
    with pytest.raises(Exception, match="[Ww]eights"):
        official.load(tmp_path / "model.pt", CASES["dcgan_grey"]["config"])


def test_a_configuration_that_lacks_sizes_is_refused():
    with pytest.raises(ValueError, match=r"lacks \['nhx'\]"):
        config = {k: v for k, v in CASES["dcgan_grey"]["config"].items() if k != "nhx"}
        official.model_config(config)


def test_ablations_have_no_place_in_the_authors_format(tmp_path):
    config = replace(Case("dcgan_grey").model.config, transition="gru")
    with pytest.raises(ValueError, match="only SRVP"):
        official.save(SRVP(config, VideoShape(1)), tmp_path)


def test_published_weights_are_fetched_once(tmp_path, monkeypatch):
    case = Case("dcgan_grey")
    official.save(case.model, tmp_path / "mirror" / "kth")
    monkeypatch.setattr(official, "OFFICIAL_URL", (tmp_path / "mirror").as_uri())
    first = official.load_official("kth", tmp_path / "cache")
    shutil.rmtree(tmp_path / "mirror")
    again = official.load_official("kth", tmp_path / "cache")
    for model in (first, again):
        assert all(map(torch.equal, model.state_dict().values(), case.model.state_dict().values()))


def test_weights_that_cannot_be_fetched_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "OFFICIAL_URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(ConnectionError, match=r"bair/model.pt cannot be fetched .* put it at"):
        official.load_official("bair", tmp_path)
    with pytest.raises(ValueError, match=r"'mnist' has no official weights; expected one of"):
        official.load_official("mnist", tmp_path)
