"""Own videos as people keep them: what is found in a folder, for which fold, and what is said."""

import hashlib
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import video_files
import yaml
from conftest import ROOT
from PIL import Image
from raw_archives import configure
from video_files import FRAMES, HEIGHT, INPUTS, WIDTH, video

from srvp.__main__ import main
from srvp.data.folders import FOLDS, RawVideo, find_videos, fold_of, search
from srvp.data.listing import listing
from srvp.data.prepared import PreparedVideos
from srvp.data.raw import DamagedError
from srvp.data.sets import videos
from srvp.data.sets.videos import read_clip

FILE = INPUTS / "plain.mp4"  # 40 frames at 10 a second


def put(*paths: Path | str | bytes, source: Path = FILE) -> None:
    """Copy a video to each path."""
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(os.fsencode(source), os.fsencode(path))


def found(folder: Path) -> dict[str, list[str]]:
    """Return the names of the files of each video, by its name."""
    return {video.name: [file.name for file in video.files] for video in find_videos(folder)}


# Folds


@pytest.mark.parametrize(
    ("fold", "names"),
    [
        ("train", "train Train TRAINING training trn train_set train-videos 01_train train2017"),
        ("validation", "val VAL valid validation Validation validate dev Dev val2017 valset"),
        ("test", "test Test testing TESTING tests eval Evaluation testset test_data held-out"),
    ],
)
def test_folders_mean_the_folds_that_people_name_them_for(tmp_path, fold, names):
    for name in names.split():
        put(*(tmp_path / name / "scene" / f"{i}.mp4" for i in range(10)))
        put(*(tmp_path / "dataset" / name / f"{i}.mp4" for i in range(10)))
        video_files.write_frames(tmp_path / name / "walk", ["1.png", "2.png"])
    folds = {video.name: video.fold for video in find_videos(tmp_path)}
    assert len(folds) == 21 * len(names.split()) and set(folds.values()) == {fold}
    told = listing(tmp_path).splitlines()[-2]
    assert all(f"{name}/ for {fold}" in told for name in names.split())


def test_frames_of_one_video_for_each_fold(tmp_path):
    for fold in ("Train", "val", "TEST"):
        video_files.write_frames(tmp_path / fold, ["1.png", "2.png"])
    folds = {video.name: video.fold for video in find_videos(tmp_path)}
    assert folds == {"Train": "train", "val": "validation", "TEST": "test"}


@pytest.mark.parametrize(
    "name", ["contest/a.mp4", "testimony/a.mp4", "test.mp4", "valley/train.avi"]
)
def test_other_names_mean_no_fold(name):
    folds = {fold_of(name, test_fraction=fraction) for fraction in (0.0, 1.0)}
    assert "test" in folds and len(folds) == 2


def test_split_of_the_default_seed_is_what_it_always_was():
    for number in range(500):
        name = f"folder/clip é {number}.mp4"
        uniform = int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13
        fold = "test" if uniform < 0.1 else "validation" if uniform < 0.15 else "train"
        assert fold_of(name) == fold_of(name, seed=42) == fold
    folds = [fold_of(f"{number}.mp4") for number in range(60)]  # commit f853970 printed these:
    assert [i for i, fold in enumerate(folds) if fold == "test"] == [0, 7, 8, 9, 16, 37]
    assert [i for i, fold in enumerate(folds) if fold == "validation"] == [33, 34]


def test_seeds_split_independently():
    names = [f"{number}.mp4" for number in range(4000)]
    first, second = ({n for n in names if fold_of(n, seed=s) == "test"} for s in (0, 1))
    # Four standard deviations of binomial counts.
    assert abs(len(first) - 400) < 80 and abs(len(second) - 400) < 80
    assert abs(len(first & second) - 40) < 26
    assert all(fold_of(n, seed=0, test_fraction=0.2) == "test" for n in first)


def test_fractions_and_seed_are_those_of_the_configuration(tmp_path):
    put(*(tmp_path / "raw" / f"{number}.mp4" for number in range(12)))
    split = {"test_fraction": 0.5, "validation_fraction": 0.25, "seed": 3}
    videos.prepare(tmp_path / "raw", tmp_path / "out", configure("videos", **split))
    names = {fold: {v.name for v in find_videos(tmp_path / "raw", **split) if v.fold == fold}
             for fold in FOLDS}  # fmt: skip
    train, test = (PreparedVideos.open(tmp_path / "out" / fold) for fold in ("train", "test"))
    assert set(test.names) == names["test"]
    assert {train.names[i] for i in train.validation} == names["validation"]
    assert all(len(part) > 0 for part in names.values())


