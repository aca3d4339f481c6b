"""Digit tracks: exact on true frames, and what moved, faded or other digits give."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from srvp.data.sets import moving_mnist
from srvp.evaluation.tracks import DigitTracker, tracks_table


@pytest.fixture(scope="module")
def world(tiny):
    data = replace(tiny.data, test_videos=20)
    sequences = moving_mnist.test_set(ROOT / "data" / "mnist", data).sequences
    x = torch.from_numpy(sequences).float()[:, 5:, None] / 255
    return DigitTracker(ROOT / "data" / "mnist", data), x


def test_true_digits_are_found_and_kept(world):
    tracker, x = world
    table = tracks_table(tracker, {"truth": x[:6]}, given=5)
    assert table["frame"].tolist() == list(range(6, 26))
    assert table["error"].mean() < 0.1 and table["kept"].mean() > 0.99
    faded = tracks_table(tracker, {"faded": 0.3 * x[:6]}, given=5)  # brightness does not matter
    assert faded["error"].mean() < 0.2 and faded["kept"].mean() > 0.98


def test_a_small_test_set_has_rivals_of_all_classes(tiny):
    """They were those of the set itself: with fewer rivals, more digits seemed kept."""
    tracker = DigitTracker(ROOT / "data" / "mnist", replace(tiny.data, test_videos=2))
    assert len(tracker._of_other_classes(0, 0)) == 9


def test_moved_frames_are_as_far_as_they_were_moved(world):
    """Those whose digits stay in the picture; where they overlap, a place may be a pixel off."""
    tracker, x = world
    inside = (x[0, :, 0, -3:].sum((1, 2)) == 0) & (x[0, :, 0, :, -4:].sum((1, 2)) == 0)
    assert inside.sum() > 3
    error = tracker.track(0, x[:1].roll((3, 4), (-2, -1)), given=5).error[0]
    assert error[inside].tolist() == pytest.approx([5.0] * int(inside.sum()), abs=0.5)


def test_other_digits_and_empty_frames_are_not_kept(world):
    tracker, x = world
    others = tracks_table(tracker, {"other": x[1:9]}, given=5)
    assert others["kept"].mean() < 0.5 and others["error"].mean() > 10
    assert not tracker.track(0, torch.zeros(1, 3, 1, 64, 64), given=5).kept.any()
