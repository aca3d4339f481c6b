"""Batches that another process makes ready."""

import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, generator
from torch import multiprocessing

from srvp.experiment import load_experiment
from srvp.models.interface import Clips, VideoShape
from srvp.store import build_model
from srvp.training import loop
from srvp.training.ahead import made_ready

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.fixture
def warp():
    return load_experiment(ROOT / "params.yaml", "warp_tiny")


@pytest.fixture(params=[2])
def threads(request):
    """So many threads for a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def videos(count):
    for seed in range(count):
        yield Clips(torch.rand(2, 8, 1, 64, 64, generator=generator(seed)))


@linux
def test_batches_are_those_that_the_model_prepares_in_their_order(warp, threads):
    model = build_model(warp.model, VideoShape(1), seed=0)
    with made_ready(videos(4), model, CPU) as ready:
        assert torch.get_num_threads() == threads - 1
        made = [next(ready)]
        assert len(multiprocessing.active_children()) == 1
        made += ready
    torch.set_num_threads(1)  # as the other process has: another number may round otherwise
    for batch, expected in zip(made, map(model.prepare, videos(4)), strict=True):
        assert torch.equal(batch.frames, expected.frames)
        assert torch.equal(batch.places, expected.places)
        assert torch.equal(batch.images, expected.images)


@linux
def test_the_process_ends_with_the_training(warp, threads):
    model = build_model(warp.model, VideoShape(1), seed=0)
    with pytest.raises(KeyboardInterrupt), made_ready(videos(100), model, CPU) as ready:
        next(ready)
        raise KeyboardInterrupt
    assert torch.get_num_threads() == threads
    assert not multiprocessing.active_children()


@linux
def test_an_error_of_the_other_process_is_raised_as_it_is(warp, threads):
    def broken():
        yield from videos(1)
        raise ValueError("clip 7 is damaged: prepare it again")

    model = build_model(warp.model, VideoShape(1), seed=0)
    with made_ready(broken(), model, CPU) as ready:
        next(ready)
        with pytest.raises(ValueError, match=r"^clip 7 is damaged: prepare it again$"):
            next(ready)


@pytest.mark.parametrize("threads, name", [(1, "warp_tiny"), (2, "tiny")], indirect=["threads"])
def test_without_a_thread_or_work_to_share_there_is_no_process(threads, name):
    experiment = load_experiment(ROOT / "params.yaml", name)
    model = build_model(experiment.model, VideoShape(1), seed=0)
    with made_ready(videos(3), model, CPU) as ready:
        made = list(ready)
        assert not multiprocessing.active_children()
    for batch, expected in zip(made, map(model.prepare, videos(3)), strict=True):
        assert type(batch) is type(expected) and torch.equal(batch.frames, expected.frames)


@linux
def test_a_run_is_the_same_with_and_without(warp, threads, blobs, tmp_path):
    steps = {"constant_steps": 3, "decay_steps": 2, "validation_interval": 5, "device": "cpu"}
    warp = replace(warp, training=replace(warp.training, **steps))
    shared = loop.train(warp, blobs, tmp_path / "shared").state_dict()
    torch.set_num_threads(1)
    alone = loop.train(warp, blobs, tmp_path / "alone").state_dict()
    assert all(torch.equal(shared[name], value) for name, value in alone.items())