def test_adding_videos_moves_none(tmp_path):
    put(*(tmp_path / f"{number}.mp4" for number in range(40)))
    video_files.write_frames(tmp_path / "walk", ["1.png", "2.png"])
    before = {video.name: video.fold for video in find_videos(tmp_path)}
    put(*(tmp_path / "more" / f"{number}.mp4" for number in range(40)))
    video_files.write_frames(tmp_path / "run", ["a1.png", "a2.png", "b1.png", "b2.png"])
    after = {video.name: video.fold for video in find_videos(tmp_path)}
    assert before.items() <= after.items() and len(after) == 83


# Sequences of pictures


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "9.png", "10.png", "100.png"],
        ["frame_1.png", "frame_2.png", "frame_10.png"],
        ["frame (1).png", "frame (2).png", "frame (10).png"],
        ["IMG_0009.JPG", "IMG_0010.jpg", "IMG_0011.jpeg"],
        ["2024-01-31 23.59.59.png", "2024-02-01 00.00.00.png"],
        ["PXL_20231231_235959123.jpg", "PXL_20240101_000000007.jpg"],
        ["1700000000.999999.png", "1700000001.000001.png"],
        ["t0.5.png", "t1.png", "t1.5.png", "t10.png"],
        ["t0.1.png", "t0.15.png", "t0.2.png", "t1.0.png"],  # times
        ["t1.1.png", "t1.9.png", "t1.10.png", "t2.1.png"],  # takes and their frames
        ["\u0661.png", "\u0662.png", "\u0661\u0660.png"],  # Arabic-Indic 1, 2, 10
        ["1\u00b22.png", "\u00b21.png"],  # superscripts are digits that int() does not know
        [f"{10**200}.png", f"{10**200 + 1}.png"],
    ],
)
def test_pictures_of_a_folder_are_one_video_in_the_order_of_their_numbers(tmp_path, names):
    video_files.write_frames(tmp_path / "walk", names)
    assert found(tmp_path) == {"walk": names}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_1", "a_2", "b_1", "b_2"], {"a_*.png": 2, "b_*.png": 2}),
        (["cam1_01", "cam1_02", "cam2_01"], {"cam1_*.png": 2}),
        (["cam1_01", "cam1_02", "cam2_01", "cam2_02"], {"cam1_*.png": 2, "cam2_*.png": 2}),
        (["01_left", "01_right", "02_left", "02_right"], {"*_left.png": 2, "*_right.png": 2}),
        (["1", "2", "3", "1_mask", "2_mask", "3_mask"], {"*.png": 3, "*_mask.png": 3}),
    ],
)
def test_several_sequences_of_a_folder_are_as_many_videos(tmp_path, names, expected):
    video_files.write_frames(tmp_path / "walk", [f"{name}.png" for name in names])
    several = len(expected) > 1
    counts = {video.name: len(video.files) for video in find_videos(tmp_path)}
    assert counts == {f"walk/{name}" if several else "walk": n for name, n in expected.items()}


def test_frames_and_masks_of_other_suffixes_are_two_videos(tmp_path):
    video_files.write_frames(tmp_path, ["1.jpg", "2.jpg", "1.png", "2.png"])
    assert found(tmp_path) == {"*.jpg": ["1.jpg", "2.jpg"], "*.png": ["1.png", "2.png"]}


NO_SEQUENCE = "a picture that belongs to no numbered sequence"


@pytest.mark.parametrize("poster", ["poster.jpg", "cover1.png", "clip/poster.jpg", "0.bmp"])
def test_a_poster_beside_videos_is_left_out(tmp_path, poster):
    put(tmp_path / "clip" / "a.mp4")
    video_files.write_frames(tmp_path / "walk", ["1.png", "2.png"])
    video_files.write_frames((tmp_path / poster).parent, [Path(poster).name])
    assert list(found(tmp_path)) == ["clip/a.mp4", "walk"]
    assert search(tmp_path).left_out == {poster: NO_SEQUENCE}


def test_thumbnails_and_a_picture_beside_frames_are_left_out(tmp_path):
    put(tmp_path / "a1.mp4", tmp_path / "a2.MOV")
    video_files.write_frames(tmp_path, ["a1.jpg", "A2.png"])
    video_files.write_frames(tmp_path / "walk", ["1.png", "2.png", "all.png"])
    assert list(found(tmp_path)) == ["a1.mp4", "a2.MOV", "walk"]
    thumbnail = "a picture of the video of the same name"
    assert search(tmp_path).left_out == {
        "A2.png": thumbnail, "a1.jpg": thumbnail, "walk/all.png": NO_SEQUENCE
    }  # fmt: skip


