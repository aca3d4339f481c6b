"""SRVP with layers that move: laws of the layers, and of the model that moves them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, generator

from srvp.data.sets.moving_mnist import _trajectory
from srvp.experiment import ConfigError, load_experiment
from srvp.models import latent
from srvp.models.interface import Clips, VideoShape
from srvp.models.parts import layers
from srvp.models.parts.motion import FASTEST, SPEED, MovingTransition, lines
from srvp.store import build_model

CONFIG = load_experiment(ROOT / "params.yaml", "warp_tiny").model
T = 8


def scene(frames=T, start=((18.0, 18.0), (42.0, 40.0)), speed=((1.0, 2.0), (-1.0, 0.0)), size=64):
    """A ring and a cross of 20 pixels that move: frames `(1, T, 1, size, size)`, and places."""
    grid = torch.linspace(-1, 1, 20)
    row, column = grid[:, None], grid
    ring = (1 - 4 * ((row.square() + column.square()).sqrt() - 0.7).abs()).clamp(0)
    cross = (1 - 4 * torch.minimum(row.abs(), column.abs())).clamp(0)
    contents = torch.stack([ring, 0.8 * cross])[None, :, None]
    time = torch.arange(frames)[:, None, None]
    places = (torch.tensor(start) + time * torch.tensor(speed))[None]
    return layers.paste(contents, places, size), places


def make(**changes):
    """A model that knows nothing of forces: without them, layers keep their velocities."""
    config = replace(CONFIG, rounds=12, **changes)
    model = build_model(config, VideoShape(1), seed=0).eval()
    with torch.no_grad():
        for last in (model.transition.f[-1], model.q_y[-1], model.q_z, model.p_z[-1]):
            last.weight.zero_()
            last.bias.zero_()
    return model


def mean_square(difference):
    return difference.square().mean()


def silent(model, futures, frames):
    """Noise that leaves every latent variable at its mean."""
    noise = model.draw_noise(futures, frames, generator())
    return type(noise)(*(torch.zeros_like(field) for field in noise))


def test_what_is_pasted_at_whole_pixels_is_cut_again():
    content = torch.rand(2, 3, 1, 6, 6, generator=generator())
    places = torch.tensor([[10.5, 20.5], [30.5, 12.5], [50.5, 40.5]]).expand(2, 4, 3, 2)
    frames = layers.paste(content, places, 64)
    torch.testing.assert_close(
        layers.cut(frames, places, 6), content[:, None].expand(-1, 4, -1, -1, -1, -1)
    )
    torch.testing.assert_close(frames.sum(), 4 * content.sum())


def test_layers_between_pixels_are_interpolated():
    content = torch.ones(1, 1, 1, 1, 1)
    frame = layers.paste(content, torch.tensor([[[[2.25, 3.0]]]]), 6)[0, 0, 0]
    assert frame[2:4, 3].tolist() == [0.75, 0.25] and frame.sum() == 1


@pytest.mark.parametrize("size", [64, 128])
def test_two_spots_are_found_where_they_are(size):
    places = torch.tensor([[0.25, 0.3], [0.7, 0.55]]) * size
    pixel = torch.arange(size)
    spread = size / 12
    near = (-(pixel - places[..., None]).square() / (2 * spread**2)).exp()
    found = layers.find(torch.einsum("ki,kj->ij", near[:, 0], near[:, 1])[None], 2, spread)[0]
    found = found[found[:, 0].argsort()]
    # The cells of so smooth a picture blur it, but move nothing; tails are cut off by the frame.
    torch.testing.assert_close(found, places, rtol=0, atol=size / 64)


def test_an_empty_frame_has_its_layers_in_the_middle():
    assert layers.find(torch.zeros(1, 64, 64), 1, 5.0)[0, 0].tolist() == [31.5, 31.5]


def test_layers_keep_their_order_when_paths_cross():
    _, places = scene(12, start=((10.0, 10.0), (10.0, 50.0)), speed=((1.0, 4.0), (1.0, -4.0)))
    mixed = places.clone()
    mixed[:, 1::2] = places[:, 1::2].flip(2)
    linked = layers.link(mixed)
    assert torch.equal(linked, places) or torch.equal(linked, places.flip(2))


def test_layers_that_overlap_are_separated():
    """From places that are two pixels wrong; a content and its place may share an offset."""
    x, places = scene(T, start=((20.0, 20.0), (30.0, 34.0)), speed=((1.0, 1.0), (-1.0, -1.0)))
    wrong = places + torch.randn(places.shape, generator=generator(1))
    contents, found = layers.separate(x, wrong, 28, 40)
    offset = (found - places).mean(dim=1, keepdim=True)
    torch.testing.assert_close(found - offset, places, rtol=0, atol=0.15)
    assert mean_square(layers.paste(contents, found, 64) - x) < 1e-3  # of 0.028
    later, at = scene(2 * T, start=((20.0, 20.0), (30.0, 34.0)), speed=((1.0, 1.0), (-1.0, -1.0)))
    guesses = at[:, T:].flip(2) + offset.flip(2) + 1  # of the wrong layers
    followed = layers.follow(later[:, T:], guesses, found[:, -2:], contents, 10)
    torch.testing.assert_close(followed - offset, at[:, T:], rtol=0, atol=0.2)


def test_layers_do_not_depend_on_other_clips():
    """Beside a clip that is darker than its background."""
    x, places = scene(T)
    darker = x - torch.rand(x.shape, generator=generator(2))
    alone = layers.separate(x, places, 28, 12)
    beside = layers.separate(torch.cat([x, darker]), places.expand(2, -1, -1, -1), 28, 12)
    for one, first in zip(alone, beside, strict=True):
        torch.testing.assert_close(first[:1], one, rtol=0, atol=1e-5)


def test_layers_that_jump_are_found_again_whatever_their_order():
    """Two clips, of which one has no jump: what is found may not get into the other."""
    x, places = scene(T)
    contents, found = layers.separate(x, places, 28, 12)
    contents, before = contents.expand(2, -1, -1, -1, -1), found[:, -2:].expand(2, -1, -1, -1)
    speed = found[:, -1] - found[:, -2]
    on = found[:, -1] + speed
    at = torch.stack([on, on + torch.tensor([[-9.0, 8.0], [7.0, -9.0]])])  # (2, 1, K, 2)
    later = layers.paste(contents, at, 64)
    followed = layers.follow(later, at.flip(2) + 0.5, before, contents, 6)
    torch.testing.assert_close(followed, at, rtol=0, atol=0.05)


def test_without_forces_layers_go_on_as_they_moved():
    model, (x, _) = make(), scene(T)
    given = model.condition(x[:, :5])
    future = model.predict(given, T - 5, silent(model, 1, T)).x
    assert mean_square(future - x[:, 5:]) < 1e-4  # places between pixels blur
    still = model.decode(given.state.w, model.predict(given, 1, silent(model, 1, 6)).y)
    assert mean_square(still - x[:, 5:6]) < 1e-4


def test_without_motion_the_last_given_frame_stays():
    model, (x, _) = make(), scene(5, speed=((0.0, 0.0), (0.0, 0.0)))
    future = model.predict(model.condition(x), 6, silent(model, 1, 11)).x
    assert mean_square(future - x[:, -1:]) < 1e-4


def test_a_translated_video_has_a_translated_future():
    model, (x, _) = make(), scene(5)
    moved = torch.roll(x, (4, 8), dims=(-2, -1))  # a cell, two cells; nothing passes the border
    futures = [model.predict(model.condition(v), 3, silent(model, 1, 8)).x for v in (x, moved)]
    assert mean_square(torch.roll(futures[0], (4, 8), dims=(-2, -1)) - futures[1]) < 1e-4


def test_equal_content_and_state_give_equal_frames():
    model, (x, _) = build_model(CONFIG, VideoShape(1), seed=0).eval(), scene(5)
    given = model.infer(x)
    y, _ = latent.mean_states(model, given)
    frames = model.decode(given.w, torch.cat([y, y.flip(1)], dim=1))
    torch.testing.assert_close(frames[:, :5], frames[:, 5:].flip(1), rtol=0, atol=1e-6)


def test_a_doubled_frame_rate_keeps_the_frames_at_whole_times():
    model, (x, _) = build_model(CONFIG, VideoShape(1), seed=0).eval(), scene(5)
    given, noise = model.condition(x), model.draw_noise(3, 9, generator())
    whole = model.predict(given, 4, noise, euler_steps=2).x
    twice = latent.predict_at_rate(model, given, 4, noise, rate=2)
    torch.testing.assert_close(twice[:, 1::2], whole, rtol=0, atol=1e-6)
    model, steady = make(), silent(make(), 1, 9)
    between = latent.predict_at_rate(model, model.condition(x), 4, steady, rate=2)
    once = model.predict(model.condition(x), 4, steady).x
    torch.testing.assert_close(between[:, 1::2], once, rtol=0, atol=1e-5)  # uniform motion


def test_content_is_exchanged_between_videos():
    model = make()
    x, _ = scene(5)
    other, _ = scene(5, speed=((2.0, 1.0), (-2.0, -1.0)))
    exchanged = latent.exchange_content(model, model.infer(x * 0.5), model.infer(other))
    assert mean_square(exchanged - other * 0.5) < 1e-4


def test_some_frames_tell_the_likelihood_of_all_on_average():
    model, (x, _) = build_model(CONFIG, VideoShape(1), seed=0).eval(), scene(T)
    draws = model.draw_randomness(1, T, 1, generator())

    def nll(frames):
        return model.loss(x, draws._replace(decoded=torch.tensor([frames]))).nll

    each = torch.stack([nll([t]) for t in range(T)])
    torch.testing.assert_close(each.mean(), nll(list(range(T))), rtol=1e-5, atol=0)


def motion():
    """Layers without forces."""
    f = torch.nn.Sequential(torch.nn.Linear(20, 14)).requires_grad_(False)
    f[0].weight.zero_(), f[0].bias.zero_()
    return MovingTransition(f, 2, wall=1.8)


def start(place, velocity):
    """A state in which nothing collided before."""
    return torch.tensor([[*place, *velocity, 0, 0, 0, 0, 0.3, -0.2]])


def test_away_from_walls_layers_move_uniformly_whatever_z_is():
    y, transition = start((0.0, 0.5, -0.5, 0.0), (0.4, 0.0, -0.8, 1.2)), motion()
    states, residuals = transition(y, torch.full((1, 6), 9.0), 2)
    before, after = transition.split(y), transition.split(states[:, -1])
    uniform = before.place + SPEED * before.velocity
    torch.testing.assert_close(after.place, uniform, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.velocity, before.velocity, rtol=0, atol=1e-6)
    assert after.hit.max() < 1e-6
    assert torch.equal(after.rest, before.rest) and not residuals.any()


def test_states_are_split_and_joined():
    y, transition = torch.randn(3, 5, 14, generator=generator()), motion()
    assert torch.equal(transition.split(y).join(), y)


def drift(transition, y):
    """Move the layers for a frame in which z has no say."""
    return transition.drift(transition.begin(transition.split(y)), 1)


def test_walls_reflect_and_z_tells_the_new_velocity():
    y, transition = start((1.7, 0.0, 0.0, -1.6), (0.8, 0.4, 0.0, -1.2)), motion()
    reflected, left = drift(transition, y)
    # 0.2 and 0.3 coordinates a frame: the first layer is 0.1 outside after half a frame.
    expected = torch.tensor([[[1.7, 0.1], [0.0, -1.7]]])
    torch.testing.assert_close(reflected.place, expected, rtol=0, atol=1e-6)
    expected = torch.tensor([[[-0.8, 0.4], [0.0, 1.2]]])
    torch.testing.assert_close(reflected.velocity, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(left, torch.tensor([[[1 / 2], [1 / 3]]]), rtol=0, atol=1e-5)
    assert reflected.hit.min() > 0.9
    told = torch.tensor([[[-0.4, 1.0], [1.6, 0.8]]])
    after = transition.collide(reflected, left, told)
    torch.testing.assert_close(after.velocity, told, rtol=0, atol=0.2)


def test_no_z_makes_layers_faster_than_the_fastest():
    y, transition = start((1.7, 0.0, 0.0, -1.6), (0.8, 0.4, 0.0, -1.2)), motion()
    z = torch.tensor([[-30.0, 30.0, 30.0, 30.0, 0.0, 0.0]])
    velocity = transition.split(transition(y, z, 1)[0][:, -1]).velocity
    fastest = torch.tensor([[[-FASTEST, FASTEST], [FASTEST, FASTEST]]])
    torch.testing.assert_close(velocity, fastest, rtol=0, atol=0.2)


def test_layers_collide_at_a_wall_and_a_little_before_it_in_training():
    y, transition = start((1.7, 0.0, 0.0, 0.0), (0.2, 0.0, 0.0, 0.0)), motion()  # to 1.75 of 1.8
    hits = [drift(transition.train(training), y)[0].hit for training in (True, False)]
    assert hits[0][0, 0] > 0.9 and hits[1][0, 0] < 0.1


def test_a_doubled_rate_changes_no_collision():
    y, transition = start((1.75, 0.3, 0.2, -1.7), (0.8, 0.4, 0.1, -1.2)), motion()
    z = F.pad(drift(transition, y)[0].velocity.flatten(1), (0, 2))  # reflection alone
    once, twice = transition(y, z, 1)[0][:, -1], transition(y, z, 2)[0][:, -1]
    torch.testing.assert_close(once[:, :8], twice[:, :8], rtol=0, atol=0.02)


def test_velocities_told_from_places_lead_there():
    """On paths of Stochastic Moving MNIST, whose digits have new velocities after collisions."""
    random, transition = np.random.RandomState(0), motion()
    paths = [_trajectory(random, 12, deterministic=False) for _ in range(400)]
    pixels = torch.tensor(paths).unflatten(0, (-1, 2))[..., :2].transpose(1, 2)
    places = ((pixels.round() - 18) / 10).float()
    z = F.pad(transition.velocities(places), (0, 2))
    y = F.pad(transition.start(places).join(), (0, 2))
    for t in range(11):
        y = transition(y, z[:, t], 1)[0][:, -1]
    error = 10 * (transition.split(y).place - places[:, -1]).norm(dim=-1)
    # Pixels, after 11 frames with some 1.5 collisions, of places that are rounded to pixels.
    assert error.median() < 0.3 and (error > 3).float().mean() < 0.15


def test_layers_go_on_in_a_line_until_they_turn():
    path = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 3.0, 2.0])[None, :, None, None].expand(1, 7, 1, 2)
    last, frames = lines(path)
    assert frames.flatten().tolist() == [3, 3, 2, 1, 2, 1]
    assert last[0, :, 0, 0].tolist() == [3, 4, 4, 4, 2, 2]


def test_the_loss_is_the_same_whether_clips_are_prepared_before():
    model, (x, _) = build_model(CONFIG, VideoShape(1), seed=0).eval(), scene(T)
    draws = model.draw_randomness(1, T, 1, generator())
    assert torch.equal(model.loss(model.prepare(Clips(x)), draws).total, model.loss(x, draws).total)


@pytest.mark.parametrize("background", ["black", "median"])
def test_colour_videos_and_backgrounds(background):
    config = replace(CONFIG, background=background, appearance=True)
    model = build_model(config, VideoShape(3), seed=0)
    x = (0.3 * (background == "median") + scene(5)[0] * 0.7).expand(-1, -1, 3, -1, -1)
    model.loss(x, model.draw_randomness(1, 5, 1, generator())).total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        out = model.eval().predict(model.condition(x), 2, model.draw_noise(2, 7, generator())).x
    assert out.shape == (2, 2, 3, 64, 64) and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"ny": 11},
        {"nz": 3},
        {"inference_frames": 1},
        {"skip_connections": True},
        {"transition": "gru"},
    ],
)
def test_what_cannot_hold_the_layers_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        replace(CONFIG, **wrong)


def test_a_window_that_fills_the_frame_is_refused():
    with pytest.raises(ConfigError, match="window is 32, but frames have 28 pixels: expected less"):
        replace(CONFIG, window=32).build(VideoShape(1, 28))
