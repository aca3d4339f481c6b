"""KVAE against a second implementation in NumPy (`reference_kvae`), and against laws."""

from dataclasses import replace

import numpy as np
import pytest
import reference_kvae as reference
import torch
from conftest import generator
from test_kalman import conditioned, joint
from torch import nn

from srvp.data import open_training, prepare
from srvp.data.sets import simulated
from srvp.experiment import Experiment, from_entry
from srvp.models.interface import Clips, VideoShape
from srvp.models.kvae import KVAE, Config, Noise
from srvp.models.parts import kalman
from srvp.schema import ConfigError
from srvp.training.loop import train

B, T, U = 2, 6, 2
SIZES = Config(nf=3, alpha_size=5, fixed_mixing_steps=10)
PUBLISHED = Config()
FLOAT64 = {"atol": 1e-8, "rtol": 1e-8}
FLOAT32 = {"atol": 1e-4, "rtol": 1e-4}
COVARIANCES = {"atol": 1e-3, "rtol": 1e-3}  # in float32, next to v0 = 20


def make(dtype=torch.float32, actions=U, size=16, **changes) -> KVAE:
    """A model in which every part matters: the matrices differ, and so do their weights."""
    torch.manual_seed(0)
    model = replace(SIZES, **changes).build(VideoShape(1, size, actions)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("dynamics"):
                scale = 2.0 if "mixing" in name else 0.3
                parameter += scale * torch.randn(parameter.shape, generator=generator(1))
            elif name.endswith("bias"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator(2))
    return model


def data(dtype=torch.float32, actions=U, frames=T, count=B, size=16):
    """Clips of pixels 0 and 1, which frames are seen, and noise."""
    random = generator(3)
    x = (torch.rand(count, frames, 1, size, size, generator=random) < 0.3).to(dtype)
    u = torch.randn(count, frames + 4, actions, generator=random).to(dtype) if actions else None
    observed = torch.rand(count, frames, generator=random) < 0.7
    noise = make().draw_noise(count, frames, random)
    return Clips(x, u), observed, Noise(*(part.to(dtype) for part in noise))


def all_seen(clips):
    return torch.ones(clips.frames.shape[:2], dtype=torch.bool)


# Parity.


def weights(model: KVAE) -> dict:
    """The model's weights in the layout of the reference."""

    def linear(layer, by_map=None):
        matrix = layer.weight.detach().double().numpy().T
        bias = layer.bias.detach().double().numpy()
        nf = model.config.nf
        if by_map == "inputs":  # from channel, row, column to row, column, channel
            matrix = matrix.reshape(nf, 4, 4, -1).transpose(1, 2, 0, 3).reshape(16 * nf, -1)
        if by_map == "outputs":
            matrix = matrix.reshape(-1, nf, 4, 4).transpose(0, 2, 3, 1).reshape(-1, 16 * nf)
            bias = bias.reshape(nf, 4, 4).transpose(1, 2, 0).reshape(-1)
        return matrix, bias

    def convolutions(network):
        layers = [layer for layer in network if isinstance(layer, nn.Conv2d)]
        return [
            (
                c.weight.detach().double().numpy().transpose(2, 3, 1, 0),
                c.bias.detach().double().numpy(),
            )
            for c in layers
        ]

    *decoder, (last, last_bias) = convolutions(model.decoder)
    dynamics = {
        k: getattr(model.dynamics, k).detach().double().numpy() for k in ("A", "B", "C", "a_0")
    }
    return dynamics | {
        "encoder": convolutions(model.encoder),
        "mean": linear(model.a_mean, "inputs"),
        "var": linear(model.a_var, "inputs"),
        "dense": linear(model.decoder[0], "outputs"),
        "decoder": decoder,
        "last": (last[0, 0], last_bias),
        "lstm": linear(model.dynamics.mixing.gates),
        "alpha": linear(model.dynamics.mixing.output),
    }


def refer(model, clips, observed, noise):
    """What the reference finds: the terms, and per video what led there."""
    c = model.config
    x = clips.frames.double().numpy().transpose(0, 1, 3, 4, 2)
    arrays = (part.double().numpy() for part in (clips.actions, noise.a, noise.z))
    variances = (c.emission_variance, c.transition_variance, c.initial_variance)
    return reference.losses(
        weights(model), x, observed.numpy(), *arrays, *variances, c.reconstruction_weight
    )


@pytest.mark.parametrize(
    ("dtype", "close", "covariances"),
    [(torch.float64, FLOAT64, FLOAT64), (torch.float32, FLOAT32, COVARIANCES)],
)
def test_parity_with_the_reference(dtype, close, covariances):
    model, (clips, observed, noise) = make(dtype), data(dtype)
    terms, inside = refer(model, clips, observed, noise)

    def same(value, key, tolerance=close):
        np.testing.assert_allclose(value.detach(), np.array(key), **tolerance)

    loss = model.elbo(clips, observed, noise)
    for name, value in loss._asdict().items():
        same(value, terms[name])
    mean, var = model.encode(clips.frames)
    known = model.dynamics.filter(mean + var.sqrt() * noise.a, observed, clips.actions)
    smoothed = model.dynamics.smooth(known)
    decoded = model.decode(mean)
    for b, video in enumerate(inside):
        same(mean[b], [m for m, _ in video["codes"]])
        same(var[b], [v for _, v in video["codes"]])
        same(known.z.mean[b], video["known"]["mean"])
        same(known.z.cov[b], video["known"]["cov"], covariances)
        same(known.predicted.mean[b], video["known"]["mean_before"])
        same(known.predicted.cov[b], video["known"]["cov_before"], covariances)
        for name in ("alpha", "A", "C", "drift"):
            same(getattr(known, name)[b], video["known"][name])
        same(smoothed.mean[b], video["smoothed"][0])
        same(smoothed.cov[b], video["smoothed"][1], covariances)
        frames = [reference.decode(weights(model), m) for m, _ in video["codes"]]
        same(decoded[b].movedim(1, -1), frames)


def test_gradients_are_the_differences_of_the_reference():
    """Each parameter moved along its gradient's sign: the reference's loss changes as it says."""
    model, (clips, observed, noise) = make(torch.float64), data(torch.float64, frames=4)
    model.elbo(clips, observed, noise).total.backward()
    step = 1e-5
    for name, parameter in model.named_parameters():
        direction = parameter.grad.sign()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                values.append(refer(model, clips, observed, noise)[0]["total"])
                parameter -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        expected = parameter.grad.abs().sum().item()
        assert abs(slope - expected) < 1e-5 * expected + 1e-7, name


def test_as_many_parameters_as_the_authors():
    """They count an action of one value, which is always 0."""
    model = PUBLISHED.build(VideoShape(1, 32, 1))

    def count(*parts):
        return sum(p.numel() for part in parts for p in part.parameters())

    dynamics = model.dynamics
    assert count(model) == 144_252
    assert count(model.encoder) == 18_816
    assert count(model.a_mean, model.a_var) == 2_052
    assert count(model.decoder) == 112_545
    assert (count(dynamics.mixing.gates), count(dynamics.mixing.output)) == (10_600, 153)
    assert [getattr(dynamics, k).numel() for k in ("A", "B", "C", "a_0")] == [48, 12, 24, 2]


def test_initialisation_is_that_of_the_authors():
    torch.manual_seed(0)
    model = PUBLISHED.build(VideoShape(1, 32, 1))
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fans = layer.weight[0].numel() + layer.weight.transpose(0, 1)[0].numel()
            bound = (6 / fans) ** 0.5  # Glorot
            assert 0.8 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()
    assert torch.equal(model.dynamics.A, torch.eye(4).expand(3, 4, 4))
    assert 0.02 < model.dynamics.C.std() < 0.08  # 24 draws of standard deviation 0.05
    assert not model.dynamics.a_0.any()


# Laws.


def test_pixels_of_missing_frames_change_nothing():
    model, (clips, observed, noise) = make(), data()
    other = Clips(torch.where(observed[..., None, None, None], clips.frames, 0.5), clips.actions)
    losses = [model.elbo(x, observed, noise) for x in (clips, other)]
    assert all(torch.equal(*terms) for terms in zip(*losses, strict=True))
    first, second = (model.impute(x, observed, noise) for x in (clips, other))
    assert torch.equal(first.x, second.x)


def test_a_frame_is_shown_as_the_smoothed_state_tells_and_filtering_knows_only_the_past():
    model, (clips, observed, noise) = make(), data()
    changed = Clips(clips.frames.clone(), clips.actions)
    changed.frames[:, -1] = 1 - changed.frames[:, -1]
    observed = all_seen(clips)
    pairs = {
        smooth: [model.impute(x, observed, noise, smooth=smooth) for x in (clips, changed)]
        for smooth in (True, False)
    }
    filtered, smoothed = pairs[False], pairs[True]
    assert torch.equal(filtered[0].x[:, :-1], filtered[1].x[:, :-1])
    assert ((smoothed[0].a - smoothed[1].a)[:, :-1] != 0).all()
    assert torch.equal(smoothed[0].x[:, -1], filtered[0].x[:, -1])


def test_without_noise_the_future_is_what_missing_frames_are_filled_with():
    model, (clips, _, _) = make(), data()
    given = 3
    still = Noise(*(torch.zeros_like(part) for part in model.draw_noise(B, T, generator())))
    prediction = model.predict(model.condition(clips.until(given)), T - given, still)
    observed = all_seen(clips)
    observed[:, given:] = False
    filled = model.impute(clips, observed, still)
    torch.testing.assert_close(prediction.x, filled.x[:, given:])
    torch.testing.assert_close(prediction.z, filled.z.mean[:, given:])


def test_futures_have_the_moments_that_the_kalman_filter_predicts():
    """With one set of matrices the future is normal, with mean and covariance in closed form."""
    model, (clips, _, _) = make(matrices=1), data(count=1)
    futures, given = 4_000, 4
    noise = model.draw_noise(futures, T, generator())
    fixed = model.condition(clips.until(given))
    noise = Noise(noise.a.clone(), noise.z)
    noise.a[:, :given] = 0  # of the given codes
    a = model.predict(fixed, T - given, noise).a
    observed = all_seen(clips)
    observed[:, given:] = False
    mean, _ = model.encode(clips.frames)
    known = model.dynamics.filter(mean, observed, clips.actions)
    expected = kalman.transform(known.predicted, known.C, model.config.emission_variance)
    for t in range(T - given):
        truth = kalman.Gaussian(expected.mean[0, given + t], expected.cov[0, given + t])
        spread = truth.cov.trace()
        # Four to five standard errors.
        assert (a[:, t].mean(dim=0) - truth.mean).norm() < 5 * (spread / futures) ** 0.5
        assert (torch.cov(a[:, t].T) - truth.cov).norm() < 5 * spread * (2 / futures) ** 0.5


@torch.no_grad()
def test_the_bound_is_the_log_likelihood_of_the_codes_less_a_divergence():
    """q(z) is the product of the posterior's marginals; its divergence has a closed form."""
    model, (clips, observed, _) = make(torch.float64), data(torch.float64)
    draws, seen = 100, observed[:1].expand(100, T)
    many = Clips(*(part[:1].expand(draws, *part.shape[1:]) for part in clips))
    bounds, random = [], generator()
    for _ in range(20):
        z = torch.randn(draws, T, 4, dtype=torch.float64, generator=random)
        loss = model.elbo(many, seen, Noise(z.new_zeros(draws, T, 2), z))
        bounds.append(loss.log_p_a + loss.log_p_z_0 + loss.log_p_z - loss.log_q_z)
    bounds = torch.stack(bounds) * observed[0].sum()  # of a video, not of a frame

    a = model.encode(clips.frames[:1])[0]
    known = model.dynamics.filter(a, observed[:1], clips.actions[:1])
    mean, cov = joint(*(part[0].numpy() for part in (known.A, known.C, known.drift)))
    _, z_cov, log_likelihood = conditioned(mean, cov, a[0].numpy(), observed[0].numpy())
    marginals = np.kron(np.eye(T), np.ones((4, 4))) * z_cov
    divergence = np.trace(np.linalg.solve(z_cov, marginals)) - len(z_cov)
    divergence += np.linalg.slogdet(z_cov)[1] - np.linalg.slogdet(marginals)[1]
    error = bounds.std() / 20**0.5
    assert abs(bounds.mean() - (log_likelihood - divergence / 2)) < 4 * error
    assert divergence / 2 > 20 * error  # so that its half, or none, would be seen


def test_samples_of_a_clip_stand_together_and_do_not_depend_on_those_that_follow():
    model, (clips, _, _) = make(), data()
    noise = model.draw_noise(3 * B, T, generator())
    given = model.condition(clips.until(3))
    x = model.predict(given, T - 3, noise).x
    assert x.shape == (3 * B, T - 3, 1, 16, 16)
    second = Clips(*(part[1:] for part in clips)).until(3)
    alone = model.predict(model.condition(second), T - 3, Noise(*(part[3:] for part in noise)))
    torch.testing.assert_close(x[3:], alone.x)
    shorter = model.predict(given, 1, Noise(*(part[:, :4] for part in noise)))
    torch.testing.assert_close(x[:, :1], shorter.x)


def test_actions_push_the_state():
    """The pushes of an action that B turns into a drift add up, as A is the identity at first."""
    torch.manual_seed(0)
    model = SIZES.build(VideoShape(1, 16, U))
    with torch.no_grad():
        model.dynamics.B.copy_(model.dynamics.B[:1].expand_as(model.dynamics.B))
    clips, observed, _ = data()
    known = model.dynamics.filter(torch.zeros(B, T, 2), observed & False, clips.actions)
    pushes = clips.actions[:, : T - 1].cumsum(dim=1) @ model.dynamics.B[0].T
    torch.testing.assert_close(known.predicted.mean[:, 1:], pushes)


def test_autocast_leaves_the_model_in_the_precision_of_its_weights():
    model, (clips, _, noise) = make(), data()
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(clips, noise)
        x = model.predict(model.condition(clips.until(2)), 1, noise).x
    assert x.dtype == torch.float32
    for terms in zip(low, model.loss(clips, noise), strict=True):
        assert torch.equal(*terms)


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (32, 3), (64, 1)])
def test_frames_of_any_power_of_two(size, channels):
    model = SIZES.build(VideoShape(channels, size))
    x = torch.zeros(1, 2, channels, size, size)
    noise = model.draw_noise(1, 3, generator())
    assert model.predict(model.condition(x), 1, noise).x.shape == (1, 1, channels, size, size)
    model.loss(x, model.draw_noise(1, 2, generator())).total.backward()