def test_one_picture_is_a_video_if_there_is_nothing_else(tmp_path):
    video_files.write_frames(tmp_path, ["0.jpg"])
    assert found(tmp_path) == {".": ["0.jpg"]}


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp", "avif"])
def test_files_of_one_picture_or_many(tmp_path, suffix):
    video_files.write_frames(tmp_path / "walk", [f"{i}.{suffix}" for i in range(3)])
    for number in range(2):
        video_files.write_film(tmp_path / "films" / f"film {number}.{suffix}")
    assert found(tmp_path) == {
        **{f"films/film {n}.{suffix}": [f"film {n}.{suffix}"] for n in range(2)},
        "walk": [f"{i}.{suffix}" for i in range(3)],
    }
    assert [len(list(video.frames())) for video in find_videos(tmp_path)] == [FRAMES, FRAMES, 3]


def test_film_among_frames_is_an_error_that_names_it(tmp_path):
    video_files.write_frames(tmp_path, ["1.tif", "2.tif"])
    video_files.write_film(tmp_path / "3.tif")
    (sequence,) = find_videos(tmp_path)
    with pytest.raises(ValueError, match=r"^3\.tif holds many pictures, but is one of several"):
        list(sequence.frames())


# Files, folders, links, names


def test_suffixes_of_videos_in_any_case(tmp_path):
    suffixes = """mp4 M4V MOV qt 3gp 3g2 AVI divx mkv WEBM wmv asf flv f4v ogv y4m dv mjpeg mpg MPEG
    vob ts MTS m2ts gif"""
    put(*(tmp_path / f"a.{suffix}" for suffix in suffixes.split()))
    assert len(found(tmp_path)) == len(suffixes.split())


def test_all_that_is_left_out_is_named_with_the_reason(tmp_path):
    put(tmp_path / "a.mp4", tmp_path / ".hidden.mp4", tmp_path / ".cache" / "b.mp4")
    put(tmp_path / "clip.mp4x", tmp_path / "noise.wav")
    (tmp_path / "empty.mp4").mkdir()
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    (tmp_path / "round.mp4").symlink_to("round.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert search(tmp_path).left_out == {
        ".cache": "hidden",
        ".hidden.mp4": "hidden",
        "clip.mp4x": "no suffix of a video or picture",
        "empty.mp4": "an empty folder",
        "gone.mp4": "a broken link",
        "noise.wav": "no suffix of a video or picture",
        "pipe.mp4": "not a regular file",
        "round.mp4": "a broken link",
    }
    told = listing(tmp_path)
    assert all(f"\n{name:40} left out: " in told for name in search(tmp_path).left_out)


def test_folder_with_a_suffix_of_a_video_holds_frames(tmp_path):
    video_files.write_frames(tmp_path / "clip.mp4", ["1.png", "2.png"])
    assert found(tmp_path) == {"clip.mp4": ["1.png", "2.png"]}


def test_links_are_followed_once(tmp_path):
    disk, raw = tmp_path / "disk", tmp_path / "raw"
    put(disk / "walk" / "a.mp4", disk / "b.mp4", raw / "own" / "c.mp4")
    (raw / "train").symlink_to(disk)
    (raw / "val").symlink_to(raw / "own")
    (disk / "walk" / "round").symlink_to("..")
    (raw / "up").symlink_to(raw)
    (raw / "linked.mp4").symlink_to(disk / "b.mp4")
    expected = ["linked.mp4", "own/c.mp4", "train/b.mp4", "train/walk/a.mp4"]
    assert list(found(raw)) == expected
    again = "a link to a folder that is listed already"
    assert search(raw).left_out == {"train/walk/round": again, "up": again, "val": again}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_cannot_be_opened_is_named(tmp_path):
    put(tmp_path / "a.mp4", tmp_path / "closed" / "b.mp4")
    (tmp_path / "closed").chmod(0)
    assert search(tmp_path).left_out == {"closed": "it cannot be opened (Permission denied)"}
    (tmp_path / "closed").chmod(0o700)


ODD_NAMES = [
    b"caf\xe9.mp4",
    b"two\nlines.mp4",
    b"\x1b[31mred.mp4",
    b"%d:|\\.mp4",
    "é日本 .mp4".encode(),
]


