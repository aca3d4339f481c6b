"""The door to all data sets: checks, frame sizes, actions, stale sets, runs that were killed."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import raw_archives
import torch
from conftest import ROOT
from PIL import Image
from raw_archives import configure

from srvp import data
from srvp.data import checksums, jobs
from srvp.data.config import DataConfig
from srvp.data.prepared import PreparedVideos
from srvp.data.sets import SETS
from srvp.data.staging import Fold, Video, write_prepared
from srvp.schema import ConfigError

CPU = torch.device("cpu")


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """The folder `data/`, with small stand-ins of two sets."""
    root = tmp_path_factory.mktemp("data")
    raw_archives.write_videos(root / "videos")
    raw_archives.write_bair(root / "bair")
    (root / "mnist").symlink_to(ROOT / "data" / "mnist")
    return root


@pytest.fixture(scope="module")
def bair(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bair")
    data.prepare(configure("bair", test_videos=3), raw, out)
    return out


# What can be known is checked at the start.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "kth", "channels": 3}, "channels is 3, but KTH has 1"),
        (
            {"dataset": "kth", "channels": 1, "actions": 4},
            "actions is 4, but KTH has 0 .*expected 0$",
        ),
        ({"dataset": "bair", "actions": 3}, r"actions is 3, but BAIR has 4 .*expected 0 or 4$"),
        ({"dataset": "bair", "actions": 4, "frame_step": 2}, "expected 0 or 8$"),
        ({"dataset": "dmmnist", "channels": 1, "frame_step": 2}, "frame_step is 2, but .*remove"),
    ],
)
def test_settings_that_a_data_set_cannot_have_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**{"channels": 3, "test_videos": 1, "test_frames": 5, **changes})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "kth",
            r"data/kth lacks 599 .* needs boxing\.zip, .*walking\.zip from https://www\.csc\.kth",
        ),
        (
            "human36m",
            r"data/human36m holds no .* needs the \.tgz archives .* from http://vision\.imar",
        ),
        ("bair", r"data/bair holds no train/.* needs bair_robot.*v0\.tar from http://rail\.eecs"),
        ("videos", r"data/videos holds no videos: it needs files such as \.mp4"),
        ("smmnist", r"data/mnist/train-images.* is missing: .* `dvc pull data\.dvc`"),
    ],
)
def test_missing_raw_files_say_what_to_put_where(tmp_path, name, message):
    config = DataConfig(name, SETS[name].channels or 3, test_videos=1, test_frames=5)
    with pytest.raises(FileNotFoundError, match=message):
        data.prepare(config, tmp_path / "data", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 128}, r"size 64, but data\.size is 128"),
        ({"seed": 7}, r"seed 42, but data\.seed is 7"),
        ({"test_frames": 20}, r"test_frames 30, but data\.test_frames is 20"),
        ({"test_videos": 4}, r"test_videos 3, but data\.test_videos is 4"),
        ({"test_frames": 15, "frame_step": 2}, r"frame_step 1, but data\.frame_step is 2"),
    ],
)
def test_test_set_of_other_settings_is_refused(bair, changes, message):
    with pytest.raises(ValueError, match=f"test was prepared with {message}: .*again"):
        data.open_test(configure("bair", **changes), bair)


def test_fewer_test_videos_are_the_first_of_those_prepared(bair):
    fewer, all_of_them = (data.open_test(configure("bair", test_videos=n), bair) for n in (2, 3))
    assert fewer.clips.tolist() == all_of_them.clips[:2].tolist()


def test_training_set_of_other_settings_is_refused(raw, bair, tmp_path):
    with pytest.raises(ValueError, match=r"train was prepared with size 64, but .* 128"):
        data.open_training(configure("bair", size=128), bair, CPU)
    data.prepare(DataConfig("smmnist", 1, test_videos=2, test_frames=2), raw, tmp_path)
    for door in (data.open_test, partial(data.open_training, device=CPU)):
        with pytest.raises(ValueError, match=r"dataset smmnist, but data\.dataset is dmmnist"):
            door(DataConfig("dmmnist", 1, test_videos=2, test_frames=2), tmp_path)
        with pytest.raises(ValueError, match=r"size 64, but data\.size is 32"):
            door(DataConfig("smmnist", 1, test_videos=2, test_frames=2, size=32), tmp_path)


def test_frames_and_actions_of_another_form_are_refused(tmp_path):
    """Also of a set that was written by hand, which tells no settings."""
    frames, actions = np.zeros((12, 3, 64, 64), np.uint8), np.zeros((12, 3), np.float32)
    fold = Fold([], [(0, 0)], 12)
    write_prepared(tmp_path / "test", [Video("0", frames, {"actions": actions})], fold)
    for changes, message in (
        ({"dataset": "videos", "channels": 1}, "channels 3, but data.channels is 1"),
        ({"dataset": "bair", "size": 32}, "size 64, but data.size is 32"),
        ({"dataset": "bair", "actions": 4}, "actions 3, but data.actions is 4"),
    ):
        config = DataConfig(**{"channels": 3, "test_videos": 1, "test_frames": 12} | changes)
        with pytest.raises(ValueError, match=message):
            data.open_test(config, tmp_path)


def test_too_many_test_videos_are_an_error_whose_advice_helps(raw, tmp_path):
    with pytest.raises(ValueError, match=r"test_videos is 9, .* only 2 clips .* 12: lower either"):
        data.prepare(configure("videos", test_videos=9), raw, tmp_path)
    assert not (tmp_path / "test").exists()
    for config in (
        configure("videos", test_videos=2),
        configure("videos", test_videos=9, test_frames=3),
    ):
        data.prepare(config, raw, tmp_path)
        assert len(data.open_test(config, tmp_path).clips) == config.test_videos


# Laws of what is read.


@pytest.mark.parametrize("name", ["bair", "videos"])
@pytest.mark.parametrize("size", [32, 128])
def test_frames_of_another_size_show_the_same(raw, tmp_path, name, size):
    """Against those of 64 pixels, both averaged to 32."""
    averaged = []
    for side in (64, size):
        data.prepare(configure(name, size=side), raw, tmp_path / str(side))
        frames = PreparedVideos.open(tmp_path / str(side) / "train").clip(0, 0, 12)
        assert frames.shape[1:] == (3, side, side)
        averaged.append(frames.reshape(12, 3, 32, side // 32, 32, side // 32).mean((3, 5)))
    # Lanczos and averages differ at edges; another frame or video is off by 10 and more.
    assert np.abs(averaged[0] - averaged[1]).mean() < 4


@pytest.mark.parametrize("name", ["bair", "videos"])
def test_validation_is_on_other_videos_than_training(raw, tmp_path, name):
    data.prepare(configure(name), raw, tmp_path)
    folds = data.open_training(configure(name), tmp_path, CPU)
    train, validation = (set(fold.subset.tolist()) for fold in folds)
    assert train and validation and not train & validation
    assert train | validation == set(range(len(folds.train.videos)))


def test_validation_of_moving_mnist_is_on_other_digits_than_training(raw, tmp_path):
    config = DataConfig("dmmnist", 1, test_videos=2, test_frames=2)
    data.prepare(config, raw, tmp_path)
    folds = data.open_training(config, tmp_path, CPU)
    train, validation = ({x.tobytes() for x in fold.digits.numpy()} for fold in folds)
    # MNIST holds no training digit twice.
    assert (len(train), len(validation), len(train & validation)) == (57_000, 3_000, 0)
    assert folds.train.deterministic and folds.validation.deterministic


def test_actions_are_those_taken_in_the_frames_drawn(bair):
    config = configure("bair", actions=4, test_videos=3)
    test = data.open_test(config, bair)
    stored = [raw_archives.bair_video(number)[1] for number in range(6, 9)]
    assert np.array_equal(test.test_actions([2, 0]), [stored[2], stored[0]])
    train = data.open_training(config, bair, CPU).train
    for seed in range(20):
        frames, actions = train.draw(1, 5, torch.Generator().manual_seed(seed))
        pixels = (frames[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
        matches = [
            taken[start : start + 5]
            for shown, taken, _ in map(raw_archives.bair_video, range(6))
            for start in range(26)
            if np.array_equal(shown[start : start + 5], pixels)
        ]
        assert any(np.array_equal(match, actions[0]) for match in matches)


def test_clips_of_skipped_frames_have_the_actions_between_them(raw, tmp_path):
    config = configure("bair", actions=8, test_frames=15, frame_step=2)
    data.prepare(config, raw, tmp_path)
    frames, actions = data.open_training(config, tmp_path, CPU).train.draw(
        1, 15, torch.Generator().manual_seed(0)
    )
    pixels = (frames[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    (taken,) = {
        (number, start): video[1][start:]
        for number in range(6)
        for start in (0, 1)
        if np.array_equal((video := raw_archives.bair_video(number))[0][start::2], pixels)
    }.values()
    together = np.concatenate([taken, taken[-1:]])[:30].reshape(15, 8)
    assert np.array_equal(actions[0], together)


def test_models_without_actions_are_given_none(bair):
    assert data.open_test(configure("bair"), bair).test_actions([0]) is None
    batches = data.open_training(configure("bair"), bair, CPU).train.batches(2, 5, seed=0)
    assert next(batches).actions is None


def test_a_machine_that_only_trains_needs_no_decoder(bair, monkeypatch):
    """PyAV and the files of the data sets serve to prepare, not to read what is prepared."""
    for name in [name for name in sys.modules if name.startswith(("srvp.data.sets.", "av."))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("av", "srvp.data.raw"):
        monkeypatch.setitem(sys.modules, name, None)
    config = configure("bair")
    data.open_test(config, bair).test_clips([0])
    data.open_training(config, bair, CPU).train.draw(1, 2, torch.Generator())
    with pytest.raises(ImportError):
        data.prepare(config, bair, bair)


# What is up to date, and what is stale


def test_another_choice_of_clips_decodes_nothing_again(raw, tmp_path, monkeypatch):
    data.prepare(configure("videos"), raw, tmp_path / "a")
    monkeypatch.setattr(jobs, "make_part", None)
    config = configure("videos", test_videos=3, test_frames=3, frame_step=2)
    data.prepare(config, raw, tmp_path / "a")
    monkeypatch.undo()
    data.prepare(config, raw, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_frames_replaced_by_others_of_equal_size_are_noticed(tmp_path):
    config = configure("videos", test_videos=1)
    for value in (10, 200):
        for fold in ("train", "validation", "test"):
            folder = tmp_path / "videos" / fold / "clip"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(12):
                Image.new("RGB", (64, 64), (value,) * 3).save(folder / f"{number}.bmp")
        data.prepare(config, tmp_path, tmp_path / "out")
        for fold in ("train", "test"):
            frames = PreparedVideos.open(tmp_path / "out" / fold).array("frames")
            assert (np.asarray(frames) == value).all()


def test_set_and_raw_files_copied_to_another_machine_are_up_to_date(raw, tmp_path, monkeypatch):
    """There, files have other times, and no checksum is recorded."""
    here, there = tmp_path / "here", tmp_path / "there"
    data.prepare(configure("videos"), raw, here / "videos")
    shutil.copytree(here / "videos", there / "videos", copy_function=shutil.copy)
    shutil.copytree(raw / "videos", there / "data" / "videos", copy_function=shutil.copy)
    monkeypatch.setattr(jobs, "make_part", None)
    data.prepare(configure("videos"), there / "data", there / "videos")
    assert content(there / "videos") == content(here / "videos")


def test_a_set_that_lost_its_frames_is_made_again(raw, tmp_path):
    data.prepare(configure("videos"), raw, tmp_path / "out")
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "train" / "frames.npy").unlink()
    data.prepare(configure("videos"), raw, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_raw_files_that_have_not_changed_are_not_read(raw, tmp_path, monkeypatch):
    data.prepare(configure("videos"), raw, tmp_path / "out")
    monkeypatch.setattr(checksums, "sha256", None)
    data.prepare(configure("videos"), raw, tmp_path / "out")


# Runs that were killed, with processes that decode


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Raw files that take a while to read."""
    root = tmp_path_factory.mktemp("many")
    raw_archives.write_bair(root / "bair", raw_archives.bair_files(train=30, test=2, videos=8))
    return root


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_run_that_was_killed_is_completed_by_the_next(many, tmp_path, monkeypatch, capfd, kind):
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(
        target=prepare_in_own_session, args=(many, out)
    )
    process.start()
    deadline = time.monotonic() + 60
    while len(list(out.glob(".staging/parts/*/*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, kind) if kind == signal.SIGKILL else os.killpg(process.pid, kind)
    process.join()
    while processes_of_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)  # its workers end with it
    assert not processes_of_session(process.pid)
    assert not (out / "train").exists()
    assert capfd.readouterr().err.count("Traceback") <= (kind == signal.SIGINT)  # the main one's
    finished = len(list(out.glob(".staging/parts/*/*.json")))
    assert 4 <= finished < 32

    make_part, made = jobs.make_part, []
    monkeypatch.setattr(jobs, "make_part", lambda *args: made.append(make_part(*args)))
    data.prepare(configure("bair"), many, out)
    assert len(made) == 32 - finished
    data.prepare(configure("bair"), many, tmp_path / "undisturbed")
    assert content(out) == content(tmp_path / "undisturbed")


def prepare_in_own_session(raw: Path, out: Path) -> None:
    os.setsid()
    os.environ["SRVP_WORKERS"] = "2"
    data.prepare(configure("bair"), raw, out)


def processes_of_session(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