# Training.


def test_the_mixing_is_fixed_at_first_and_every_adam_begins_anew():
    model = make()
    assert model.objectives(10) == {"loss": ("fixed_mixing",)}
    assert model.objectives(11) == {"loss": ("all",)}
    groups = model.parameter_groups()
    first, everything = ({id(p) for p in groups[g]} for g in ("fixed_mixing", "all"))
    assert everything == {id(p) for p in model.parameters()}
    assert everything - first == {id(p) for p in model.dynamics.mixing.parameters()}


def short_run(**changes) -> Experiment:
    """Twenty steps on the ball in a box; the mixing is trained from step 13 on."""
    training = {"frames": 6, "batch_size": 2, "constant_steps": 5, "decay_steps": 15}
    training |= {"decay": "exponential", "decay_interval": 5, "final_lr": 0.5, "clip_norm": 150.0}
    training |= {"validation_frames": 8, "validation_videos": 1, "validation_samples": 2}
    entry = {
        "data": {"dataset": "box", "channels": 1, "size": 16, "test_videos": 1, "test_frames": 20},
        "model": {"name": "kvae", "nf": 2, "alpha_size": 4, "fixed_mixing_steps": 12},
        "training": training | {"device": "cpu"} | changes,
        "evaluation": {"metrics": ["psnr"], "conditioning_frames": 4},
    }
    return from_entry("short", entry)


