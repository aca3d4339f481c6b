"""Scores of distributions: closed forms, fairness, calibration, and an independent package."""

import numpy as np
import pytest
import scoringrules
import torch
from scipy.special import gammaln

from srvp.evaluation import forecasts
from srvp.metrics.calibration import best_of, rank_shares, spread_skill
from srvp.metrics.energy import crps, energy_score
from srvp.metrics.forecasts import GROUP, RANKED, Ensemble


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_norm(dimensions):
    """The mean length of a standard normal vector."""
    return np.sqrt(2) * np.exp(gammaln((dimensions + 1) / 2) - gammaln(dimensions / 2))


def within(values, expected, errors=4):
    """The mean is the expected one, to four standard errors: one seed in 16,000 would fail."""
    assert abs(values.mean() - expected) < errors * values.std() / np.sqrt(len(values))


# Proper scores.


@pytest.mark.parametrize("samples", [2, 5, 20])
@pytest.mark.parametrize("dimensions", [1, 6])
def test_the_energy_score_of_gaussians_and_its_fairness(samples, dimensions):
    """Expected in closed form, whatever the number of samples: E|x - y| - E|x - x'| / 2.

    Samples and truth are normal with deviations 2 and 1: their differences have variances 5 and 8.
    """
    truth, forecast = normal(20000, dimensions), 2 * normal(20000, samples, dimensions, seed=1)
    expected = (np.sqrt(5) - np.sqrt(8) / 2) * expected_norm(dimensions)
    within(energy_score(forecast, truth).numpy(), expected)


def test_the_crps_of_gaussians_around_a_number():
    """Gneiting and Raftery (2007), equation 21, for the standard normal and y = 0.7."""
    y, density, below = 0.7, np.exp(-0.245) / np.sqrt(2 * np.pi), 0.758036
    expected = y * (2 * below - 1) + 2 * density - 1 / np.sqrt(np.pi)
    within(crps(normal(20000, 8), torch.full((20000,), y, dtype=torch.float64)).numpy(), expected)


def test_scores_are_those_of_another_package():
    x, y = normal(7, 12, 5), normal(7, 5, seed=1)
    expected = scoringrules.es_ensemble(y.numpy(), x.numpy(), estimator="fair")
    np.testing.assert_allclose(energy_score(x, y), expected, rtol=1e-12)
    expected = scoringrules.crps_ensemble(y[:, 0].numpy(), x[..., 0].numpy(), estimator="fair")
    np.testing.assert_allclose(crps(x[..., 0], y[:, 0]), expected, rtol=1e-12)


def test_hedging_pays_in_squared_error_but_not_in_the_energy_score():
    """Samples pulled towards their mean come closer to the truth, the best of ten too."""
    truth, x = normal(4000, 6), normal(4000, 10, 6, seed=1)
    pulled = 0.7 * x
    assert energy_score(x, truth).mean() < energy_score(pulled, truth).mean()
    best = [((v - truth[:, None]) ** 2).sum(-1).amin(1).mean() for v in (x, pulled)]
    assert best[1] < best[0]


def test_one_sample_is_a_forecast_that_is_certain():
    assert energy_score(torch.tensor([[3.0, 4.0]]), torch.zeros(2)) == 5


# Calibration.


def draws(width, clips=4000, samples=9):
    """Numbers of the truth (standard normal) and of samples `width` times as wide."""
    return normal(clips, 1), width * normal(clips, samples, seed=1)


def histogram(width):
    return rank_shares(torch.cat(draws(width), dim=1)).mean(dim=0).numpy()


def test_ranks_are_flat_for_exchangeable_draws_a_u_for_narrow_and_a_dome_for_wide_ones():
    expected = np.sqrt(0.1 * 0.9 / 4000)  # standard error of a share of one in ten
    np.testing.assert_allclose(histogram(1), 0.1, atol=4 * expected)
    narrow, wide = histogram(0.5), histogram(2)
    assert narrow[[0, -1]].min() > 0.2 and narrow[3:7].max() < 0.08
    assert wide[[0, -1]].max() < 0.05 and wide[3:7].min() > 0.11


def test_ties_share_their_ranks():
    """All of five samples equal: any of six ranks. Two below and one equal: the third or fourth."""
    assert rank_shares(torch.zeros(6)).tolist() == pytest.approx([1 / 6] * 6)
    assert rank_shares(torch.tensor([5.0, 1, 2, 5, 7])).tolist() == [0, 0, 0.5, 0.5, 0]


@pytest.mark.parametrize("width", [0.5, 1, 2])
def test_spread_over_skill_is_the_width_of_the_forecast(width):
    """1 for exchangeable draws, and in closed form: sqrt((S + 1) w^2 / (S + w^2))."""
    truth, x = draws(width, clips=20000)
    error = (x.mean(1, keepdim=True) - truth) ** 2
    found = spread_skill(x.var(1, keepdim=True).numpy(), error.numpy(), 9)
    expected = np.sqrt(10 * width**2 / (9 + width**2))
    assert found == pytest.approx(expected, rel=0.02)  # standard errors of 0.5 %


