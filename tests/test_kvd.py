"""KVD: an independent computation, no bias, and its interval."""

import numpy as np
import pytest

from srvp.metrics.kvd import kvd, of_samples


def sets(seed, count, shift=0.0, width=8):
    random = np.random.RandomState(seed)
    return random.normal(size=(count, width)) + shift, random.normal(size=(count, width))


def plain(x, y):
    """The unbiased discrepancy, pair by pair."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n = range(len(x))
    within = [np.mean([kernel(s[i], s[j]) for i in n for j in n if i != j]) for s in (x, y)]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kvd_is_the_discrepancy_pair_by_pair():
    x, y = sets(0, 6, shift=0.5)
    found = kvd(x, y, frames=9)
    assert found.value == pytest.approx(plain(x, y), rel=1e-10)
    assert (found.videos, found.frames) == (6, 9) and np.isnan(found.ci95)  # of too few


def test_the_interval_is_that_of_the_jackknife():
    """41 pairs in groups of 3 and of 2; the factor of Student's t is rounded to four digits."""
    x, y = sets(0, 41, shift=0.5)
    left_out = [plain(*(v[np.arange(41) % 20 != group] for v in (x, y))) for group in range(20)]
    error = np.sqrt(19 / 20 * ((left_out - np.mean(left_out)) ** 2).sum())
    assert kvd(x, y, frames=9).ci95 == pytest.approx(2.093 * error, rel=1e-3)


def test_equal_distributions_have_no_distance_within_the_interval_whatever_the_count():
    """95 % of 200 intervals hold 0, to three standard errors; and there is no bias."""
    for count in (40, 100):
        found = [kvd(*sets(seed, count), frames=9) for seed in range(200)]
        inside = np.mean([abs(d.value) < d.ci95 for d in found])
        assert inside == pytest.approx(0.95, abs=0.05)
        values = np.array([d.value for d in found])
        assert abs(values.mean()) < 3 * values.std() / np.sqrt(200)
    shifted = kvd(*sets(0, 100, shift=0.6), frames=9)
    assert shifted.value > shifted.ci95


def test_every_sample_of_all_videos_has_a_kvd():
    random = np.random.RandomState(0)
    generated, real = random.normal(size=(40, 3, 8)), random.normal(size=(40, 8))
    several = of_samples(generated, real, frames=9)
    assert several == tuple(kvd(generated[:, i], real, 9) for i in range(3))


def test_kvd_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="4 generated and 3 real videos"):
        kvd(np.zeros((4, 8)), np.zeros((3, 8)), frames=9)
