"""A toy: the mean absolute error of a frame."""

import torch

from srvp.metrics.table import Against


def load(device: torch.device) -> Against:
    """Return the metric as `srvp.metrics.table` describes it."""
    return lambda truth: lambda x: (x - truth[:, None]).abs().mean(dim=(-3, -2, -1))