def test_spread_needs_two_samples():
    assert np.isnan(spread_skill(np.zeros((3, 2)), np.ones((3, 2)), 1)).all()


def test_best_of_n_is_the_mean_over_all_choices():
    scores = np.random.RandomState(0).rand(3, 6)
    np.testing.assert_allclose(best_of(scores, 1), scores.mean(1))
    np.testing.assert_allclose(best_of(scores, 6, lower=True), scores.min(1))
    pairs = [np.maximum(scores[:, i], scores[:, j]) for i in range(6) for j in range(i)]
    np.testing.assert_allclose(best_of(scores, 2), np.mean(pairs, axis=0))


# All of them, of videos, as samples come.


def videos(samples, width=1.0, clips=3, frames=4, seed=0):
    """Truth and samples whose values differ from grey by normal numbers, far from black and white.

    They are multiples of 1/255, as those of files are.
    """
    shape = (clips, 1 + samples, frames, 1, 16, 16)
    x = normal(*shape, seed=seed).float() * torch.tensor([1.0] + samples * [width]).view(
        -1, 1, 1, 1, 1
    )
    x = (255 * (0.5 + 0.1 * x).clamp(0, 1)).round() / 255
    return x[:, 0], x[:, 1:]


def scores_of(truth, samples, chunks=(1000,)):
    ensemble = Ensemble(truth)
    for part in samples.split(chunks[0], dim=1):
        ensemble.add(part)
    return ensemble.scores()


@pytest.mark.parametrize("samples", [2, 7, 10, 25])
def test_scores_of_videos_are_those_of_their_groups_written_out(samples):
    truth, x = videos(samples)
    found = scores_of(truth, x)
    groups = x.split(GROUP, dim=1)

    def pairs(function):
        values = [
            function(g[:, i], g[:, j]) for g in groups for i in range(g.shape[1]) for j in range(i)
        ]
        return sum(values) / len(values)

    def whole(a, b):
        return (a - b).flatten(1).norm(dim=1)

    error = sum(whole(s, truth) for s in x.unbind(1)) / samples
    # 1e-4: sums of single precision.
    np.testing.assert_allclose(found["energy"], error - pairs(whole) / 2, rtol=1e-4)
    squares = pairs(lambda a, b: ((a - b) ** 2).mean(dim=(2, 3, 4)))
    np.testing.assert_allclose(found["variance"], squares / 2, rtol=1e-4)
    wrong = ((x.mean(1) - truth) ** 2).mean(dim=(2, 3, 4))
    np.testing.assert_allclose(found["squared_error"], wrong, rtol=1e-4)
    np.testing.assert_allclose(found["psnr"], -10 * wrong.log10(), rtol=1e-4)
    assert found["ranks"].shape == (3, 4, min(samples, GROUP) + 1)
    np.testing.assert_allclose(found["ranks"].sum(-1), 1, rtol=1e-5)


def test_the_crps_of_videos_is_a_mean_over_pixels():
    """To 3 %: it takes other pairs, and these frames have only 256 pixels."""
    truth, x = videos(GROUP, frames=2)
    expected = crps(x.movedim(1, -1), truth).mean(dim=(2, 3, 4))
    np.testing.assert_allclose(scores_of(truth, x)["crps"], expected, rtol=0.03)


def test_scores_depend_neither_on_chunks_nor_on_what_was_scored_before():
    truth, x = videos(25)
    ensemble, expected = Ensemble(truth), scores_of(truth, x)
    ensemble.add(1 - x)
    ensemble.scores()
    ensemble.restart()
    for part in x.split(4, dim=1):
        ensemble.add(part)
    for name, found in ensemble.scores().items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, err_msg=name)


def test_calibration_of_videos():
    """The four rank histograms: flat, U, dome. Each is of 60 clips of 3 frames and two groups."""
    ranks = {
        w: scores_of(*videos(20, w, clips=60, frames=3))["ranks"].mean(0) for w in (0.7, 1, 1.4)
    }
    # Four standard errors: ranks in the two groups of a frame share the truth.
    np.testing.assert_allclose(ranks[1], 1 / 11, atol=4 * np.sqrt(1 / 11 / 180))
    # Brightness, row and column are sums over 256 pixels: too narrow, too wide. The distance to the
    # mean lies on one side: the truth is the farthest, or the nearest.
    assert (ranks[0.7][:3][:, [0, -1]] > 1 / 11).all() and ranks[0.7][3, -1] > 0.9
    assert (ranks[1.4][:3][:, [0, -1]] < 1 / 11).all() and ranks[1.4][3, 0] > 0.9


def test_a_single_sample_has_no_spread():
    truth, x = videos(1)
    found = scores_of(truth, x)
    np.testing.assert_allclose(found["energy"], (x[:, 0] - truth).flatten(1).norm(dim=1), rtol=1e-5)
    assert not found["variance"].any()


def test_equal_frames_have_no_distance_and_empty_ones_a_centre():
    truth = torch.zeros(2, 3, 1, 16, 16)
    found = scores_of(truth, truth[:, None].expand(-1, 12, -1, -1, -1, -1))
    assert not found["energy"].any() and not found["crps"].any()
    np.testing.assert_allclose(found["ranks"], 1 / 11, rtol=1e-6)