def test_a_run_resumes_from_one_phase_into_the_other_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(simulated, "TRAINING_VIDEOS", 20)
    prepare(short_run().data, tmp_path, tmp_path / "prepared")
    videos = open_training(short_run().data, tmp_path / "prepared", torch.device("cpu"))
    whole = train(short_run(), videos, tmp_path / "whole")
    train(short_run(minutes=0.0), videos, tmp_path / "cut")  # stops at step 10
    resumed = train(short_run(), videos, tmp_path / "cut")
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_short_training_lowers_the_loss():
    model = make(actions=0, size=16)
    x = torch.zeros(8, T, 1, 16, 16)
    for b in range(8):
        for t in range(T):
            x[b, t, 0, 2 * t : 2 * t + 4, b : b + 4] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    random, losses = generator(), []
    for step in range(30):
        loss = model.loss(x, model.draw_randomness(8, T, step + 1, random))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.7 * losses[0]


def test_masks_and_noise_that_do_not_fit_are_refused():
    model, (clips, observed, noise) = make(), data()
    with pytest.raises(
        ValueError, match=r"observed is torch.float32 \(2, 6\), expected torch.bool"
    ):
        model.impute(clips, observed.float(), noise)
    with pytest.raises(ValueError, match=r"observed is torch.bool \(2, 5\), .* \(2, 6\)"):
        model.elbo(clips, observed[:, :5], noise)
    with pytest.raises(ValueError, match=r"expected that of draw_noise\(2, 6\)"):
        model.impute(clips, observed, Noise(noise.a, noise.z[:1]))


@pytest.mark.parametrize("key", ["emission_variance", "transition_variance", "initial_variance"])
def test_variances_of_zero_are_refused(key):
    with pytest.raises(ConfigError, match=f"{key} is 0; expected a variance above 0"):
        replace(SIZES, **{key: 0.0})
