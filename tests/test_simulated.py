"""The simulated sets, against the laws of their physics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import generator
from scipy.special import ellipj, ellipk

from srvp.data import open_test, open_training, prepare
from srvp.data.config import DataConfig
from srvp.data.prepared import PreparedVideos
from srvp.data.sets import box, pendulum, simulated

SETS = {"box": box, "pendulum": pendulum}


def random(seed=0):
    return np.random.default_rng(seed)


def settings(name, **changes):
    keys = {"channels": 1, "test_videos": 3, "test_frames": 30, "size": 32, "seed": 7}
    return DataConfig(dataset=name, **{**keys, **changes})


@pytest.mark.parametrize("name", SETS)
def test_fewer_and_shorter_videos_are_the_first_of_more(name):
    more = SETS[name].simulate(random(), 5, 12)
    fewer = SETS[name].simulate(random(), 3, 7)
    for all_values, first in zip(more, fewer, strict=True):
        assert np.array_equal(all_values[:3, :7], first)
    assert not np.array_equal(SETS[name].simulate(random(1), 3, 7)[0], fewer[0])


@pytest.mark.parametrize("name", SETS)
def test_every_second_frame_at_twice_the_rate_is_one_at_the_rate(name):
    """Smaller steps of Runge and Kutta leave errors of 1e-6."""
    (where, speed), (finer, slower) = (
        SETS[name].simulate(random(), 5, frames, rate) for frames, rate in ((12, 1), (23, 2))
    )
    np.testing.assert_allclose(finer[:, ::2], where, atol=1e-5)
    per_frame = 2 if name == "box" else 1  # pixels per frame; the pendulum's are per second
    np.testing.assert_allclose(per_frame * slower[:, ::2], speed, atol=1e-5)


# The ball.


def test_a_ball_goes_where_small_steps_lead_it():
    """Steps of a thousandth of a frame, each wall turning the ball round where it is met."""
    positions, speeds = box.simulate(random(), 40, 30)
    position, speed = positions[:, 0].copy(), speeds[:, 0].copy()
    low, high = box.CENTRE - box.WALL + box.RADIUS, box.CENTRE + box.WALL - box.RADIUS
    for t in range(1, 30):
        for _ in range(1000):
            position += speed / 1000
            speed = np.where(position < low, abs(speed), speed)
            speed = np.where(position > high, -abs(speed), speed)
        # Each bounce, five on an axis at most, comes up to a step late: 0.006 pixels.
        assert abs(position - positions[:, t]).max() < 0.03


def test_a_ball_keeps_its_speed_and_stays_in_the_box():
    positions, speeds = box.simulate(random(), 500, 50)
    size = np.hypot(*speeds.T)
    assert np.allclose(size, size[:1])
    assert size.min() >= 2.0 and size.max() <= 3.0  # 10 to 15 per unit of time, 0.2 per frame
    assert positions.min() >= 5 and positions.max() <= 27
    assert positions.min() < 5.01 and positions.max() > 26.99  # the walls are reached


def test_a_ball_that_turns_round_goes_back():
    positions, speeds = box.simulate(random(), 20, 40)
    there = positions[:, -1:] - np.arange(40)[:, None] * speeds[:, -1:]
    back, _ = box.reflect(there, -speeds[:, -1:])
    np.testing.assert_allclose(back[:, ::-1], positions, atol=1e-9)


@pytest.mark.parametrize("size", [32, 64])
def test_frames_show_the_ball_where_it_is(size):
    (path,), _ = box.simulate(random(), 1, 50)
    frames = box.render(path, size)
    row, column = simulated.pixel_centres(size, box.UNITS)
    inside = np.maximum(abs(row - box.CENTRE), abs(column - box.CENTRE)) < box.WALL
    assert frames[:, ~inside].any(axis=0).mean() > 0.4  # the walls ...
    assert (frames[:, ~inside] == frames[0, ~inside]).all()  # ... which stay
    ball = frames & inside
    area = ball.sum(axis=(1, 2)) * (box.UNITS / size) ** 2
    np.testing.assert_allclose(area, math.pi * box.RADIUS**2, rtol=0.2)
    centres = [np.array([np.mean(x[f]) for x in np.broadcast_arrays(row, column)]) for f in ball]
    assert abs(np.array(centres) - path).max() < 0.4  # pixels are 1 or 1/2 wide


# The pendulum.


def energy(angles, velocities):
    return velocities**2 / 2 - pendulum.STIFFNESS * np.cos(angles)


def test_a_pendulum_keeps_its_energy():
    angles, velocities = pendulum.simulate(random(), 200, 100)
    values = energy(angles, velocities)
    assert abs(values - values[:, :1]).max() < 1e-5
    assert (values[:, 0] > pendulum.STIFFNESS).any()  # some go round, ...
    assert (values[:, 0] < pendulum.STIFFNESS).mean() > 0.5  # ... most swing


@pytest.mark.parametrize("widest", [0.1, 1.5, 3.0])
def test_a_pendulum_swings_as_jacobis_elliptic_functions_do(widest):
    """From rest at `widest`: sin(angle / 2) = k sn(K - omega t), k = sin(widest / 2)."""
    angles, velocities = pendulum.swing(np.array([[widest], [0.0]]), 100)
    k, omega = math.sin(widest / 2), pendulum.STIFFNESS**0.5
    sn, cn, _, _ = ellipj(ellipk(k**2) - omega * pendulum.FRAME_TIME * np.arange(100), k**2)
    np.testing.assert_allclose(angles[0], 2 * np.arcsin(k * sn), atol=1e-5)
    np.testing.assert_allclose(velocities[0], -2 * omega * k * cn, atol=1e-5)


def test_frames_show_the_weight_where_it_is():
    angles = np.linspace(-math.pi, math.pi, 16, endpoint=False)
    frames = pendulum.render(angles, 64)
    row, column = simulated.pixel_centres(64, pendulum.UNITS)
    weight_row = pendulum.CENTRE + pendulum.LENGTH * np.cos(angles)[:, None, None]
    weight_column = pendulum.CENTRE + pendulum.LENGTH * np.sin(angles)[:, None, None]
    distance = np.hypot(row - weight_row, column - weight_column)
    assert frames[distance <= pendulum.RADIUS].all()
    rod = frames & (distance > pendulum.RADIUS)
    length = pendulum.LENGTH - pendulum.RADIUS
    area = rod.sum(axis=(1, 2)) / 4
    np.testing.assert_allclose(area, 2 * pendulum.ROD * length, rtol=0.4)
    middle = [np.array([x[f].mean() for x in np.broadcast_arrays(row, column)]) for f in rod]
    direction = np.arctan2(*(np.array(middle) - pendulum.CENTRE).T[::-1])
    assert abs(np.angle(np.exp(1j * (direction - angles)))).max() < 0.1


# Prepared.


@pytest.fixture(scope="module", params=SETS)
def prepared(request, tmp_path_factory):
    """Both sets, of few training videos."""
    folder = tmp_path_factory.mktemp(request.param)
    config = settings(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, "TRAINING_VIDEOS", 40)
        prepare(config, folder, folder / "out")
    return config, folder / "out"


def test_a_prepared_set_holds_the_scenes_that_made_its_frames(prepared):
    config, folder = prepared
    videos = open_test(config, folder)
    assert videos.test_clips(range(3)).shape == (3, 30, 1, 32, 32)
    first, second = {
        "box": ("positions", "speeds"),
        "pendulum": ("angles", "angular_velocities"),
    }[config.dataset]
    scenes = videos.array(first)[:30]
    frames = SETS[config.dataset].render(scenes, 32)
    assert np.array_equal(videos.test_clips([0])[0, :, 0], 255 * frames.astype(np.uint8))
    assert len(videos.array(second)) == 90


def test_training_and_test_videos_differ_and_a_part_validates(prepared):
    config, folder = prepared
    training = PreparedVideos.open(folder / "train")
    assert (len(training.training), len(training.validation)) == (38, 2)
    assert set(training.lengths) == {20}
    test = open_test(config, folder)
    assert not np.array_equal(training.clip(0, 0, 20), test.clip(0, 0, 20))
    clips = open_training(config, folder, torch.device("cpu")).train.draw(2, 20, generator())
    assert clips.frames.unique().tolist() == [0.0, 1.0]


def test_a_frame_step_leaves_frames_out(prepared, tmp_path, monkeypatch):
    config, folder = prepared
    monkeypatch.setattr(simulated, "TRAINING_VIDEOS", 2)
    coarse = replace(config, frame_step=3, test_frames=10)
    prepare(coarse, tmp_path, tmp_path / "out")
    clip = open_test(coarse, tmp_path / "out").test_clips([0])[0]
    assert np.array_equal(clip, open_test(config, folder).test_clips([0])[0, :30:3])
    assert set(PreparedVideos.open(tmp_path / "out" / "train").lengths) == {58}
