import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

from srvp.data.prepared import PreparedVideos
from srvp.data.staging import Fold, Video, write_prepared
from srvp.evaluation.predictions import evaluate_predictions, open_predictions
from srvp.evaluation.protocol import evaluate

SHAPE = (3, 6, 1, 64, 64)


@pytest.fixture(scope="module")
def setup(tiny, tmp_path_factory):
    """Three test clips of eleven frames, of which six are predicted."""
    folder = tmp_path_factory.mktemp("prepared") / "test"
    random = np.random.RandomState(0)
    clips = random.randint(0, 256, (3, 11, 1, 8, 8)).astype(np.uint8).repeat(8, 3).repeat(8, 4)
    videos = [Video(f"{i}", clip) for i, clip in enumerate(clips)]
    fold = Fold(clips=[(i, 0) for i in range(3)], clip_frames=11)
    write_prepared(folder, videos, fold, dataset="smmnist")
    experiment = replace(tiny, data=replace(tiny.data, test_videos=3, test_frames=11))
    return experiment, PreparedVideos.open(folder)


@pytest.fixture
def samples(setup):
    """Two samples a clip, of which the second is the truth: uint8 (3, 2, 6, 1, 64, 64)."""
    truth = setup[1].test_clips(range(3))[:, 5:]
    return np.stack([255 - truth, truth], axis=1)


def write_folder(folder, samples, sizes=(64, 64)):
    """Folders of images without leading zeros, as `9` and `10`."""
    for clip, sample, frame in np.ndindex(samples.shape[:3]):
        path = folder / f"{clip + 8}" / f"{sample + 9}" / f"{frame + 7}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(samples[clip, sample, frame, 0]).resize(sizes).save(path)


def save(path, samples):
    if path.suffix == ".npz":
        np.savez_compressed(path, predictions=samples)
    elif path.suffix == ".npy":
        np.save(path, samples)
    else:
        write_folder(path, samples)


@pytest.mark.parametrize("name", ["other.npz", "other.npy", "other"])
def test_every_format_is_scored_as_a_predictor_would_be(setup, samples, tmp_path, name):
    experiment, videos = setup
    save(tmp_path / name, samples)
    scores = evaluate_predictions(tmp_path / name, experiment, videos, tmp_path / "out")
    given = torch.from_numpy(samples).float() / 255
    expected = evaluate(
        {"other": lambda _, clips: iter([given[clips]])},
        videos,
        experiment.evaluation,
        torch.device("cpu"),
        tmp_path / "expected",
    )["other"]
    assert list(scores) == ["other", "copy last frame", "mean frame", "black frame"]
    for metric in ("psnr", "ssim"):
        np.testing.assert_array_equal(scores["other"].samples[metric], expected.samples[metric])
    assert scores["other"].summary("psnr") == (100.0, 0.0)  # the second sample is the truth
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert protocol["source"]["file"] == name and "best of 2 samples" in protocol["protocol"]


@pytest.mark.parametrize("convert", [lambda x: x / 255, lambda x: (x / 255).astype(np.float32)])
def test_floats_and_bytes_score_alike(setup, samples, tmp_path, convert):
    experiment, videos = setup
    save(tmp_path / "bytes.npz", samples[:, 0])
    save(tmp_path / "floats.npz", convert(samples[:, 0]))
    scores = [
        evaluate_predictions(tmp_path / f"{name}.npz", experiment, videos, tmp_path / name)[name]
        for name in ("bytes", "floats")
    ]
    for metric in ("psnr", "ssim"):
        values = [s.samples[metric] for s in scores]
        assert values[0].shape == (3, 1)
        np.testing.assert_allclose(*values, rtol=1e-5)


ZEROS = np.zeros(SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            ZEROS[:2],
            r"wrong.npz has shape \(2, 1, 6, .*, expected \(3 clips, samples, 6, 1, 64, 64\)",
        ),
        (
            ZEROS[:, 1:],
            r"has shape \(3, 1, 5, 1, 64, 64\), expected .* only their predicted",
        ),
        (ZEROS[..., :32], r"has shape \(3, 1, 6, 1, 64, 32\), expected"),
        (ZEROS[0], r"has shape \(6, 1, 64, 64\), expected"),
        (ZEROS.astype(int), r"wrong.npz is int64, expected uint8, or float in \[0, 1\]"),
        (ZEROS.astype(object), r"wrong.npz cannot be read \(Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, tmp_path, message):
    np.savez(tmp_path / "wrong.npz", array)
    with pytest.raises(ValueError, match=message):
        open_predictions(tmp_path / "wrong.npz", SHAPE)


def test_files_that_hold_no_predictions_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.npz does not exist: predictions are an"):
        open_predictions(tmp_path / "none.npz", SHAPE)
    (tmp_path / "damaged.npz").write_bytes(b"PK\3\4 and no more")
    np.savez(tmp_path / "two.npz", ZEROS, ZEROS)
    for name in ("damaged", "two"):
        with pytest.raises(ValueError, match=rf"{name}.npz cannot be read .*with one array"):
            open_predictions(tmp_path / f"{name}.npz", SHAPE)


def test_folders_that_do_not_fit_are_refused(samples, tmp_path):
    write_folder(tmp_path / "few", samples[:2])
    with pytest.raises(ValueError, match=r"few holds 4 videos, expected as many for each of 3"):
        open_predictions(tmp_path / "few", SHAPE)
    write_folder(tmp_path / "small", samples[:, :1], sizes=(48, 32))
    with pytest.raises(ValueError, match=r"small/8/9 has shape \(6, 1, 32, 48\), expected .*64\)"):
        open_predictions(tmp_path / "small", SHAPE).read(0, 0)
    (tmp_path / "small" / "9" / "9" / "7.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"small/9/9 cannot be read \(9/9/7\.png is damaged"):
        open_predictions(tmp_path / "small", SHAPE).read(1, 0)


def test_command_line_writes_the_results_or_one_line(setup, samples, tmp_path):
    """In a repository whose params.yaml has the test set's experiment."""
    _, videos = setup
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    entry = params["experiments"]["tiny"]
    entry["data"] |= {"test_videos": 3, "test_frames": 11}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"experiments": {"mine": entry}}))
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "mine").symlink_to(videos.folder.parent)
    save(tmp_path / "other.npz", samples)
    save(tmp_path / "nan.npz", np.full(SHAPE, np.nan, np.float32))

    def run(name):
        options = ["--experiment", "mine", "--out", "out"]
        command = [sys.executable, "-m", "srvp", "score", name, *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run("other.npz")
    assert done.returncode == 0 and "100.0" in done.stdout and "black frame" in done.stdout
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["other"]["psnr"] == 100
    failed = run("nan.npz")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: nan, clips 0-1: predicted frames")
    assert "Traceback" not in failed.stderr
