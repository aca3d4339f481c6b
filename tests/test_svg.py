import copy
import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, generator
from safetensors.numpy import load_file
from torch import nn

from srvp.data.prepared import PreparedVideos
from srvp.data.staging import Fold, Video, write_prepared
from srvp.devices import autocast
from srvp.evaluation.launch import evaluate_everywhere
from srvp.evaluation.results import curves_table
from srvp.experiment import ConfigError, from_entry, to_entry
from srvp.models import svg
from srvp.models.interface import VideoShape
from srvp.models.svg import SVG, Noise
from srvp.report import animation, figures
from srvp.store import build_model, load_model, save_model
from srvp.training.loop import read_checkpoint, train
from srvp.training.run import Run

B, T, P = 3, 6, 3
VARIANTS = [("lp", "dcgan"), ("fp", "dcgan"), ("lp", "vgg")]
EXACT = {"atol": 1e-6, "rtol": 0}  # batches of other sizes round differently


def settings(variant="lp", architecture="dcgan", **changes) -> svg.Config:
    sizes = {
        "architecture": architecture,
        "nf": 2,
        "g_dim": 8,
        "z_dim": 4,
        "rnn_size": 7,
        "predictor_layers": 2,
        "posterior_layers": 1,
        "conditioning_frames": P,
        "beta": 0.1,
        **changes,
    }
    return svg.Config(prior="learned" if variant == "lp" else "fixed", **sizes)


