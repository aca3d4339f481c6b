"""Ceilings, floors and controls: the perfect model, the trivial predictors, the spoilt truths."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT

from srvp.data import open_test, prepare
from srvp.evaluation import references
from srvp.evaluation.protocol import evaluate
from srvp.evaluation.references import (
    CONTROLS,
    PERFECT,
    PERFECT_MEAN,
    TRIVIAL,
    blurred,
    control_predictors,
    perfect_predictors,
    reference_predictors,
)
from srvp.experiment import load_experiment
from srvp.models.interface import Clips

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["smmnist", "dmmnist"])
def world(request, tmp_path_factory):
    """An experiment on the first 24 test videos of Moving MNIST, and the videos."""
    folder = tmp_path_factory.mktemp(request.param)
    experiment = load_experiment(ROOT / "params.yaml", "tiny")
    data = replace(experiment.data, dataset=request.param, test_videos=24)
    evaluation = replace(
        experiment.evaluation, samples=30, batch_size=8, metrics=("psnr", "energy")
    )
    experiment = replace(experiment, data=data, evaluation=evaluation)
    prepare(data, ROOT / "data", folder)
    return experiment, open_test(data, folder)


@pytest.fixture(scope="module")
def predictors(world):
    return reference_predictors(*world, CPU)


def clips(videos, numbers):
    return torch.from_numpy(videos.test_clips(numbers)).float() / 255


def predicted(predict, videos, numbers):
    return torch.cat(list(predict(Clips(clips(videos, numbers)[:, :5]), numbers)), dim=1)


def test_the_perfect_model_knows_all_but_what_bounces_redraw(world, predictors):
    experiment, videos = world
    deterministic = experiment.data.dataset == "dmmnist"
    futures, truth = predicted(predictors[PERFECT], videos, [3, 7]), clips(videos, [3, 7])[:, 5:]
    assert futures.shape == (2, 30, 20, 1, 64, 64)
    exact = (futures == truth[:, None]).all(dim=(-1, -2, -3))  # (2, 30, 20)
    speeds = np.split(videos.array("speeds"), 24)
    for clip, number in enumerate([3, 7]):
        changed = (np.diff(speeds[number][4:], axis=0) != 0).any(axis=(1, 2))
        first = 20 if deterministic or not changed.any() else int(changed.argmax())
        assert exact[clip, :, :first].all()
    if not deterministic:
        last = futures[:, :, -1].flatten(2)
        assert len(np.unique(last[0].numpy(), axis=0)) > 5  # futures differ
        (single,) = (predicted(predictors[PERFECT], videos, [7]),)
        assert torch.equal(single[0], futures[1])  # whatever else is in the batch


class Dice:
    """A world whose frames are random numbers, each a pixel."""

    deterministic = False

    def draw_paths(self, number, given, frames, samples, generator):
        return torch.rand(samples, frames, generator=generator)

    def render(self, numbers, paths):
        return paths[..., None, None, None]


def test_clips_are_drawn_for_themselves_and_the_perfect_mean_is_of_all_futures(tiny, monkeypatch):
    """Seven futures of two clips, two at a time."""
    monkeypatch.setattr(references, "perfect_model", lambda *args: Dice())
    evaluation = replace(tiny.evaluation, samples=7, frames_at_once=2 * 2 * tiny.predicted_frames)
    experiment, given = replace(tiny, evaluation=evaluation), Clips(torch.zeros(2, 5, 1, 1, 1))
    sample, mean = perfect_predictors(experiment, None, CPU).values()
    for numbers in ([3, 7], [8, 9]):
        parts = list(sample(given, numbers))
        assert [part.shape[1] for part in parts] == [2, 2, 2, 1]
        futures = torch.cat(parts, dim=1)
        assert (futures[0] != futures[1]).all()
        (found,) = mean(given, numbers)
        torch.testing.assert_close(found, futures.mean(dim=1, keepdim=True))
    (found,) = mean(given, [3, 7])  # the futures drawn last are of other clips
    expected = torch.cat(list(sample(given, [3, 7])), dim=1).mean(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected)


def test_scores_are_in_the_order_of_the_trial(world, predictors, tmp_path):
    """Perfect < its mean < black < a copy. PSNR is capped, so that exact frames do not rule it.

    A trial with 100 futures of more clips found 30.2, 43.0, 59.6 and 75.2, with errors of about 1.
    """
    experiment, videos = world
    scores = evaluate(predictors, videos, experiment.evaluation, CPU, tmp_path)
    energy = {name: s.summary("energy").mean for name, s in scores.items()}
    if experiment.data.dataset == "dmmnist":
        assert PERFECT_MEAN not in scores and energy[PERFECT] < 1e-3
        assert (scores[PERFECT].samples["psnr"] == 25).all()
        assert (scores[PERFECT].forecast["psnr"] == 25).all()
        return
    assert energy[PERFECT] < energy[PERFECT_MEAN] < energy["black frame"]
    assert energy["black frame"] < energy["copy last frame"]
    assert energy[PERFECT] == pytest.approx(30.2, abs=4)  # 24 clips: a standard error of 1.3
    forecast = scores[PERFECT].forecast
    ratio = np.sqrt(31 / 30 * forecast["variance"].mean() / forecast["squared_error"].mean())
    assert ratio == pytest.approx(1, abs=0.1)  # of 24 clips
    assert scores[PERFECT].samples["psnr"].max() <= 25


def test_a_set_that_was_not_simulated_has_no_ceiling(world, tmp_path, monkeypatch):
    experiment, videos = world
    monkeypatch.setattr(references, "project_root", lambda: tmp_path)  # no raw files
    assert list(reference_predictors(experiment, videos, CPU)) == list(TRIVIAL)


def test_controls_come_with_metrics_that_compare_sets(world):
    experiment, videos = world
    config = replace(experiment.evaluation, metrics=("psnr", "kvd"))
    found = reference_predictors(replace(experiment, evaluation=config), videos, CPU)
    assert list(found)[-len(CONTROLS) :] == list(CONTROLS)


def test_controls_spoil_the_truth_in_one_respect(world):
    _, videos = world
    truth = clips(videos, [2, 5])[:, 5:]
    spoilt = {
        name: predicted(predict, videos, [2, 5])[:, 0]
        for name, predict in control_predictors(videos, 5, seed=1).items()
    }
    assert all(x.shape == truth.shape and not torch.equal(x, truth) for x in spoilt.values())
    shuffled, frozen, jittered, noisy = spoilt.values()
    assert torch.equal(shuffled.flatten(2).sort(1)[0], truth.flatten(2).sort(1)[0])  # same frames
    assert (frozen == truth[:, :1]).all()
    inner = (slice(None), slice(None), slice(None), slice(4, 60), slice(4, 60))
    shifts = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    moved = torch.stack([truth.roll(shift, (-2, -1))[inner] for shift in shifts])
    assert (moved == jittered[inner]).all(dim=(-1, -2, -3)).any(dim=0).all()
    assert (noisy - truth).std() == pytest.approx(0.07, abs=0.01)  # black and white cut half of 0.1


def test_every_clip_is_spoilt_in_its_own_way(world):
    """By its number: the other clips of a batch change nothing."""
    _, videos = world
    dark = (clips(videos, [2, 5])[:, 5:] == 0).all(dim=0)
    for name, predict in control_predictors(videos, 5, seed=1).items():
        both, alone = (predicted(predict, videos, numbers) for numbers in ([2, 5], [5]))
        assert torch.equal(both[1], alone[0])
        if name == "truth, noisy":
            first, second = both[:, 0, dark]
            assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.05


def test_a_blurred_frame_keeps_its_light_and_has_the_width_of_a_gaussian():
    point = torch.zeros(1, 64, 64)
    point[0, 32, 30] = 1
    x = blurred(point)[0]
    assert x.sum().item() == pytest.approx(1, abs=0.01)
    rows = torch.arange(64.0)
    mean = (x.sum(1) * rows).sum()
    assert mean.item() == pytest.approx(32, abs=0.1)
    deviation = (x.sum(1) * (rows - mean) ** 2).sum().sqrt().item()
    assert deviation == pytest.approx(references.BLUR, rel=0.02)
    assert torch.allclose(blurred(torch.ones(1, 64, 64))[0, 32, 32], torch.tensor(1.0), atol=0.01)
