"""Tables of what all samples of a clip are worth together: scores, calibration, best of N.

Shapes: N clips, S samples of each, F predicted frames. A forecast is the dictionary of arrays that
`srvp.metrics.forecasts.Ensemble.scores` returns, of all clips.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd

from srvp.metrics.calibration import best_of, spread_skill
from srvp.metrics.forecasts import RANKED
from srvp.metrics.table import METRICS

Forecast = Mapping[str, np.ndarray]
COLUMNS = ["predictor", "measure", "at", "value", "ci95"]
BEST_OF = (1, 2, 5, 10, 20, 50, 100)


def rows(
    name: str, forecast: Forecast, samples: Mapping[str, np.ndarray], first: int
) -> Iterator[tuple[str, str, int, float, float]]:
    """Yield the rows of `forecasts.csv` of one predictor, with `COLUMNS`.

    `at` is a frame for `error`, the root mean squared error of the mean of the samples. Several
    samples also have `spread`, the root mean variance, `spread_skill`, `crps` and `psnr_of_mean`.
    It is a number of samples for `best_of_METRIC`, and a rank for `rank_brightness` and so on: the
    share of frames in which so many samples of ten are below the truth.

    Args:
        name: of the predictor.
        forecast: of its samples.
        samples: scores of every sample by metric of frames, `(N, S)`; none without such metrics.
        first: number of the first predicted frame.
    """
    count = _samples(forecast)
    variance, error = forecast["variance"], forecast["squared_error"]
    curves = {"error": _over_clips(lambda e: np.sqrt(_mean(e)), error)}
    if count > 1:
        curves["spread"] = _over_clips(lambda v: np.sqrt(_mean(v)), variance)
        curves["spread_skill"] = _over_clips(
            lambda v, e: spread_skill(v, e, count), variance, error
        )
        for measure, values in (("crps", "crps"), ("psnr_of_mean", "psnr")):
            curves[measure] = _over_clips(_mean, forecast[values])
    for measure, (value, ci95) in curves.items():
        for frame, numbers in enumerate(zip(value, ci95, strict=True), start=first):
            yield (name, measure, frame, *numbers)
    if count > 1:
        yield from _rows_by_number(name, forecast, samples)


def _rows_by_number(name: str, forecast: Forecast, samples: Mapping[str, np.ndarray]) -> Iterator:
    for metric, scores in samples.items():
        count = scores.shape[1]
        for n in sorted({n for n in BEST_OF if n < count} | {count}):
            best = best_of(scores, n, METRICS[metric].lower_is_better)
            yield (name, f"best_of_{metric}", n, *map(float, _over_clips(_mean, best)))
    for ranked, shares in zip(RANKED, forecast["ranks"].swapaxes(0, 1), strict=True):
        value, ci95 = _over_clips(_mean, shares)
        for rank, numbers in enumerate(zip(value, ci95, strict=True)):
            yield (name, f"rank_{ranked}", rank, *numbers)


def table(found: Iterator[tuple]) -> pd.DataFrame:
    """Return such rows of several predictors as a table."""
    return pd.DataFrame(list(found), columns=COLUMNS)


def summary(forecast: Forecast) -> dict[str, float]:
    """Return numbers of the whole future, beside the energy score, for `metrics.json`.

    Several samples have `spread_skill` and `psnr_of_mean` with their intervals, and `crps`.
    """
    count = _samples(forecast)
    if count < 2:
        return {}
    variance, error = (
        forecast[k].mean(axis=1, keepdims=True) for k in ("variance", "squared_error")
    )
    ratio = _over_clips(lambda v, e: spread_skill(v, e, count), variance, error)
    mean = _over_clips(_mean, forecast["psnr"].mean(axis=1))
    return {
        "spread_skill": float(ratio[0][0]),
        "spread_skill_ci95": float(ratio[1][0]),
        "psnr_of_mean": float(mean[0]),
        "psnr_of_mean_ci95": float(mean[1]),
        "crps": float(forecast["crps"].mean()),
    }


def _samples(forecast: Forecast) -> int:
    return int(forecast["count"][0])  # of every clip the same


def _over_clips(
    statistic: Callable[..., np.ndarray], *arrays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a statistic of arrays `(N, ...)`, and the half width of its 95 % interval.

    The interval is 1.96 standard errors over clips (jackknife); of a mean, the usual ones. One clip
    has none: NaN.

    Args:
        statistic: of arrays whose first axis are clips; a function of their means over that axis,
            for each of the other axes by itself.
        arrays: a row per clip.
    """
    value, n = statistic(*arrays), len(arrays[0])
    if n == 1:
        return value, np.full_like(value, np.nan)
    # The means without each clip, in place of those of one clip.
    means = ((x.sum(axis=0, dtype=np.float64) - x) / (n - 1) for x in arrays)
    left_out = statistic(*(mean[None] for mean in means))
    return value, 1.96 * np.sqrt((n - 1) * np.var(left_out, axis=0))


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=0)