def make(variant="lp", architecture="dcgan", channels=1) -> SVG:
    """A model in which every part matters: at its initialisation, the latents hardly do."""
    model = build_model(settings(variant, architecture), VideoShape(channels), seed=0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(30)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.weight.data.mul_(5)
    x = torch.rand(B, T, channels, 64, 64, generator=generator(2))
    for momentum in (1.0, 0.1):  # settle the statistics of batch norm in one pass
        for layer in batch_norms(model):
            layer.momentum = momentum
        with torch.no_grad():
            model(x, model.draw_randomness(B, T, 1, generator()))
    return model


def batch_norms(model) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.fixture
def x():
    return torch.rand(B, T, 1, 64, 64, generator=generator(1))


# The networks.


@pytest.mark.parametrize(
    ("variant", "architecture", "channels", "sizes", "parameters"),
    [
        ("lp", "dcgan", 1, (128, 10, 256), 12_614_057),
        ("fp", "dcgan", 1, (128, 10, 256), 12_049_557),
        ("lp", "vgg", 1, (128, 24, 256), 22_778_081),
        ("fp", "vgg", 1, (128, 24, 256), 22_206_385),
        ("lp", "vgg", 3, (128, 64, 256), 22_831_747),
        ("fp", "vgg", 3, (128, 64, 256), 22_239_491),
        ("lp", "dcgan", 1, (16, 4, 32), 8_565_169),
    ],
)
def test_as_many_parameters_as_the_authors(variant, architecture, channels, sizes, parameters):
    g_dim, z_dim, rnn_size = sizes
    config = settings(variant, architecture, nf=64, g_dim=g_dim, z_dim=z_dim, rnn_size=rnn_size)
    with torch.device("meta"):  # counts, without drawing 20 million weights
        model = SVG(config, VideoShape(channels))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_initialisation_is_that_of_the_authors():
    model = build_model(settings(nf=16, rnn_size=64), VideoShape(1), seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert not module.bias.any()
    assert abs(model.encoder.stages[2][0].weight.std() - 0.02) < 1e-3  # 32,768 draws
    assert abs(model.p_z.embed.weight.std() - 0.02) < 3e-3  # 512 draws
    weights = torch.cat([p.flatten() for p in model.predictor.lstm.parameters()])
    assert 0.99 / 8 < weights.abs().max() <= 1 / 8  # uniform up to 1 / sqrt(64)


@pytest.mark.parametrize(("variant", "architecture"), VARIANTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(variant, architecture, channels):
    model = make(variant, architecture, channels)
    x = torch.rand(B, T, channels, 64, 64, generator=generator(1))
    out = model(x, model.draw_randomness(B, T, 1, generator()))
    assert out.x.shape == (B, T - 1, channels, 64, 64)
    assert out.q_z.mean.shape == out.p_z.mean.shape == (B, T - 1, 4)
    noise = model.draw_noise(B * 2, T + 5, generator())
    prediction = model.predict(model.condition(x), 5, noise)
    assert prediction.x.shape == (B * 2, 5, channels, 64, 64)
    assert prediction.x.min() >= 0 and prediction.x.max() <= 1


@pytest.mark.parametrize(("variant", "architecture"), VARIANTS)
def test_gradients_reach_every_parameter(variant, architecture, x):
    model = make(variant, architecture)
    model.loss(x, model.draw_randomness(B, T, 1, generator())).total.backward()
    # Batch norm takes away what a bias in front of it adds: those gradients are rounding errors.
    biases = {id(layer.bias) for layer in layers_before_batch_norm(model)}
    assert len(biases) == len(batch_norms(model))
    for name, p in model.named_parameters():
        assert p.grad is not None and (p.grad.any() or id(p) in biases), name


def layers_before_batch_norm(model) -> list[nn.Module]:
    blocks = [m for m in model.modules() if isinstance(m, nn.Sequential)]
    pairs = [pair for block in blocks for pair in pairwise(block)]
    return [layer for layer, after in pairs if isinstance(after, nn.BatchNorm2d)]


# The objective.


@pytest.mark.parametrize("variant", ["lp", "fp"])
def test_loss_terms_against_their_definitions(variant, x):
    model = make(variant)
    noise = model.draw_randomness(B, T, 1, generator())
    out, loss = model(x, noise), model.loss(x, noise)
    mse = sum(((out.x[:, t] - x[:, t + 1]) ** 2).mean() for t in range(T - 1))
    torch.testing.assert_close(loss.mse, mse)
    q, p = out.q_z, out.p_z
    kl = (p.stddev / q.stddev).log() - 0.5
    kl += (q.variance + (q.mean - p.mean) ** 2) / (2 * p.variance)
    torch.testing.assert_close(loss.kl, kl.sum() / B)
    torch.testing.assert_close(loss.total, loss.mse + 0.1 * loss.kl)


@pytest.mark.parametrize("variant", ["lp", "fp"])
def test_kl_of_equal_gaussians_is_zero(variant, x):
    model = make(variant)
    for network in filter(None, (model.q_z, model.p_z)):
        nn.init.zeros_(network.output.weight)  # N(0, 1): what the fixed prior is
        nn.init.zeros_(network.output.bias)
    assert model.loss(x, model.draw_randomness(B, T, 1, generator())).kl == 0


def test_the_fixed_prior_is_standard_normal(x):
    p_z, state = make("fp").prior(torch.rand(B, 2, 8))
    assert state is None and p_z.mean.shape == (B, 2, 4)
    assert (p_z.mean == 0).all() and (p_z.stddev == 1).all()


def test_one_adam_over_all_parameters_is_one_per_network(x):
    together = make()
    apart = copy.deepcopy(together)
    optimizers = [[torch.optim.Adam(together.parameters(), lr=2e-3)]]
    optimizers.append([torch.optim.Adam(m.parameters(), lr=2e-3) for m in apart.children()])
    for model, adams in zip((together, apart), optimizers, strict=True):
        for _ in range(3):
            for adam in adams:
                adam.zero_grad()
            model.loss(x, model.draw_randomness(B, T, 1, generator())).total.backward()
            for adam in adams:
                adam.step()
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_is_a_function_of_its_draws(x):
    model = make()
    noise = model.draw_randomness(B, T, 1, generator())
    assert model.loss(x, noise) == model.loss(x, noise)
    assert model.loss(x, noise) != model.loss(x, model.draw_randomness(B, T, 1, generator(5)))


@pytest.mark.parametrize("variant", ["lp", "fp"])
def test_running_statistics_move_as_in_the_authors_code(variant, x):
    """Once per encoded frame; SVG-LP encodes the inner frames twice, as target and as input."""
    model = make(variant)
    encoder = copy.deepcopy(model.encoder)
    model(x, model.draw_randomness(B, T, 1, generator()))
    inner = [t for t in range(1, T - 1) for _ in range(2 if variant == "lp" else 1)]
    for t in [0, *inner, T - 1]:
        encoder(x[:, t])
    for (name, expected), own in zip(encoder.named_buffers(), model.encoder.buffers(), strict=True):
        if not name.endswith("num_batches_tracked"):  # counts calls, and nothing reads it
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
    assert {layer.momentum for layer in batch_norms(model)} == {0.1}


def test_the_decoders_statistics_move_once_per_frame(x):
    model = make()
    before = [int(norm.num_batches_tracked) for norm in batch_norms(model.decoder)]
    model(x, model.draw_randomness(B, T, 1, generator()))
    after = [int(norm.num_batches_tracked) for norm in batch_norms(model.decoder)]
    assert [a - b for a, b in zip(after, before, strict=True)] == [T - 1] * len(before)


@pytest.mark.parametrize("architecture", ["dcgan", "vgg"])
def test_skips_come_from_the_last_but_one_conditioning_frame(architecture, x):
    """With a predictor that says nothing, frames show what the skips carry, and that alone."""
    model = make(architecture=architecture).eval()
    nn.init.zeros_(model.predictor.output.weight)

    def trained_and_predicted(x):
        noise = model.draw_noise(B, P + 4, generator())
        reconstruction = model(x, noise._replace(z=noise.z[:, : T - 1])).x
        return reconstruction, model.predict(model.condition(x[:, :P]), 4, noise).x

    frames, predicted = trained_and_predicted(x)
    torch.testing.assert_close(predicted, frames[:, P - 2 : P - 1].expand_as(predicted), **EXACT)
    for t in range(T):
        other = x.clone()
        other[:, t] = 1 - other[:, t]
        changed, changed_prediction = trained_and_predicted(other)
        # frames[:, i] is frame i + 1; its skips come from frame i, from P - 2 on at the latest.
        differ = [not torch.allclose(a, b) for a, b in zip(frames[0], changed[0], strict=True)]
        assert differ == [t == min(i, P - 2) for i in range(T - 1)]
        assert torch.allclose(predicted, changed_prediction) == (t != P - 2)


# Generation.


@torch.no_grad()
@pytest.mark.parametrize("variant", ["lp", "fp"])
def test_generation_step_by_step(variant, x):
    """The authors' loop written out plainly: every frame is encoded when its turn comes."""
    model = make(variant).eval()
    eps = model.draw_noise(B, P + 4, generator()).z
    posterior = prior = predictor = skips = None
    frame, frames = x[:, 0], []
    for i in range(1, P + 4):
        h, maps = model.encoder(frame)
        skips = maps if i < P else skips
        if variant == "lp":
            raw, prior = model.p_z(h[:, None], prior)
        else:
            raw = torch.zeros(B, 1, 8)
        if i < P:
            raw, posterior = model.q_z(model.encoder(x[:, i])[0][:, None], posterior)
        mean, logvar = raw[:, 0].chunk(2, dim=-1)
        z = mean + (0.5 * logvar).exp() * eps[:, i - 1]
        if i < P and variant == "fp":
            z = mean
        g, predictor = model.predictor(torch.cat([h, z], dim=-1)[:, None], predictor)
        frame = x[:, i] if i < P else model.decoder(g[:, 0].tanh(), skips)
        frames.append(frame)
    prediction = model.predict(model.condition(x[:, :P]), 4, Noise(eps))
    torch.testing.assert_close(prediction.x, torch.stack(frames[P - 1 :], dim=1), **EXACT)


@pytest.mark.parametrize(("variant", "matters"), [("lp", True), ("fp", False)])
def test_only_a_learned_prior_samples_the_posterior_while_conditioning(variant, matters, x):
    model = make(variant).eval()
    noise = model.draw_noise(B, T + 2, generator())
    other = Noise(torch.cat([noise.z[:, : T - 1] + 1, noise.z[:, T - 1 :]], dim=1))
    given = model.condition(x)
    same = torch.equal(model.predict(given, 2, noise).x, model.predict(given, 2, other).x)
    assert same is not matters


def test_samples_of_a_video_stand_together_and_equal_single_ones(x):
    model = make().eval()
    noise = model.draw_noise(B * 2, T + 3, generator())
    together = model.predict(model.condition(x), 3, noise)
    for row in range(B * 2):
        alone = model.condition(x[row // 2 : row // 2 + 1])  # no batch mates
        single = model.predict(alone, 3, Noise(noise.z[row : row + 1]))
        torch.testing.assert_close(together.x[row], single.x[0], **EXACT)


def test_a_longer_prediction_begins_with_the_shorter_one(x):
    model = make().eval()
    given, noise = model.condition(x), model.draw_noise(B, T + 4, generator())
    longer, shorter = model.predict(given, 4, noise).x, model.predict(given, 2, noise).x
    torch.testing.assert_close(longer[:, :2], shorter)


# What cannot be done is said.


def test_steps_between_frames_are_refused(x):
    model = make()
    noise = model.draw_noise(B, T + 1, generator())
    with pytest.raises(ValueError, match="options.euler_steps is not a known key"):
        model.predict(model.condition(x), 1, noise, euler_steps=2)


def test_a_single_given_frame_is_refused(x):
    with pytest.raises(ValueError, match="1 frames were given, but the model needs 3"):
        make().condition(x[:, :1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditioning_frames": 1}, "model.conditioning_frames is 1; expected at least 2"),
        ({"conditioning_frames": 5}, "evaluation.conditioning_frames is 3, but the model needs 5"),
        ({"prior": "flat"}, "model.prior is 'flat'; expected one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, changes, message):
    config = replace(tiny.evaluation, conditioning_frames=3, predict=({},))
    entry = to_entry(replace(tiny, model=settings("fp"), evaluation=config))
    assert from_entry("svg", entry).model == settings("fp")
    with pytest.raises(ConfigError, match=message):
        from_entry("svg", {**entry, "model": {**entry["model"], **changes}})


# Precision and memory layout.


def test_bfloat16_changes_the_loss_by_little(x):
    losses = []
    for precision in ("float32", "bfloat16"):
        model = make()
        with autocast(precision, torch.device("cpu")):
            losses.append(model.loss(x, model.draw_randomness(B, T, 1, generator())))
    # bfloat16 has 8 bits of precision: 0.4 % a product.
    torch.testing.assert_close(losses[0].mse, losses[1].mse, rtol=2e-3, atol=0)
    torch.testing.assert_close(losses[0].kl, losses[1].kl, rtol=3e-2, atol=0)
    assert losses[1].total.dtype == torch.float32


def test_the_memory_layout_changes_nothing(x):
    model = make().eval()
    draws = model.draw_randomness(B, T, 1, generator())
    loss = model.loss(x, draws)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last).loss(x, draws), loss)


# From training to figures, as any other model.


@pytest.fixture(scope="module")
def clips(blobs, tmp_path_factory):
    """Five test clips of eleven frames."""
    folder = tmp_path_factory.mktemp("prepared") / "test"
    x = blobs.train.draw(5, 11, generator()).frames
    videos = [Video(f"{i}", v) for i, v in enumerate((255 * x).byte().numpy())]
    fold = Fold(clips=[(i, 0) for i in range(5)], clip_frames=11)
    write_prepared(folder, videos, fold, dataset="blobs")
    return PreparedVideos.open(folder)


def small(tiny, model: svg.Config):
    """The experiment `tiny` with another model, on five clips of eleven frames."""
    return replace(
        tiny,
        data=replace(tiny.data, test_videos=5, test_frames=11),
        model=model,
        training=replace(
            tiny.training,
            frames=8,
            batch_size=2,
            lr=0.01,
            decay_steps=0,
            validation_frames=11,
        ),
        evaluation=replace(tiny.evaluation, samples=3, predict=({},)),
    )


def train_evaluate_and_draw(experiment, videos, clips, out) -> pd.DataFrame:
    """What the notebooks do; returns the training curves."""
    rows = []
    train(experiment, videos, out, log=rows.append)
    model, saved = load_model(out / "model.safetensors")
    assert saved == experiment
    name = experiment.name
    scores = evaluate_everywhere(model, experiment, clips, out / "model.safetensors", out)
    history, examples = pd.DataFrame(rows), load_file(out / "examples.safetensors")
    figures.save(figures.training_curves(history, {}), out, "training_curves")
    figures.save(figures.metric_curves(curves_table(scores, experiment)), out, "metric_curves")
    rows = figures.futures(examples, 0)
    figures.save(figures.sample_grid(rows, 5, [0, 4, 5, 10]), out, "samples")
    animation.save(animation.Pages([rows], 5), out, "predictions")
    assert len(list((out / "figures").iterdir())) == 4
    assert json.loads((out / "metrics.json").read_text())[name]["psnr"] > 0
    return history


@pytest.mark.parametrize("variant", ["lp", "fp"])
def test_svg_goes_from_training_to_figures(variant, tiny, blobs, clips, tmp_path):
    experiment = small(tiny, settings(variant, nf=4, conditioning_frames=5))
    history = train_evaluate_and_draw(experiment, blobs, clips, tmp_path)
    mse = history["mse"].dropna()
    assert mse.iloc[-1] < 0.9 * mse.iloc[0]
    terms = {name for name in history if not name.startswith("validation_")}
    assert terms == {"step", "lr", "total", "mse", "kl"}


def test_a_resumed_run_goes_on_bit_for_bit(tiny, blobs, tmp_path):
    experiment, device = small(tiny, settings(conditioning_frames=5)), torch.device("cpu")
    whole, cut, resumed = (Run(experiment, device) for _ in range(3))
    for run, steps in ((whole, 4), (cut, 2)):
        for _ in range(steps):
            run.update(blobs.train.draw(2, 8, run.generator))
    cut.save(tmp_path / "checkpoint.pt")
    resumed.restore(read_checkpoint(tmp_path / "checkpoint.pt", device))
    for _ in range(2):
        resumed.update(blobs.train.draw(2, 8, resumed.generator))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_scores_do_not_depend_on_batches_or_processes(tiny, clips, tmp_path):
    model = make().eval()
    experiment = small(tiny, model.config)
    cut = replace(experiment.evaluation, batch_size=3, frames_at_once=7)
    cut = replace(experiment, evaluation=cut)
    file = tmp_path / "model.safetensors"
    save_model(model, experiment, file)
    whole = evaluate_everywhere(model, experiment, clips, file, tmp_path / "whole")["tiny"].samples
    devices = 2 * [torch.device("cpu")]
    shared = evaluate_everywhere(model, cut, clips, file, tmp_path / "cut", devices)
    shared = shared["tiny"].samples
    assert whole["psnr"].std(axis=1).mean() > 2e-4  # samples differ, by ten times the tolerance
    for metric, values in whole.items():  # 2e-5: batches of other sizes round otherwise
        np.testing.assert_allclose(shared[metric], values, rtol=0, atol=2e-5)


# Against numbers of the authors' code: tests/reference/README.md tells how they were made.

REFERENCE = ROOT / "tests" / "reference"
PUBLIC = json.loads((REFERENCE / "svg.json").read_text())
# Absolute, on codes, Gaussian parameters and frames. Rounding moves them by 6e-5 at most, and by
# 1e-6 with the same convolution kernels; a wrong prior moves frames by 4e-4, its means by 0.1.
TOLERANCE = {"atol": 1e-4, "rtol": 0}


class Case:
    """A model with the authors' weights, and what its networks put out when it is called."""

    def __init__(self, name: str):
        facts = self.facts = PUBLIC["cases"][name]
        config = settings(
            facts["variant"],
            facts["architecture"],
            nf=64,
            g_dim=PUBLIC["g_dim"],
            z_dim=PUBLIC["z_dim"],
            rnn_size=PUBLIC["rnn_size"],
            conditioning_frames=PUBLIC["n_past"],
            beta=PUBLIC["beta"],
        )
        with torch.device("meta"):
            model = SVG(config, VideoShape(PUBLIC["channels"]))
        self.model = model.to_empty(device="cpu")
        theirs = drawn_weights(facts["state"])
        total = sum(w.double().sum().item() for w in theirs.values())
        assert total == pytest.approx(facts["checksum"], abs=1e-3)
        self.names = dict(pair_names(self.model, theirs))
        self.state = {
            ours: torch.cat([theirs[k] for k in keys]) for ours, keys in self.names.items()
        }
        tensors = load_file(REFERENCE / "svg.safetensors")
        self.tensors = {k: torch.from_numpy(v) for k, v in tensors.items()}
        self.name = name
        self.outputs: dict[str, list[torch.Tensor]] = {}
        for part in ("encoder", "predictor", "q_z", "p_z"):
            if getattr(self.model, part) is not None:
                getattr(self.model, part).register_forward_hook(self.keep(part))

    def keep(self, part):
        return lambda module, args, out: self.outputs.setdefault(part, []).append(out[0].detach())

    def reset(self, training: bool) -> SVG:
        """Return the model as it was at first."""
        counts = {k: torch.tensor(0) for k in self.model.state_dict() if k not in self.state}
        self.model.load_state_dict(self.state | counts)
        self.outputs.clear()
        return self.model.train(training)

    def expected(self, group: str) -> dict[str, torch.Tensor]:
        prefix = f"{self.name}/{group}/"
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def check(self, frames: torch.Tensor, expected: dict[str, torch.Tensor]) -> None:
        """Compare frames, the predictor's output, and mean and log-variance of every latent."""
        torch.testing.assert_close(frames[..., ::7, ::7], expected["frames"], **TOLERANCE)
        predictor = torch.cat(self.outputs["predictor"], dim=1).tanh()
        torch.testing.assert_close(predictor, expected["predictor"], **TOLERANCE)
        for ours, theirs in (("q_z", "posterior"), ("p_z", "prior")):
            if ours in self.outputs:
                mean, logvar = torch.cat(self.outputs[ours], dim=1).chunk(2, dim=-1)
                torch.testing.assert_close(mean, expected[f"{theirs}_mean"], **TOLERANCE)
                torch.testing.assert_close(logvar, expected[f"{theirs}_logvar"], **TOLERANCE)


def drawn_weights(state) -> dict[str, torch.Tensor]:
    """The authors' state dict, every tensor drawn by its rule."""
    return {
        name: torch.from_numpy(
            (mean + std * np.random.RandomState(i).standard_normal(shape)).astype(np.float32)
        )
        for i, (name, shape, mean, std) in enumerate(state)
    }


def pair_names(model, theirs):
    """Yield our name of each tensor and theirs: two where we join mean and log-variance."""
    for part in ("encoder", "decoder"):  # in the same order
        own = [k for k in model.state_dict() if k.startswith(part) and "num_batches" not in k]
        keys = [k for k in theirs if k.startswith(part)]
        yield from zip(own, ([k] for k in keys), strict=True)
    parts = {"frame_predictor": "predictor", "posterior": "q_z", "prior": "p_z"}
    for key in theirs:
        part, _, rest = key.partition(".")
        rest = re.sub(r"lstm\.(\d)\.(\w+)", r"lstm.\2_l\1", rest).replace("output.0", "output")
        if part in parts and rest.startswith("mu_net"):
            joined = [key, key.replace("mu_net", "logvar_net")]
            yield f"{parts[part]}.{rest.replace('mu_net', 'output')}", joined
        elif part in parts and not rest.startswith("logvar_net"):
            yield f"{parts[part]}.{rest}", [key]


@pytest.fixture(scope="module", params=PUBLIC["cases"])
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def public_clip():
    return torch.from_numpy(np.load(REFERENCE / "clips.npz")["svg"]).float() / 255


def test_a_training_step_of_the_authors(case, public_clip):
    model, facts = case.reset(training=True), case.facts["train"]
    noise, expected = Noise(case.tensors["input/eps_train"]), case.expected("train")
    decoded, clips = [], len(public_clip)
    hook = model.decoder.register_forward_hook(
        lambda module, args, out: decoded.append(out.detach())
    )
    loss = model.loss(public_clip, noise)
    hook.remove()
    loss.total.backward()
    for ours, theirs in (("mse", "mse"), ("kl", "kl"), ("total", "loss")):
        assert getattr(loss, ours).item() == pytest.approx(facts[theirs], rel=2e-5)
    frames, codes = (  # a call is of some steps of every clip
        torch.cat([x.unflatten(0, (clips, -1)) for x in calls], dim=1)
        for calls in (decoded, case.outputs["encoder"])
    )
    case.check(frames, expected)
    torch.testing.assert_close(codes, expected["codes"], **TOLERANCE)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, (key, *more) in case.names.items():
        if key in facts["grad_norm"]:
            norm = np.linalg.norm([facts["grad_norm"][k] for k in (key, *more)])
            # Max pooling of VGG sends rounding errors to other pixels: 1e-3 (measured).
            assert gradients[name].norm().item() == pytest.approx(norm, rel=2e-3), name
        elif key in facts["batch_norm"]:
            norm = model.state_dict()[name].norm().item()
            assert norm == pytest.approx(facts["batch_norm"][key], rel=1e-5), name


@torch.no_grad()
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_generation_of_the_authors(case, public_clip, mode):
    """Their LP script leaves batch norm in training mode: we do not, but can."""
    expected = case.expected(f"generate_{mode}")
    if not expected:
        pytest.skip("the FP script generates in evaluation mode alone")
    model = case.reset(training=mode == "train")
    given = model.condition(public_clip[:, : PUBLIC["n_past"]])
    noise = Noise(case.tensors["input/eps_generate"])
    frames = model.predict(given, expected["frames"].shape[1], noise).x
    case.check(frames, expected)
    if "last_frame" in expected:
        torch.testing.assert_close(frames[0, -1], expected["last_frame"], **TOLERANCE)


def test_batch_norm_that_gpus_share_is_by_time_step_too(x):
    """`SyncBatchNorm` is no `BatchNorm2d`. In one process, it is the same function."""
    plain, noise = make(), make().draw_randomness(B, T, 1, generator())
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    assert not batch_norms(shared)
    assert shared.loss(x, noise) == plain.loss(x, noise)
    for a, b in zip(shared.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)