def test_names_of_any_bytes(tmp_path):
    raw = os.fsencode(tmp_path / "raw")
    put(*(os.path.join(raw, fold, name) for fold in (b"train", b"val", b"test")
          for name in ODD_NAMES))  # fmt: skip
    video_files.write_frames(Path(os.fsdecode(os.path.join(raw, b"train", b"\xff"))), ["1.png"] * 1)
    told = listing(Path(os.fsdecode(raw)))
    told.encode()  # can be printed
    assert len(told.splitlines()) == 1 + 15 + 1 + 2 and "cannot be read" not in told
    assert r"test/caf\xe9.mp4" in told and r"test/two\nlines.mp4" in told
    config = configure("videos", test_videos=1)
    videos.prepare(Path(os.fsdecode(raw)), tmp_path / "out", config)
    assert r"test/caf\xe9.mp4" in PreparedVideos.open(tmp_path / "out" / "test").names


def test_bytes_of_a_name_do_not_change_its_fold(tmp_path):
    put(*(os.path.join(os.fsencode(tmp_path), b"\xe9 %d.mp4" % n) for n in range(60)))
    folds = {video.fold for video in find_videos(tmp_path, test_fraction=0.3)}
    assert folds == set(FOLDS)


# The listing


def test_listing_has_a_line_for_every_file_and_writes_nothing(tmp_path):
    (tmp_path / "train").mkdir()
    written = video_files.write_all(tmp_path / "train")
    put(tmp_path / "val" / "sound.mp4", source=INPUTS / "sound_only.mp4")
    put(tmp_path / "val" / "live.webm", source=INPUTS / "no_duration.webm")
    put(tmp_path / "val" / "drops.avi", source=INPUTS / "dropped_frames.avi")
    video_files.write_frames(tmp_path / "test" / "walk", ["1.jpg", "2.jpg"])
    (tmp_path / "test" / "empty.gif").touch()
    cut = (INPUTS / "index_first.mp4").read_bytes()[:4000]
    (tmp_path / "test" / "cut.mp4").write_bytes(cut)
    before = sorted(tmp_path.rglob("*"))
    lines = listing(tmp_path).splitlines()
    assert sorted(tmp_path.rglob("*")) == before
    rows = {line[:40].strip(): line[40:].split() for line in lines[1:-2]}
    assert rows["val/live.webm"] == ["validation", "40", f"{WIDTH}x{HEIGHT}", "10", "4.0"]
    assert rows["val/drops.avi"][1] == "30"
    assert " ".join(rows["val/sound.mp4"]).endswith("it holds sound and no video")
    assert "cannot be read: it is damaged" in " ".join(rows["test/empty.gif"])
    assert "cannot be read: it is truncated" in " ".join(rows["test/cut.mp4"])
    assert rows["test/walk"] == ["test", "2", f"{WIDTH}x{HEIGHT}"]
    for path in written:
        assert rows[f"train/{path.name}"][:3] == ["train", str(FRAMES), f"{WIDTH}x{HEIGHT}"]
    total = len(written) + 6
    assert len(rows) == total
    assert lines[-2] == "folders: test/ for test, train/ for train, val/ for validation"
    counts = f"{len(written)} train, 3 validation, 3 test"
    assert lines[-1] == f"{total} videos: {counts}; 3 cannot be read"


def test_listing_of_many_files_that_are_left_out_is_short(tmp_path):
    put(tmp_path / "a.mp4")
    for number in range(100):
        (tmp_path / f"{number}.txt").touch()
    lines = listing(tmp_path).splitlines()
    assert len(lines) == 24
    assert lines[-2] == "80 more are left out: no suffix of a video or picture"


def test_folder_without_videos_is_an_error_of_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no videos: it needs files such as .mp4"):
        listing(tmp_path / "missing")
    for name in ("a.txt", "b.mp3", "c.heic", "d.pdf"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"left out: a\.txt \(no suffix") as error:
        listing(tmp_path)
    assert "\n" not in str(error.value)


