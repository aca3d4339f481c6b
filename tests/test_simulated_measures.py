"""Linear probes and wrong pixels, against closed forms."""

import numpy as np
import pytest
import torch

from srvp.evaluation import simulated


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_a_linear_map_is_found_exactly():
    states, weights = random(4, 7, 3), random(3, 2, seed=1)
    probe, score = simulated.held_out(states, states @ weights + [5, -1], fitted=2)
    np.testing.assert_allclose(probe.weights, weights, atol=1e-12)
    np.testing.assert_allclose(probe.offset, [5, -1], atol=1e-12)
    np.testing.assert_allclose(score, 1, atol=1e-12)


def test_on_its_own_videos_a_probe_of_one_number_explains_the_squared_correlation():
    states, noise = random(5, 20, 1), random(5, 20, 1, seed=1)
    values = 2 * states + noise
    score = simulated.r_squared(values, simulated.fit(states, values).read(states))
    correlation = np.corrcoef(states.ravel(), values.ravel())[0, 1]
    np.testing.assert_allclose(score, [correlation**2])


def test_the_mean_explains_nothing_and_what_is_worse_less():
    values = random(3, 10, 2)
    mean = np.broadcast_to(values.mean(axis=(0, 1)), values.shape)
    np.testing.assert_allclose(simulated.r_squared(values, mean), 0, atol=1e-12)
    assert (simulated.r_squared(values, -values) < 0).all()


def test_held_out_videos_do_not_move_the_probe():
    states, values = random(6, 5, 3), random(6, 5, 2, seed=1)
    probe, score = simulated.held_out(states, values, fitted=4)
    values[4:] += random(2, 5, 2, seed=2)
    again, other = simulated.held_out(states, values, fitted=4)
    assert np.array_equal(probe.weights, again.weights)
    assert (score != other).all()


@pytest.mark.parametrize("repeated", [1, 3])
def test_states_that_repeat_each_other_read_the_same(repeated):
    """Least squares has many solutions then: the smallest neither overflows nor changes."""
    states, values = random(6, 5, 3), random(6, 5, 2, seed=1)
    wide = np.concatenate(repeated * [states], axis=-1)
    _, expected = simulated.held_out(states, values, fitted=4)
    np.testing.assert_allclose(simulated.held_out(wide, values, fitted=4)[1], expected)


def test_wrong_pixels_are_counted_after_rounding():
    truth = torch.zeros(2, 3, 1, 4, 4)
    x = truth.clone()
    x[0, 1, 0, 2, :3] = torch.tensor([0.4, 0.6, 1.0])
    expected = torch.zeros(2, 3)
    expected[0, 1] = 2 / 16
    assert torch.equal(simulated.wrong_pixels(x, truth), expected)
    assert torch.equal(simulated.wrong_pixels(x, truth[:1, :1]), expected)
