"""Fréchet distances through SRVP: the numbers of the package `srvp-fd`, and laws."""

import numpy as np
import pytest
import torch
from test_official import Case

from srvp.metrics.srvp_fd import srvp_fd

# Of srvp-fd 0.4.1 (its method "schur"), whose model took the weights of tests/reference: what its
# `FrechetDistanceCalculator` returned for "frame" (all frames), "static_content" and "dynamics".
PACKAGE = (0.12258845918116457, 0.008563110604780877, 0.00514205225670894)


def videos(seed, scale):
    x = np.random.RandomState(seed).randint(0, 256, (150, 4, 1, 8, 8)).astype(np.float32) / 255
    return torch.from_numpy(x * scale).repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.fixture(scope="module")
def case():
    return Case("dcgan_grey")


def test_distances_are_those_of_the_package(case):
    found = srvp_fd(case.model, videos(0, 1.0), videos(1, 0.8))
    assert found == pytest.approx(PACKAGE, rel=1e-5)  # float32 encodings; found: 3e-7


def test_equal_sets_have_no_distance_and_each_distance_sees_its_own(case):
    x = videos(0, 1.0)
    assert srvp_fd(case.model, x, x) == pytest.approx((0, 0, 0), abs=1e-6)
    # The order of the last three frames does not matter to w, that of the first three does to y_1.
    backwards = srvp_fd(case.model, x[:, 1:].flip(1), x[:, 1:])
    assert backwards.content == pytest.approx(0, abs=1e-6)
    assert backwards.frames == pytest.approx(0, abs=1e-6)
    assert backwards.dynamics > 1e-4


def test_other_videos_are_refused(case):
    with pytest.raises(ValueError, match="expected \\(clips, frames, 1, 64, 64\\)"):
        srvp_fd(case.model, videos(0, 1.0)[..., :32], videos(0, 1.0))
