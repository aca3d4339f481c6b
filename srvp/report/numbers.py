"""How numbers of metrics are written, in tables and figures."""

from collections.abc import Mapping

import numpy as np

from srvp.metrics.table import METRICS


def number(row: Mapping[str, float], metric: str) -> str:
    """Return a number with its interval, as `16.93 ± 0.07`, or nothing if there is none.

    Args:
        row: NaN or a number under `metric` and under `METRIC_ci95`.
        metric: a row of `METRICS`, which has the decimals.
    """
    value, ci95, decimals = row[metric], row[f"{metric}_ci95"], METRICS[metric].decimals
    if np.isnan(value):
        return ""
    return f"{value:.{decimals}f}" + ("" if np.isnan(ci95) else f" ± {ci95:.{decimals}f}")


def heading(metric: str) -> str:
    """Return a metric's label with an arrow to the better side: `PSNR (dB) ↑`."""
    return f"{METRICS[metric].label} {'↓' if METRICS[metric].lower_is_better else '↑'}"
