"""Predictions of other programs: read in every format, scored like a model, refused if damaged."""

import json
import os
import random
import subprocess
import sys
import tracemalloc
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
from srvp.evaluation.references import trivial_predictors

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
    assert list(scores) == ["other", *trivial_predictors(6)]
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
            r"has shape \(3, 1, 5, 1, 64, 64\), expected .* only their predicted frames",
        ),
        (
            ZEROS[:, None, 1:][:, :0],
            r"has shape \(3, 0, 5, 1, 64, 64\), expected \(3 clips, samples",
        ),
        (ZEROS[..., :32], r"has shape \(3, 1, 6, 1, 64, 32\), expected"),
        (ZEROS[0], r"has shape \(6, 1, 64, 64\), expected"),
        (ZEROS.astype(int), r"wrong.npz is int64, expected uint8, or float in \[0, 1\]"),
        (ZEROS.astype(object), r"wrong.npz cannot be read \(.*Python objects"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, tmp_path, message):
    np.savez(tmp_path / "wrong.npz", array)
    with pytest.raises(ValueError, match=message):
        open_predictions(tmp_path / "wrong.npz", SHAPE)


def test_files_that_hold_no_predictions_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.npz does not exist: predictions are an"):
        open_predictions(tmp_path / "none.npz", SHAPE)
    np.savez(tmp_path / "several.npz", ZEROS, ZEROS)
    np.savez(tmp_path / "no.npz")
    for name in ("several", "no"):
        with pytest.raises(ValueError, match=rf"{name}.npz holds {name} array.*with one array"):
            open_predictions(tmp_path / f"{name}.npz", SHAPE)


@pytest.mark.parametrize("save_array", [np.save, np.savez, np.savez_compressed])
def test_predictions_are_not_read_into_memory_at_once(tmp_path, save_array):
    """All samples of a published test set may take more than a machine has."""
    shape = (100, 1, 6, 1, 64, 64)
    path = tmp_path / ("other.npy" if save_array is np.save else "other.npz")
    save_array(path, np.arange(np.prod(shape), dtype=np.float64).reshape(shape))
    tracemalloc.start()
    predictions = open_predictions(path, shape[:1] + shape[2:])
    last = predictions.read(99, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last.ravel()[-1] == np.prod(shape) - 1
    assert peak < np.prod(shape) * 8 / 3  # a few pieces of 1 MB


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, suffix):
    """Empty, cut or flipped at random: an error, unless only frames differ."""
    choose, path = random.Random(0), tmp_path / f"damaged{suffix}"
    small = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 1, 4, 4)
    np.savez_compressed(path, small) if suffix == ".npz" else np.save(path, small)
    content = path.read_bytes()
    contents = [b"", *(content[: choose.randrange(len(content))] for _ in range(30))]
    for _ in range(200):
        flipped = bytearray(content)
        flipped[choose.randrange(len(content))] = choose.randrange(256)
        contents.append(bytes(flipped))
    refused = 0
    for damaged in contents:
        path.write_bytes(damaged)
        try:
            assert open_predictions(path, small.shape).read(0, 0).shape == small.shape[1:]
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 31


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


def test_videos_are_in_the_order_of_their_numbers(tmp_path):
    """9 before 10, and digits that are no numbers to Python, such as a raised 2."""
    names = ["clip", "clip²", "clip2", "clip10", "clip10_2", "clip10_10"]
    for level, name in enumerate(names):
        folder = tmp_path / "videos" / name
        folder.mkdir(parents=True)
        for frame in range(2):
            Image.fromarray(np.full((4, 4), level, np.uint8)).save(folder / f"{frame}.png")
    found = open_predictions(tmp_path / "videos", (6, 2, 1, 4, 4))
    order = [names[found.read(clip, 0)[0, 0, 0, 0]] for clip in range(6)]
    assert order == ["clip", "clip2", "clip10", "clip10_2", "clip10_10", "clip²"]


def test_any_file_name_can_be_scored_except_those_of_the_trivial_predictors(
    setup, samples, tmp_path
):
    experiment, videos = setup
    odd = tmp_path / os.fsdecode(b"odd \xff / name".replace(b"/", b"-"))
    odd.mkdir()
    write_folder(odd, samples)
    scores = evaluate_predictions(odd, experiment, videos, tmp_path / "out")
    assert next(iter(scores)) == "odd \ufffd - name"
    assert "odd \ufffd" in (tmp_path / "out" / "curves.csv").read_text(encoding="utf-8")
    save(tmp_path / "black frame.npz", samples)
    with pytest.raises(ValueError, match="black frame.npz has the name of a predictor of every"):
        evaluate_predictions(tmp_path / "black frame.npz", experiment, videos, tmp_path / "out")


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "g"])
def test_any_floating_point_is_taken(setup, samples, tmp_path, kind):
    experiment, videos = setup
    np.save(tmp_path / "floats.npy", (samples / 255).astype(kind))
    scores = evaluate_predictions(tmp_path / "floats.npy", experiment, videos, tmp_path / "out")
    # The second sample is the truth; in half precision it is rounded to one part in 2000.
    assert scores["floats"].summary("psnr").mean > (60 if kind == "<f2" else 99.9)


def test_frames_out_of_range_are_refused_with_their_clips(setup, tmp_path):
    experiment, videos = setup
    save(tmp_path / "nan.npz", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(ValueError, match="nan, clips 0-1: predicted frames range from nan to nan"):
        evaluate_predictions(tmp_path / "nan.npz", experiment, videos, tmp_path / "out")


def test_the_command_writes_the_results_or_one_line(setup, samples, tmp_path):
    """In a folder whose params.yaml has the test set's experiment."""
    entry = yaml.safe_load((ROOT / "params.yaml").read_text())["experiments"]["tiny"]
    entry["data"] |= {"test_videos": 3, "test_frames": 11}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"experiments": {"mine": entry}}))
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "mine").symlink_to(setup[1].folder.parent)
    save(tmp_path / "other.npz", samples)
    (tmp_path / "empty.npz").touch()

    def run(name):
        options = ["score", name, "--experiment", "mine", "--out", "out"]
        command = [sys.executable, "-m", "srvp", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run("other.npz")
    assert done.returncode == 0 and "100.0" in done.stdout and "black frame" in done.stdout
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["other"]["psnr"] == 100
    failed = run("empty.npz")
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: empty.npz cannot be read (")
