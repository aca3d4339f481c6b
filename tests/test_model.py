from dataclasses import replace

import pytest
import torch
from conftest import ROOT, generator
from torch.distributions import Normal

from srvp.experiment import ConfigError, load_experiment
from srvp.models.interface import VideoShape
from srvp.models.srvp import SRVP, Config, Noise
from srvp.store import build_model

B, T = 2, 6
VARIANTS = [("dcgan", False, 1), ("dcgan", True, 2), ("vgg", True, 3)]


def make(
    architecture="dcgan", skip=False, euler_steps=1, channels=1, nz=4, transition="residual"
) -> SRVP:
    config = Config(
        architecture=architecture,
        skip_connections=skip,
        nf=2,
        nhx=8,
        ny=5,
        nz=nz,
        transition=transition,
        inference_frames=3,
        nh_inf=7,
        nlayers_inf=3,
        nh_res=9,
        nlayers_res=4,
        res_gain=1.2,
        euler_steps=euler_steps,
        obs_scale=0.5,
        beta_y=3.0,
        beta_z=2.0,
        l2_res=0.5,
    )
    model = build_model(config, VideoShape(channels), seed=0)
    # Settle the running statistics: fresh ones map every frame to nearly the same vector.
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    x = torch.rand(B, T, channels, 64, 64, generator=generator(2))
    with torch.no_grad():
        model(x, model.draw_randomness(B, T, 1, generator()))
    return model


@pytest.fixture
def x():
    return torch.rand(B, T, 1, 64, 64, generator=generator(1))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smmnist", 10_678_284),
        ("dmmnist", 10_678_284),
        ("kth", 23_877_854),
        ("human36m", 23_880_158),
        ("bair", 23_847_390),
    ],
)
def test_published_settings_have_the_published_number_of_parameters(name, parameters):
    experiment = load_experiment(ROOT / "params.yaml", name)
    with torch.device("meta"):  # counts, without drawing 20 million weights
        model = experiment.model.build(experiment.shape)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("architecture", "skip", "euler_steps"), VARIANTS)
def test_shapes_of_a_training_step(architecture, skip, euler_steps, x):
    model = make(architecture, skip, euler_steps)
    out = model(x, model.draw_randomness(B, T, 1, generator()))
    assert out.x.shape == x.shape
    assert out.y.shape == (B, T, 5)
    assert out.q_y.mean.shape == (B, 5)
    assert out.q_z.mean.shape == out.p_z.mean.shape == (B, T - 1, 4)
    assert out.residuals.shape == (B, (T - 1) * euler_steps, 5)


@pytest.mark.parametrize(("architecture", "skip", "euler_steps"), VARIANTS)
def test_gradients_reach_every_parameter(architecture, skip, euler_steps, x):
    model = make(architecture, skip, euler_steps)
    model.loss(x, model.draw_randomness(B, T, 1, generator())).total.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_step_is_a_function_of_its_draws(x):
    model = make(skip=True)
    draws = model.draw_randomness(B, T, 1, generator())
    assert model.loss(x, draws) == model.loss(x, draws)
    assert model.loss(x, draws) != model.loss(x, model.draw_randomness(B, T, 1, generator(5)))


def test_draws_pick_distinct_content_frames():
    draws = make().draw_randomness(200, T, 1, generator())
    assert all(len(set(row)) == 3 for row in draws.content_frames.tolist())
    assert set(draws.content_frames.flatten().tolist()) == set(range(T))
    assert set(draws.skip_frame.tolist()) == set(range(T))


def test_content_does_not_depend_on_the_order_of_frames(x):
    model = make().eval()
    forward = model.infer(x, content_frames=torch.tensor([[0, 2, 5]] * B)).w
    shuffled = model.infer(x, content_frames=torch.tensor([[5, 0, 2]] * B)).w
    torch.testing.assert_close(forward, shuffled, atol=1e-6, rtol=0)  # a sum in another order


