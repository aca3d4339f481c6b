"""The table of metrics: every row keeps the contract, and a metric is one file and its row."""

import importlib
import subprocess
import sys

import pytest
import torch
from perceptual_cases import WEIGHTS_FOLDER, fetched

import srvp.metrics
from srvp.files import sha256
from srvp.metrics.lpips import WEIGHTS, load_lpips
from srvp.metrics.psnr import psnr
from srvp.metrics.ssim import ssim
from srvp.metrics.table import METRICS, Metric, fetch_weights, kind, weights_provenance

CPU = torch.device("cpu")
PER_FRAME = kind(METRICS, "frames")


@pytest.fixture(autouse=True)
def weights_folder(monkeypatch):
    """Let metrics find their weights where the tests fetch them to, from any current folder."""
    monkeypatch.setattr("srvp.metrics.weights.weights_folder", lambda: WEIGHTS_FOLDER)


def load(name):
    """Return a metric; skip the test if its weights cannot be had."""
    try:
        fetch_weights([name])
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return importlib.import_module(f"srvp.metrics.{METRICS[name].module}").load(CPU)


def frames(size=32):
    """Return random truth (2, 3, 1, size, size) and samples of it (2, 4, 3, 1, size, size)."""
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 1, size, size, generator=random)
    noise = torch.rand(2, 4, 3, 1, size, size, generator=random)
    return truth, 0.5 * truth[:, None] + 0.5 * noise


@pytest.mark.parametrize("name", PER_FRAME)
def test_a_score_depends_only_on_its_own_frame_and_the_true_one(name):
    truth, samples = frames()
    scores = load(name)(truth)(samples)
    assert scores.shape == (2, 4, 3)
    for b, s, f in [(0, 0, 1), (1, 3, 0), (1, 2, 2)]:
        compare = load(name)(truth[b : b + 1, f : f + 1])
        single = compare(samples[b : b + 1, s : s + 1, f : f + 1])
        # Products of matrices round differently for other batch sizes.
        torch.testing.assert_close(single.squeeze(), scores[b, s, f], rtol=1e-5, atol=1e-6)


def test_scores_are_those_of_the_functions():
    truth, samples = frames()
    functions = {"psnr": psnr, "ssim": ssim, "lpips": load_lpips(folder=fetched(WEIGHTS))}
    for name, function in functions.items():
        scores = load(name)(truth)(samples)
        for s in range(4):
            torch.testing.assert_close(scores[:, s], function(samples[:, s], truth))


@pytest.mark.parametrize("name", PER_FRAME)
def test_the_truth_scores_better_than_samples(name):
    truth, samples = frames()
    compare, sign = load(name)(truth), 1 if METRICS[name].lower_is_better else -1
    assert (sign * compare(truth[:, None]) < sign * compare(samples)).all()


@pytest.mark.parametrize("name", PER_FRAME)
def test_the_smallest_frames_are_those_of_the_table(name):
    size = METRICS[name].size
    truth, samples = frames(size=size)
    assert load(name)(truth)(samples).isfinite().all()
    if size > 1:
        with pytest.raises(ValueError, match=f"needs at least {size}"):
            load(name)(truth[..., 1:])


def test_a_metric_is_a_file_and_its_row(tmp_path, monkeypatch):
    (tmp_path / "largest_error.py").write_text(
        "def load(device):\n"
        "    return lambda truth: lambda x: (x - truth[:, None]).abs().amax(dim=(-3, -2, -1))\n"
    )
    monkeypatch.setattr("srvp.metrics.__path__", [*srvp.metrics.__path__, str(tmp_path)])
    row = Metric("largest error", "largest_error", lower_is_better=True, decimals=3)
    monkeypatch.setitem(METRICS, "error", row)
    truth, samples = frames()
    expected = (samples - truth[:, None]).abs().flatten(3).max(dim=3).values
    assert torch.equal(load("error")(truth)(samples), expected)


def test_the_table_imports_no_network():
    listing = "import sys, srvp.metrics.table; print(*sys.modules)"
    process = [sys.executable, "-c", listing]
    loaded = subprocess.run(process, capture_output=True, text=True, check=True).stdout.split()
    assert {m for m in loaded if m.startswith("srvp.")} == {"srvp.metrics", "srvp.metrics.table"}
    assert not {"lpips", "torchvision", "unearth"} & {*loaded}


def test_only_the_weights_that_metrics_need_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("srvp.metrics.weights.weights_folder", lambda: tmp_path)
    monkeypatch.setattr("srvp.metrics.i3d.WEIGHTS", WEIGHTS._replace(make=lambda: ({}, "a toy")))
    fetch_weights(["psnr", "ssim"])
    assert weights_provenance(["psnr", "ssim"]) == {}
    assert not list(tmp_path.iterdir())
    fetch_weights(["psnr", "fvd"])
    [file] = tmp_path.iterdir()
    assert weights_provenance(["psnr", "fvd"]) == {
        file.name: {"sha256": sha256(file), "source": "a toy"}
    }


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "srvp.metrics.lpips")
    with pytest.raises(ImportError, match=r"lpips.*install the packages of srvp\[metrics\]"):
        fetch_weights(["lpips"])
