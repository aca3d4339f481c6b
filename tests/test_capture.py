import contextlib
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from srvp.training.capture import Captured

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class Draws(NamedTuple):
    shift: Tensor
    pair: tuple[Tensor, Tensor]


def function_of(module):
    return lambda x, draws: (module(x + draws.shift), draws.pair[0] - draws.pair[1])


def arguments(seed, device="cpu"):
    torch.manual_seed(seed)
    x, shift, a, b = (torch.randn(4, 3, device=device) for _ in range(4))
    return x, Draws(shift, (a, b))


@pytest.fixture
def recorded(monkeypatch):
    """Stand-ins for what captures on a GPU: what would be recorded runs once, a replay does not."""

    class Stream:
        def wait_stream(self, other):
            pass

    class Graph:
        def replay(self):
            pass

    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)


def test_the_calls_that_warm_up_leave_no_trace_in_buffers(recorded):
    norm, once = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    function_of(once)(*arguments(0))
    Captured(function_of(norm), norm)(*arguments(0))
    assert norm.num_batches_tracked == 1
    for found, wanted in zip(norm.buffers(), once.buffers(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_arguments_of_later_calls_are_where_the_graph_reads_and_the_first_ones_unchanged(recorded):
    norm = nn.BatchNorm1d(3)
    captured = Captured(function_of(norm), norm)
    first, later = arguments(0), arguments(1)
    captured(*first)
    captured(*later)
    x, (shift, pair) = later
    for found, wanted in zip(captured.inputs, (x, shift, *pair), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(first[0], arguments(0)[0])


@needs_gpu
def test_every_call_is_that_of_the_function():
    norm, plain = nn.BatchNorm1d(3).cuda(), nn.BatchNorm1d(3).cuda()
    captured = Captured(function_of(norm), norm)
    for seed in range(3):
        given = arguments(seed, "cuda")
        for found, wanted in zip(captured(*given), function_of(plain)(*given), strict=True):
            torch.testing.assert_close(found, wanted)
    for found, wanted in zip(norm.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, wanted)
