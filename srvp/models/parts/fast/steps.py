"""Time steps together through a network whose batch norm sees one step at a time, as SVG's does.

Convolutions of all steps are one operation; batch norm takes its statistics, and moves the running
ones, step by step in order. Results are those of a call for each step, but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def statistics_of_steps(network: nn.Module, repeats: Sequence[int]) -> Iterator[None]:
    """Let batch norm normalise each step of `(B * T, ...)` by itself, the steps of a clip together.

    Args:
        network: whose batch norms are meant, in training.
        repeats: for each of the T steps, how many equal calls in a row move the running statistics.
    """
    # Not `BatchNorm2d`: on several GPUs, they are `SyncBatchNorm`.
    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    norms = [norm for norm in norms if norm.training]
    for norm in norms:
        norm.forward = _by_step(norm, norm.forward, repeats)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # that of the class


def _by_step(
    norm: _BatchNorm, normalise: Callable[[Tensor], Tensor], repeats: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        momentum, results = norm.momentum, []
        for step, times in zip(x.unflatten(0, (-1, len(repeats))).unbind(1), repeats, strict=True):
            norm.momentum = 1 - (1 - momentum) ** times
            results.append(normalise(step))
        norm.momentum = momentum
        return torch.stack(results, dim=1).flatten(0, 1)

    return forward