# The table of an evaluation.


def scored(samples):
    """Arrays as an evaluation has them, of six clips and two predicted frames."""
    random = np.random.RandomState(0)
    measures = ("variance", "squared_error", "crps", "psnr")
    forecast = {name: random.rand(6, 2) for name in measures}
    forecast["ranks"] = random.rand(6, len(RANKED), samples + 1)
    forecast["count"] = np.full(6, samples)
    return forecast, {name: random.rand(6, samples) for name in ("psnr", "lpips")}


def over_clips(statistic, *arrays):
    """A statistic of means over clips, and 1.96 standard errors: each clip is left out in turn."""
    left_out = [statistic(*(np.delete(x, i, axis=0).mean(0) for x in arrays)) for i in range(6)]
    variance = 5 / 6 * ((left_out - np.mean(left_out, axis=0)) ** 2).sum(axis=0)
    return np.stack([statistic(*(x.mean(0) for x in arrays)), 1.96 * np.sqrt(variance)], axis=-1)


def ratio_of_three(variance, error):
    return np.sqrt(4 / 3 * variance / error)


def test_the_table_of_a_forecast_written_out():
    """Three samples; frames are numbered from the first predicted one, the sixth."""
    forecast, samples = scored(3)
    variance, error, psnr = forecast["variance"], forecast["squared_error"], samples["psnr"]
    pairs = [np.maximum(psnr[:, i], psnr[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    best = np.stack([psnr.mean(1), np.mean(pairs, axis=0), psnr.max(1)], axis=1)
    expected = {
        "error": (6, over_clips(np.sqrt, error)),
        "spread": (6, over_clips(np.sqrt, variance)),
        "spread_skill": (6, over_clips(ratio_of_three, variance, error)),
        "crps": (6, over_clips(np.copy, forecast["crps"])),
        "psnr_of_mean": (6, over_clips(np.copy, forecast["psnr"])),
        "best_of_psnr": (1, over_clips(np.copy, best)),
    }
    for i, name in enumerate(RANKED):
        expected[f"rank_{name}"] = (0, over_clips(np.copy, forecast["ranks"][:, i]))
    table = forecasts.table(forecasts.rows("a", forecast, samples, first=6))
    assert set(table["predictor"]) == {"a"}
    assert set(table["measure"]) == {*expected, "best_of_lpips"}
    for measure, (first, numbers) in expected.items():
        found = table[table["measure"] == measure]
        assert found["at"].tolist() == list(range(first, first + len(numbers))), measure
        np.testing.assert_allclose(found[["value", "ci95"]], numbers, rtol=1e-9, err_msg=measure)
    lowest = table[(table["measure"] == "best_of_lpips") & (table["at"] == 3)]
    assert lowest["value"].item() == pytest.approx(samples["lpips"].min(1).mean())


def test_the_summary_of_a_forecast_is_of_whole_futures():
    forecast, _ = scored(3)
    whole = {name: forecast[name].mean(1) for name in ("variance", "squared_error", "psnr")}
    ratio = over_clips(ratio_of_three, whole["variance"], whole["squared_error"])
    mean = over_clips(np.copy, whole["psnr"])
    expected = {"spread_skill": ratio[0], "spread_skill_ci95": ratio[1]}
    expected |= {"psnr_of_mean": mean[0], "psnr_of_mean_ci95": mean[1]}
    expected |= {"crps": forecast["crps"].mean()}
    assert forecasts.summary(forecast) == pytest.approx(expected)


def test_a_single_sample_has_only_an_error():
    forecast, samples = scored(1)
    table = forecasts.table(forecasts.rows("a", forecast, samples, first=6))
    assert table["measure"].tolist() == ["error", "error"] and table["at"].tolist() == [6, 7]
    assert forecasts.summary(forecast) == {}


def test_a_forecast_needs_no_metric_of_frames():
    """It knows its number of samples, more than there are ranks; only best of N needs scores."""
    truth, x = videos(2 * GROUP)
    forecast = scores_of(truth, x)
    table = forecasts.table(forecasts.rows("a", forecast, {}, first=6))
    ranks = {f"rank_{name}" for name in RANKED}
    curves = {"error", "spread", "spread_skill", "crps", "psnr_of_mean"}
    assert set(table["measure"]) == curves | ranks
    ratio = spread_skill(forecast["variance"], forecast["squared_error"], 2 * GROUP)
    np.testing.assert_allclose(table[table["measure"] == "spread_skill"]["value"], ratio)
    assert forecasts.summary(forecast).keys() >= {"spread_skill", "crps"}


def test_a_forecast_of_one_clip_has_no_interval():
    forecast, samples = scored(3)
    forecast, samples = ({k: x[:1] for k, x in arrays.items()} for arrays in (forecast, samples))
    table = forecasts.table(forecasts.rows("a", forecast, samples, first=6))
    assert table["ci95"].isna().all() and not table["value"].isna().any()