def test_by_default_content_and_skips_come_from_the_last_frames(x):
    model = make(skip=True).eval()
    default = model.infer(x)
    last = torch.tensor([[T - 3, T - 2, T - 1]] * B)
    explicit = model.infer(x, content_frames=last, skip_frame=torch.tensor([T - 1] * B))
    torch.testing.assert_close(default.w, explicit.w)
    for a, b in zip(default.skips, explicit.skips, strict=True):
        torch.testing.assert_close(a, b)


def test_the_posterior_of_z_does_not_see_later_frames(x):
    model = make().eval()
    later = x.clone()
    later[:, 4:] = 0
    q, q_later = model.infer(x).q_z, model.infer(later).q_z
    torch.testing.assert_close(q.mean[:, :3], q_later.mean[:, :3])  # z of frames 2, 3, 4
    assert not torch.allclose(q.mean[:, 3], q_later.mean[:, 3])


def test_zero_dynamics_keep_the_state(x):
    model = make(euler_steps=2)
    for p in model.transition.f.parameters():
        p.data.zero_()
    out = model(x, model.draw_randomness(B, T, 1, generator()))
    assert (out.y == out.y[:, :1]).all()
    assert model.loss(x, model.draw_randomness(B, T, 1, generator())).residual == 0


def test_residuals_add_up_to_the_states(x):
    model = make(euler_steps=3)
    out = model(x, model.draw_randomness(B, T, 1, generator()))
    moved = out.residuals.unflatten(1, (T - 1, 3)).sum(dim=2)
    torch.testing.assert_close(out.y[:, 1:] - out.y[:, :-1], moved)


@pytest.mark.parametrize("euler_steps", [1, 2, 3, 5, 7, 10])
def test_any_number_of_euler_steps_returns_every_frame(euler_steps, x):
    model = make().eval()
    given = model.condition(x)
    noise = model.draw_noise(B, T + 20, generator())
    whole = model.predict(given, 20, noise, euler_steps=euler_steps)
    assert whole.x.shape == (B, 20, 1, 64, 64)
    between = model.predict(given, 20, noise, euler_steps=euler_steps, every_step=True)
    assert between.x.shape == (B, 20 * euler_steps, 1, 64, 64)
    assert torch.equal(between.y[:, euler_steps - 1 :: euler_steps], whole.y)


def test_states_converge_at_first_order_as_the_step_shrinks():
    """dy/dt = -y from 1: Euler with n steps gives (1 - 1/n)^n, whose error falls as 1/n."""
    model = make()

    class Decay(torch.nn.Module):
        def forward(self, yz):
            return -yz[..., :5]

    model.transition.f = Decay()
    errors = []
    for n in (8, 16, 32):
        y, _ = model.rollout(torch.ones(1, 5), torch.zeros(1, 1, 4), n)
        torch.testing.assert_close(y[:, 1], torch.full((1, 5), (1 - 1 / n) ** n))
        errors.append((y[0, 1, 0] - torch.tensor(-1.0).exp()).abs())
    assert 1.9 < errors[0] / errors[1] < 2.1 and 1.9 < errors[1] / errors[2] < 2.1


def test_loss_terms_against_their_definitions(x):
    model = make(euler_steps=2)
    draws = model.draw_randomness(B, T, 1, generator())
    out, loss = model(x, draws), model.loss(x, draws)
    nll = (((x - out.x) / 0.5) ** 2 / 2 + torch.tensor(0.5).log() + 0.9189385332).sum() / B
    torch.testing.assert_close(loss.nll, nll)
    q, p = out.q_z, out.p_z
    torch.testing.assert_close(p.mean, model.prior(out.y[:, :-1]).mean)  # of the states before
    ratio = (q.stddev / p.stddev) ** 2
    kl_z = ((ratio + ((q.mean - p.mean) / p.stddev) ** 2 - 1 - ratio.log()) / 2).sum() / B
    torch.testing.assert_close(loss.kl_z, kl_z)
    torch.testing.assert_close(loss.residual, out.residuals.square().sum(-1).sqrt().sum() / B)
    y = out.q_y
    kl_y = (y.variance + y.mean**2 - 1 - y.variance.log()).sum() / 2 / B
    torch.testing.assert_close(loss.kl_y, kl_y)
    total = loss.nll + 3 * loss.kl_y + 2 * loss.kl_z + 0.5 * loss.residual
    torch.testing.assert_close(loss.total, total)


