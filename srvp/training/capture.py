"""A function of tensors on a GPU, captured as a CUDA graph: hundreds of launches become one.

A training step of SRVP is some 3,000 small kernels, and launching them one by one takes longer than
they do. A captured function runs the same kernels on the same memory: its arguments are copied
into those of the first call, and what it returns is overwritten by the next call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 3  # calls before the capture, in which libraries choose their algorithms


class Captured:
    """A function of tensors and named tuples of tensors, captured at its first call.

    It must neither wait for the device nor copy from the host to it, and its arguments keep their
    shapes.

    Args:
        function: to capture.
        module: whose buffers it changes: the calls that warm up leave no trace in them.
    """

    def __init__(self, function: Callable[..., Any], module: nn.Module):
        self.function = function
        self.module = module
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        if self.graph is None:
            self._capture(arguments)
        for own, given in zip(self.inputs, _tensors(arguments), strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.result

    def _capture(self, arguments: tuple) -> None:
        arguments = _clone(arguments)
        self.inputs = _tensors(arguments)
        before = [buffer.clone() for buffer in self.module.buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.function(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        for buffer, value in zip(self.module.buffers(), before, strict=True):
            buffer.copy_(value)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.function(*arguments)


def _tensors(batch: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, in order, without what is None."""
    if isinstance(batch, Tensor):
        return [batch]
    return [] if batch is None else [t for part in batch for t in _tensors(part)]


def _clone(batch: Any) -> Any:
    if batch is None or isinstance(batch, Tensor):
        return batch if batch is None else batch.clone()
    parts = map(_clone, batch)
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
