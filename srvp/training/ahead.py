"""Batches made ready by a second process while the first one trains, on a CPU with two threads.

`VideoModel.prepare` computes the part of a loss that depends on the clips alone. The batches, and
so the run, are the same as without.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, IterableDataset

from srvp.models.interface import Clips, VideoModel

BATCHES = 2  # that wait, at most


@contextmanager
def made_ready(
    batches: Iterator[Clips], model: VideoModel, device: torch.device
) -> Iterator[Iterator[tuple]]:
    """Give the batches as the model prepares them; one thread fewer is left to this process.

    Without a thread to spare, on a GPU, for a model that has nothing to prepare, or where processes
    cannot be forked, this process prepares each before its step.
    """
    threads, nothing = torch.get_num_threads(), type(model).prepare is VideoModel.prepare
    if nothing or device.type != "cpu" or threads < 2 or sys.platform != "linux":
        yield map(model.prepare, batches)
        return
    source, fork = _Prepared(batches, model), {"num_workers": 1, "multiprocessing_context": "fork"}
    ready = _or_raise(DataLoader(source, batch_size=None, prefetch_factor=BATCHES, **fork))
    torch.set_num_threads(threads - 1)
    try:
        yield ready
    finally:
        torch.set_num_threads(threads)
        ready.close()  # ends the other process


class _Prepared(IterableDataset):
    """Yields prepared batches in the other process; an error takes the place of a batch."""

    def __init__(self, batches: Iterator[Clips], model: VideoModel):
        self.batches, self.model = batches, model

    def __iter__(self) -> Iterator[tuple | Exception]:
        try:
            yield from map(self.model.prepare, self.batches)
        except Exception as error:  # to be raised where it can be told in one line
            yield error


def _or_raise(batches: Iterable[tuple | Exception]) -> Iterator[tuple]:
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch
