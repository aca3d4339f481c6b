"""Futures of any video: those of the model, whatever the memory; errors tell what to do."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from srvp.evaluation.futures import predict_futures
from srvp.store import build_model


@pytest.fixture(scope="module")
def model(tiny):
    return build_model(tiny.model, tiny.shape, seed=0).eval()


@pytest.fixture
def video(tmp_path):
    """Nine numbered pictures of 64 pixels: their folder, and their frames (9, 1, 64, 64)."""
    frames = np.random.RandomState(0).randint(0, 256, (9, 64, 64)).astype(np.uint8)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    return tmp_path, frames[:, None]


@pytest.mark.parametrize("frames_at_once", [1, 13, 4096])
def test_futures_are_those_of_the_model_in_any_number_of_parts(
    tiny, model, video, frames_at_once, monkeypatch
):
    """At most as many frames at a time as allowed, but a whole future at least."""
    folder, frames = video
    experiment = replace(tiny, evaluation=replace(tiny.evaluation, frames_at_once=frames_at_once))
    rows, predict = [], model.predict

    def watched(given, count, noise, **options):
        rows.append(len(noise[0]))
        return predict(given, count, noise, **options)

    monkeypatch.setattr(model, "predict", watched)
    futures = predict_futures(model, experiment, folder, frames=6, samples=5, seed=3)
    assert sum(rows) == 5 and max(rows) == min(5, max(1, frames_at_once // 6))
    with torch.inference_mode():
        given = model.condition(torch.from_numpy(frames[None, :5]).float() / 255)
        noise = model.draw_noise(5, 11, torch.Generator().manual_seed(3))
        expected = 255 * predict(given, 6, noise).x
    assert futures.samples.dtype == np.uint8
    # Rounding to 8 bits moves a value by half a level; batches of other sizes round otherwise.
    np.testing.assert_allclose(futures.samples, expected, atol=0.501, rtol=0)
    assert len(np.unique(futures.samples.reshape(5, -1), axis=0)) == 5


SOAK = """
import resource, sys
from pathlib import Path
from srvp.evaluation.futures import predict_futures
from srvp.experiment import load_experiment
from srvp.store import build_model

tiny = load_experiment(Path("params.yaml"), "tiny")
model, video = build_model(tiny.model, tiny.shape, seed=0).eval(), Path(sys.argv[1])
peaks = []
for frames in (2, 1000):
    futures = predict_futures(model, tiny, video, frames=frames, samples=12)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0] - futures.samples.nbytes / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_long_futures_need_little_more_memory_than_the_result(video):
    """Twelve of 1,000 frames: some 80 MB more, for one future at a time; together, 580 MB."""
    done = subprocess.run(
        [sys.executable, "-c", SOAK, video[0]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 200


def test_what_was_given_and_what_really_follows_are_told_apart(tiny, model, video):
    folder, frames = video
    futures = predict_futures(model, tiny, folder, given=6, frames=2, samples=1)
    assert np.array_equal(futures.given, frames[:6])
    assert np.array_equal(futures.truth, frames[6:8])
    longer = predict_futures(model, tiny, folder, frames=20, samples=1)
    assert np.array_equal(longer.truth, frames[5:]) and longer.samples.shape[1] == 20


def test_a_video_that_is_too_short_or_missing_is_named(tiny, model, video, tmp_path):
    folder, _ = video
    with pytest.raises(ValueError, match=r"has 9 frames, but 10 are to be given: .*needs 5"):
        predict_futures(model, tiny, folder, given=10, frames=2, samples=1)
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 does not exist: name a video"):
        predict_futures(model, tiny, tmp_path / "none.mp4", frames=2, samples=1)
