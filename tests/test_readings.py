"""Figures of what states know."""

import numpy as np

from srvp.report import figures


def random(*shape):
    return np.random.default_rng(0).random(shape)


def test_readings_are_drawn_against_the_truth_with_their_scores():
    true, read = random(50, 2), {"a": random(50, 2) + 1, "b": random(50, 2)}
    scores = np.array([[0.91, 0.5], [-0.2, 1.0]])
    figure = figures.readings(true, read, ["angle (rad)", "speed"], scores)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["$R^2$ = 0.91", "$R^2$ = 0.50", "$R^2$ = -0.20", "$R^2$ = 1.00"]
    points = figure.axes[1].lines[0]
    np.testing.assert_array_equal(points.get_xdata(), true[:, 1])
    np.testing.assert_array_equal(points.get_ydata(), read["a"][:, 1])
    assert [ax.get_xlabel() for ax in figure.axes[2:]] == ["true angle (rad)", "true speed"]
    assert figure.axes[2].get_ylabel() == "b\nread"


def test_curves_over_time_have_the_means_of_the_videos_and_their_intervals():
    values = random(30, 6)
    figure = figures.over_time({"a": values, "b": values[:, ::2] + 1}, 11, "error", rate=2)
    first, second = figure.axes[0].lines
    np.testing.assert_allclose(first.get_ydata(), values.mean(axis=0))
    np.testing.assert_allclose(first.get_xdata(), [11, 11.5, 12, 12.5, 13, 13.5])
    assert len(second.get_xdata()) == 3
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    half = 1.96 * values.std(axis=0, ddof=1) / 30**0.5
    np.testing.assert_allclose(band.max(), (values.mean(axis=0) + half).max())
    np.testing.assert_allclose(band.min(), (values.mean(axis=0) - half).min())
    assert figure.axes[0].get_ylabel() == "error"
