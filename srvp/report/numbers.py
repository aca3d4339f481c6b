"""How numbers of metrics are written, in tables and figures."""

from collections.abc import Mapping, Sequence

import numpy as np

from srvp.metrics.table import METRICS


def number(row: Mapping[str, float], metric: str) -> str:
    """Return a number with its interval, as `16.93 ± 0.07`, or nothing if there is none.

    Args:
        row: NaN or a number under `metric` and under `METRIC_ci95`.
        metric: a row of `METRICS`, which has the decimals.
    """
    value, ci95 = row[metric], row[f"{metric}_ci95"]
    return "" if np.isnan(value) else with_interval(value, ci95, f".{METRICS[metric].decimals}f")


def with_interval(value: float, ci95: float, spec: str) -> str:
    """Return a value in a format such as `+.2f`, with its interval unless that is NaN."""
    return f"{value:{spec}}" + ("" if np.isnan(ci95) else f" ± {ci95:{spec.lstrip('+')}}")


def heading(metric: str) -> str:
    """Return a metric's label with an arrow to the better side: `PSNR (dB) ↑`."""
    return f"{METRICS[metric].label} {'↓' if METRICS[metric].lower_is_better else '↑'}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown, a line per row."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