def test_listing_is_a_command(tmp_path, monkeypatch, capfd):
    put(os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4"))
    monkeypatch.setattr(sys, "argv", ["srvp", "videos", str(tmp_path)])
    main()
    assert capfd.readouterr().out.splitlines()[-1].startswith("1 videos: ")


def test_listing_shows_the_split_of_an_experiment(tmp_path, monkeypatch, capfd):
    """It would otherwise show other folds than those that are trained on."""
    put(*(tmp_path / f"{i}.mp4" for i in range(20)))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    split = {"dataset": "videos", "test_fraction": 0.4, "validation_fraction": 0.3, "seed": 7}
    params["experiments"]["tiny"]["data"] |= split
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setenv("SRVP_ROOT", str(tmp_path))
    told = {}
    for options in ([], ["--experiment", "tiny"]):
        monkeypatch.setattr(sys, "argv", ["srvp", "videos", str(tmp_path), *options])
        main()
        lines = [line.split() for line in capfd.readouterr().out.splitlines()[1:]]
        told[len(options)] = {line[0]: line[1] for line in lines if line[0].endswith(".mp4")}
    del split["dataset"]
    assert told[0] == {f"{i}.mp4": fold_of(f"{i}.mp4") for i in range(20)}
    assert told[2] == {f"{i}.mp4": fold_of(f"{i}.mp4", **split) for i in range(20)} != told[0]


# Reading and preparing


def test_any_video_becomes_a_clip(tmp_path):
    path = video_files.write(tmp_path / "a.mkv", video_files.VIDEOS["ffv1.mkv"])
    clip, told = read_clip(path, size=32, channels=3)
    assert clip.shape == (FRAMES, 3, 32, 32) and clip.dtype == np.uint8
    assert told == f"{path}: 20 frames of 64x48 pixels, resized to 32x32 (Lanczos), RGB"
    grey, told = read_clip(path, size=48, channels=1, crop="center", rate=10, frames=5)
    assert grey.shape == (5, 1, 48, 48)
    assert told.endswith("at 10 a second, cropped (center), resized to 48x48 (Lanczos), grey")
    expected = np.asarray(Image.fromarray(video()[0]).convert("L"))[:, 8:56]
    assert np.abs(grey[0, 0].astype(int) - expected).mean() < 4  # the codec halves colours
    video_files.write_frames(tmp_path / "walk", [f"{i}.png" for i in range(20)])
    assert np.array_equal(
        read_clip(tmp_path / "walk", size=64, channels=3, crop=(0, 0, 48, 48))[0],
        np.stack([np.asarray(Image.fromarray(frame[:, :48]).resize((64, 64), 1)).transpose(2, 0, 1)
                  for frame in video()]),
    )  # fmt: skip
    for name, options in video_files.FILMS.items():
        film = video_files.write_film(tmp_path / "films" / name, **options)
        assert len(read_clip(film, size=16, channels=1)[0]) == FRAMES
    put(tmp_path / "one" / "b.mp4")
    assert len(read_clip(tmp_path / "one", size=16, channels=1)[0]) == 40


def test_what_is_no_single_video_is_refused_by_name(tmp_path):
    video_files.write_frames(tmp_path, ["1.png"])
    options = {"size": 16, "channels": 1}
    with pytest.raises(ValueError, match=r"1\.png is a single picture: give the folder"):
        read_clip(tmp_path / "1.png", **options)
    put(tmp_path / "a.mp4", tmp_path / "b.mp4")
    with pytest.raises(ValueError, match=r"holds 2 videos, such as a\.mp4, b\.mp4: give one"):
        read_clip(tmp_path, **options)
    with pytest.raises(FileNotFoundError, match=r"c\.mp4"):
        read_clip(tmp_path / "c.mp4", **options)
    with pytest.raises(DamagedError, match=r"sound_only\.mp4 holds sound and no video"):
        read_clip(INPUTS / "sound_only.mp4", **options)
    with pytest.raises(ValueError, match=r"the crop \(0, 0, 99, 9\) .*plain\.mp4, .* 64x48"):
        read_clip(FILE, crop=(0, 0, 99, 9), **options)


def test_preparing_says_that_files_are_left_out(tmp_path, capsys):
    put(*(tmp_path / "raw" / fold / "a.mp4" for fold in ("train", "val", "test")))
    video_files.write_frames(tmp_path / "raw", ["poster.png"])
    (tmp_path / "raw" / ".DS_Store").touch()
    videos.prepare(tmp_path / "raw", tmp_path / "out", configure("videos"))
    told = f"1 files are left out: `python -m srvp videos {tmp_path / 'raw'}` says why"
    assert told in capsys.readouterr().out


def test_reading_holds_a_few_frames(tmp_path):
    frames = np.zeros((60, 240, 320, 3), np.uint8)  # 14 MB
    path = video_files.write(tmp_path / "a.mp4", video_files.Kind("mpeg4"), frames)
    film = video_files.write_film(tmp_path / "a.tif", frames, compression="tiff_lzw")
    video_files.write_frames(tmp_path / "walk", [f"{i}.png" for i in range(60)], frames)
    sequence = tuple((tmp_path / "walk").iterdir())
    for files, is_frames in (((path,), False), ((film,), False), (sequence, True)):
        tracemalloc.start()
        assert sum(1 for _ in RawVideo("a", "", files, is_frames).frames()) == 60
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4e6