def test_kl_is_zero_where_posterior_and_prior_agree(x, monkeypatch):
    model = make()
    for network in (model.q_y, model.q_z, model.p_z):
        last = network[-1] if isinstance(network, torch.nn.Sequential) else network
        last.weight.data.zero_()
        last.bias.data.zero_()
        last.bias.data[len(last.bias) // 2 :] = torch.tensor(1.0).expm1().log()  # softplus = 1
    loss = model.loss(x, model.draw_randomness(B, T, 1, generator()))
    assert abs(loss.kl_y) < 1e-5 and abs(loss.kl_z) < 1e-5  # rounding of the standard deviations


def test_the_loss_does_not_depend_on_the_batch_it_is_averaged_over(x):
    model = make().eval()  # batch norm in training mode would mix the videos
    draws = model.draw_randomness(B, T, 1, generator())
    parts = [
        model.loss(
            x[i : i + 1],
            draws._replace(
                noise=Noise(*(n[i : i + 1] for n in draws.noise)),
                content_frames=draws.content_frames[i : i + 1],
                skip_frame=draws.skip_frame[i : i + 1],
            ),
        )
        for i in range(B)
    ]
    whole = model.loss(x, draws)
    for name in whole._fields:
        mean = sum(getattr(p, name) for p in parts) / B
        torch.testing.assert_close(getattr(whole, name), mean, rtol=1e-5, atol=1e-4)


def test_samples_of_a_video_stand_together_and_equal_single_ones(x):
    model = make(skip=True).eval()
    given = model.condition(x)
    noise = model.draw_noise(B * 3, T + 4, generator())
    together = model.predict(given, 4, noise)
    for video in range(B):
        alone = model.condition(x[video : video + 1])
        for sample in range(3):
            row = video * 3 + sample
            single = model.predict(alone, 4, Noise(*(n[row : row + 1] for n in noise)))
            torch.testing.assert_close(together.x[row], single.x[0], atol=1e-6, rtol=0)


def test_a_longer_prediction_begins_with_the_shorter_one(x):
    model = make().eval()
    given, noise = model.condition(x), model.draw_noise(B, T + 9, generator())
    torch.testing.assert_close(
        model.predict(given, 9, noise).x[:, :4], model.predict(given, 4, noise).x
    )


def test_prediction_follows_the_prior_where_no_frame_is_given(x):
    """With a prior of known mean and no spread, the predicted states are a plain rollout."""
    model = make().eval()
    model.prior = lambda y: Normal(torch.full((len(y), 4), 0.3), torch.full((len(y), 4), 1e-12))
    given, noise = model.condition(x), model.draw_noise(B, T + 5, generator())
    predicted = model.predict(given, 5, noise).y
    z = given.state.q_z.mean + given.state.q_z.stddev * noise.z[:, : T - 1]
    z = torch.cat([z, torch.full((B, 5, 4), 0.3)], dim=1)
    y, _ = model.rollout(given.state.q_y.mean + given.state.q_y.stddev * noise.y, z, 1)
    torch.testing.assert_close(predicted, y[:, T:])


@pytest.mark.parametrize("asked", [{}, {"euler_steps": 3}])
def test_prediction_step_by_step(x, asked):
    """z_t takes the noise of frame t. Given frames take the training's steps, whatever is asked."""
    model = make(euler_steps=2).eval()
    given, noise = model.condition(x), model.draw_noise(B, T + 3, generator())
    q_y, q_z, *_ = given.state
    y = q_y.mean + q_y.stddev * noise.y
    for t in range(T + 2):
        p = model.prior(y)
        mean, std = (q_z.mean[:, t], q_z.stddev[:, t]) if t < T - 1 else (p.mean, p.stddev)
        z = mean + std * noise.z[:, t]
        steps = 2 if t < T - 1 else asked.get("euler_steps", 2)
        for _ in range(steps):
            y = y + model.transition.f(torch.cat([y, z], dim=-1)) / steps
        if t >= T - 1:
            predicted = model.predict(given, 3, noise, **asked).y[:, t - T + 1]
            torch.testing.assert_close(predicted, y, atol=1e-5, rtol=1e-4)


def test_content_is_a_map_of_the_sum_over_frames(x):
    model = make().eval()
    h, _ = model.encode(x)
    summed = sum(model.w_frame(h[:, t]) for t in range(3))
    torch.testing.assert_close(model.infer_content(h[:, :3]), model.w_video(summed))


def test_too_few_given_frames_are_refused(x):
    with pytest.raises(ValueError, match="2 frames were given, but the model needs 3"):
        make().condition(x[:, :2])


def test_building_a_model_depends_on_its_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b = make(), make()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    other = build_model(replace(a.config), VideoShape(1), seed=9)
    assert not torch.equal(other.q_z.weight, a.q_z.weight)


# The paper's ablations.

ABLATIONS = [("mlp", 4), ("gru", 4), ("residual", 0), ("mlp", 0)]


@pytest.mark.parametrize(("transition", "nz"), ABLATIONS)
def test_ablations_train_and_predict(transition, nz, x):
    model = make(transition=transition, nz=nz)
    loss = model.loss(x, model.draw_randomness(B, T, 1, generator()))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    prediction = model.predict(model.condition(x), 3, model.draw_noise(B, T + 3, generator()))
    assert prediction.x.shape == (B, 3, 1, 64, 64)


@pytest.mark.parametrize("transition", ["mlp", "gru"])
def test_mlp_and_gru_have_no_residual_and_no_step_size(transition, x):
    model = make(transition=transition)
    draws = model.draw_randomness(B, T, 1, generator())
    assert model(x, draws).residuals.numel() == 0
    assert model.loss(x, draws).residual == 0
    noise = model.draw_noise(B, T + 3, generator())
    with pytest.raises(ValueError, match="options.euler_steps is not a known key"):
        model.predict(model.condition(x), 3, noise, euler_steps=2)
    with pytest.raises(
        ConfigError, match=f"euler_steps is 2; expected 1 for the transition {transition}"
    ):
        make(transition=transition, euler_steps=2)


def test_without_z_all_samples_are_equal_and_its_kl_is_zero(x):
    model = make(nz=0).eval()
    given = model.condition(x)
    samples = model.predict(given, 5, model.draw_noise(B * 3, T + 5, generator())).x
    for other in (1, 2):  # 1e-6: rows of a batch may round differently
        torch.testing.assert_close(samples[0], samples[other], atol=1e-6, rtol=0)
    assert model.loss(x, model.draw_randomness(B, T, 1, generator())).kl_z == 0


def test_gru_keeps_the_state_where_its_update_gate_is_shut():
    """h' = (1 - u) n + u h: with u = 1, the hidden state, which is y, stays."""
    model = make(transition="gru")
    model.transition.cell.weight_ih.data.zero_()
    model.transition.cell.weight_hh.data.zero_()
    model.transition.cell.bias_ih.data[5:10] = 100.0  # reset, update, new: 5 entries each
    y, _ = model.rollout(torch.full((1, 5), 0.3), torch.randn(1, 4, 4), 1)
    torch.testing.assert_close(y, torch.full((1, 5, 5), 0.3))
