"""From raw files as their owners hand them out to prepared sets, and what goes wrong on the way."""

import gzip
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import raw_archives
import torch
from PIL import Image
from raw_archives import configure

from srvp import data
from srvp.data import jobs
from srvp.data.prepared import ClipSampler, PreparedVideos, train_validation_split
from srvp.data.raw import RawFile, decode
from srvp.data.sets import bair, human36m, kth, videos


def prepare(dataset: str, raw: Path, out: Path, **changes) -> None:
    files = {"kth": kth, "human36m": human36m, "bair": bair, "videos": videos}
    files[dataset].prepare(raw, out, configure(dataset, **changes))


def open_folds(out: Path) -> tuple[PreparedVideos, PreparedVideos]:
    return PreparedVideos.open(out / "train"), PreparedVideos.open(out / "test")


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


# KTH


@pytest.fixture(scope="module")
def kth_raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kth")
    raw_archives.write_kth(folder)
    return folder


@pytest.fixture(scope="module")
def kth_out(kth_raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("kth-prepared")
    prepare("kth", kth_raw, out)
    return out


def test_kth_folds_are_those_of_the_subjects_in_a_fixed_order(kth_out):
    train, test = open_folds(kth_out)
    names = raw_archives.kth_names()
    assert train.names == [name for name in names if int(name[6:8]) <= 20]
    assert test.names == [name for name in names if int(name[6:8]) > 20]
    assert (len(train), len(test)) == (479, 120)
    assert train.validation.tolist() == train_validation_split(479, 42)[1].tolist()
    assert (train.channels, train.size) == (1, (64, 64))
    assert test.lengths.tolist() == [raw_archives.kth_length(name) for name in test.names]


def test_kth_known_gaps_are_reported(kth_out):
    train, _ = open_folds(kth_out)
    assert "person13_handclapping_d3" in train.notes[0]
    assert "person01_boxing_d4 ends early in the original data: 41 frames" in train.notes[1]
    assert train.lengths[train.names.index("person01_boxing_d4")] == 41


def test_kth_frames_are_the_first_channel_scaled_bicubically(kth_out):
    train, _ = open_folds(kth_out)
    number = train.names.index("person07_jogging_d2")
    raw = raw_archives.kth_avi(int(train.lengths[number]), sum(map(ord, "person07_jogging_d2")) % 4)
    with av.open(io.BytesIO(raw)) as container:
        scaled = [
            frame.reformat(64, 64, "rgb24", interpolation="BICUBIC").to_ndarray()[None, :, :, 0]
            for frame in container.decode(video=0)
        ]
    stored = train.clip(number, 0, len(scaled))
    # The ffmpeg filter places chroma, which these grey videos nearly lack, otherwise.
    assert np.abs(stored.astype(int) - np.stack(scaled)).max() <= 4


def official_kth_clips(lengths: dict[str, int], frames: int, count: int) -> list[tuple[str, int]]:
    """The official recipe, written down independently, on NumPy's global state."""
    actions = ["boxing", "handclapping", "handwaving", "jogging", "running", "walking"]
    np.random.seed(42)
    clips = []
    for _ in range(count):
        action = actions[np.random.randint(6)]
        person = np.random.randint(21, 26)
        trial = np.random.randint(1, 5)
        name = f"person{person}_{action}_d{trial}"
        clips.append((name, np.random.randint(lengths[name] - frames + 1)))
    return clips


def test_kth_clip_list_is_the_official_one(kth_out):
    random = np.random.RandomState(0)
    lengths = {name: int(random.randint(40, 900)) for name in raw_archives.kth_names()}
    config = configure("kth", test_videos=1000, test_frames=40)
    assert kth.test_clips(lengths, config) == official_kth_clips(lengths, 40, 1000)
    _, test = open_folds(kth_out)
    prepared = dict(zip(test.names, test.lengths.tolist(), strict=True))
    named = [(test.names[video], start) for video, start in test.clips]
    assert named == official_kth_clips(prepared, 8, 50)
    assert test.test_clips(range(50)).shape == (50, 8, 1, 64, 64)


def test_kth_clips_of_skipped_frames_fit_their_videos(kth_raw, kth_out, tmp_path):
    shutil.copytree(kth_out, tmp_path / "out")
    prepare("kth", kth_raw, tmp_path / "out", test_frames=4, frame_step=2)
    _, test = open_folds(tmp_path / "out")
    assert test.frame_step == 2
    assert test.test_clips(range(50)).shape == (50, 4, 1, 64, 64)
    exact = dict.fromkeys(raw_archives.kth_names(), 7)
    config = configure("kth", test_frames=4, frame_step=2)
    assert {start for _, start in kth.test_clips(exact, config)} == {0}
    with pytest.raises(ValueError, match="has 6 frames, but a test clip spans 7: lower"):
        kth.test_clips(dict.fromkeys(exact, 6), config)


def test_kth_gap_besides_the_known_ones_is_an_error(tmp_path):
    raw_archives.write_kth(tmp_path, skip=["person03_running_d1"])
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 599 .*person03_running_d1"):
        prepare("kth", tmp_path, tmp_path / "out")


def test_kth_from_unpacked_files_equals_that_from_archives(kth_raw, kth_out, tmp_path):
    for path in kth_raw.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "raw" / path.stem)
    found, zipped = kth.find_videos(tmp_path / "raw"), kth.find_videos(kth_raw)
    assert list(found) == list(zipped)
    for name in ("person01_boxing_d4", "person25_walking_d4"):
        with found[name].open() as plain, zipped[name].open() as packed:
            assert plain.read() == packed.read()


def test_kth_truncated_archive_names_the_file(kth_raw, tmp_path):
    for path in kth_raw.glob("*.zip"):
        shutil.copy(path, tmp_path)
    whole = (tmp_path / "running.zip").read_bytes()
    (tmp_path / "running.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"running\.zip is truncated or damaged"):
        prepare("kth", tmp_path, tmp_path / "out")


def test_kth_damaged_member_names_archive_and_member(kth_raw, tmp_path):
    for path in kth_raw.glob("*.zip"):
        shutil.copy(path, tmp_path)
    damaged = bytearray((tmp_path / "boxing.zip").read_bytes())
    damaged[2000] ^= 255  # within the first member
    (tmp_path / "boxing.zip").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"boxing\.zip:person01_boxing_d1_uncomp\.avi .*CRC"):
        prepare("kth", tmp_path, tmp_path / "out")


def test_kth_frames_of_another_size_are_scaled_from_the_raw_video(kth_raw):
    file = kth.find_videos(kth_raw)["person07_jogging_d2"]
    small, large = (np.stack(list(next(kth._read("", file, n)).frames)) for n in (64, 128))
    assert large.shape == (*small.shape[:2], 128, 128)
    halved = large.reshape(*small.shape[:3], 2, 64, 2).mean((3, 5))
    assert np.abs(halved - small).mean() < 3
    assert np.abs(small.repeat(2, 2).repeat(2, 3).astype(int) - large).max() > 30  # it is finer


@pytest.mark.parametrize(("rate", "expected"), [(50, 30), (25, 60), (12.5, 120)])
def test_kth_videos_are_stored_at_25_frames_a_second(tmp_path, rate, expected):
    """60 frames at another rate: frames are dropped or repeated."""
    video = raw_archives.moving_square(60, 120, 160, grey=True)
    path = tmp_path / "person01_boxing_d1_uncomp.avi"
    path.write_bytes(raw_archives.encode(video, "avi", "mpeg4", rate=rate))
    (stored,) = kth._read("person01_boxing_d1", RawFile(path, None, path.stat().st_size), 64)
    # The filter rounds the end to a frame, of 25 a second or of the raw video.
    assert abs(len(list(stored.frames)) - expected) <= 2


def test_kth_validation_is_on_other_videos_than_training(kth_out):
    check_validation("kth", kth_out)


def check_validation(name: str, out: Path) -> None:
    folds = data.open_training(configure(name), out, torch.device("cpu"))
    train, validation = (set(fold.subset.tolist()) for fold in folds)
    assert train and validation and not train & validation
    assert train | validation == set(range(len(PreparedVideos.open(out / "train"))))


# Human3.6M


@pytest.fixture(scope="module")
def human_raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("human")
    raw_archives.write_human36m(folder)
    return folder


@pytest.fixture(scope="module")
def human_out(human_raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("human-prepared")
    prepare("human36m", human_raw, out)
    return out


def test_human36m_folds_are_those_of_the_subjects_without_all(human_out):
    train, test = open_folds(human_out)
    assert train.names == [f"S{subject}-Directions 1.54138969" for subject in (1, 5, 6, 7, 8)]
    assert test.names == ["S11-Directions 1.54138969", "S9-Directions 1.54138969"]
    assert (train.channels, train.size) == (3, (64, 64))
    assert train.validation.tolist() == train_validation_split(5, 42)[1].tolist()
    assert train.lengths.tolist() == [12] * 5
    assert (test.clip_frames, test.frame_step) == (2, 8)
    assert train.notes == [
        "5 videos: 1 of S1, 1 of S5, 1 of S6, 1 of S7, 1 of S8 (about 120 per subject are expected)"
    ]


def test_human36m_frames_are_cropped_then_resized(human_out):
    train, _ = open_folds(human_out)
    with av.open(io.BytesIO(raw_archives.human36m_mp4(12, 0))) as container:
        image = next(container.decode(video=0)).to_image()
    expected = image.crop((100, 100, 900, 900)).resize((64, 64), Image.Resampling.LANCZOS)
    stored = train.clip(0, 0, 1)[0].transpose(1, 2, 0)
    assert np.abs(stored.astype(int) - np.asarray(expected)).max() <= 1  # rounding of YUV to RGB


def test_human36m_frames_of_another_size_are_resized_from_the_raw_video(human_out, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(raw_archives.human36m_mp4(12, 0))
    (video,) = human36m._read("", path, "", 128)
    large, small = np.stack(list(video.frames)), open_folds(human_out)[0].clip(0, 0, 12)
    assert large.shape == (12, 3, 128, 128)
    assert np.abs(large.reshape(12, 3, 64, 2, 64, 2).mean((3, 5)) - small).mean() < 3
    assert np.abs(small.repeat(2, 2).repeat(2, 3).astype(int) - large).max() > 30  # it is finer


def test_human36m_validation_is_on_other_videos_than_training(human_out):
    check_validation("human36m", human_out)


def official_human36m_clips(
    lengths: list[int], frames: int, step: int, count: int
) -> list[tuple[int, int]]:
    """The official recipe, written down independently, on NumPy's global state."""
    np.random.seed(42)
    clips = []
    for _ in range(count):
        video = np.random.randint(len(lengths))
        clips.append((video, np.random.randint(lengths[video] - ((frames - 1) * step + 1) + 1)))
    return clips


def test_human36m_clip_list_is_the_official_one(human_out):
    lengths = np.random.RandomState(0).randint(417, 6000, 236).tolist()
    config = configure("human36m", test_videos=1000, test_frames=53)
    assert human36m.test_clips(lengths, config) == official_human36m_clips(lengths, 53, 8, 1000)
    _, test = open_folds(human_out)
    expected = official_human36m_clips(test.lengths.tolist(), 2, 8, 20)
    assert [tuple(clip) for clip in test.clips.tolist()] == expected


def test_human36m_missing_subject_is_an_error_and_is_mended_by_its_unpacked_folder(
    human_raw, human_out, tmp_path, monkeypatch
):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for path in human_raw.glob("*.tgz"):
        shutil.copy(path, raw)
    (raw / "Videos_S9.tgz").unlink()
    with pytest.raises(FileNotFoundError, match="holds no video of subject S9"):
        prepare("human36m", raw, out)
    with tarfile.open(human_raw / "Videos_S9.tgz") as archive:
        archive.extractall(raw / "unpacked")
    make_part, made = jobs.make_part, []
    monkeypatch.setattr(jobs, "make_part", lambda *args: made.append(make_part(*args)))
    prepare("human36m", raw, out)
    assert len(made) == 1
    assert (out / "test/frames.npy").read_bytes() == (human_out / "test/frames.npy").read_bytes()


def test_human36m_truncated_archive_names_the_file_and_keeps_the_others(human_raw, tmp_path):
    whole = (human_raw / "Videos_S9.tgz").read_bytes()
    for path in human_raw.glob("*.tgz"):
        shutil.copy(path, tmp_path)
    (tmp_path / "Videos_S9.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"Videos_S9\.tgz is truncated or damaged"):
        prepare("human36m", tmp_path, tmp_path / "out")
    assert len(list(tmp_path.glob("out/.staging/parts/*/*.json"))) == 6


@pytest.mark.parametrize("name", ["../outside.mp4", "S1/Videos/../../../outside.mp4"])
def test_archive_with_a_path_outside_is_refused(tmp_path, name):
    with tarfile.open(tmp_path / "Videos_S1.tgz", "w:gz") as archive:
        raw_archives.add_bytes(archive, name, b"evil")
    with pytest.raises(ValueError, match=r"Videos_S1\.tgz is not to be trusted: .*outside\.mp4"):
        prepare("human36m", tmp_path, tmp_path / "out")
    raw_archives.write_bair(tmp_path / "bair", {name: b"evil"})
    with pytest.raises(ValueError, match=r"dataset_v0\.tar is not to be trusted"):
        prepare("bair", tmp_path / "bair", tmp_path / "out")
    assert not list(tmp_path.rglob("outside.mp4"))


def test_human36m_frames_smaller_than_the_crop_are_an_error(tmp_path):
    folder = tmp_path / "S1" / "Videos"
    folder.mkdir(parents=True)
    small = raw_archives.moving_square(3, 64, 64)
    (folder / "Walking.1.mp4").write_bytes(raw_archives.mp4(small))
    with pytest.raises(ValueError, match=r"Walking\.1\.mp4 has frames of 64x64"):
        prepare("human36m", tmp_path, tmp_path / "out")


# BAIR


def check_bair(out: Path, train_videos: int, test_videos: int) -> None:
    number = 0
    for fold, count in zip(open_folds(out), (train_videos, test_videos), strict=True):
        assert len(fold) == count
        for video in range(count):
            frames, actions, positions = raw_archives.bair_video(number)
            stored = fold.clip(video, 0, 30)
            assert stored.transpose(0, 2, 3, 1).tobytes() == frames.tobytes()
            rows = slice(30 * video, 30 * video + 30)
            assert np.array_equal(fold.array("actions")[rows], actions)
            assert np.array_equal(fold.array("positions")[rows], positions)
            number += 1


def test_bair_is_byte_for_byte_from_archive_and_from_folder(tmp_path):
    files = raw_archives.bair_files(train=2, test=1, videos=3)
    path = raw_archives.write_bair(tmp_path / "tar", files)
    prepare("bair", tmp_path / "tar", tmp_path / "a")
    check_bair(tmp_path / "a", 6, 3)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "folder")
    prepare("bair", tmp_path / "folder", tmp_path / "b")
    check_bair(tmp_path / "b", 6, 3)


def test_bair_order_clips_and_notes(tmp_path):
    # As strings, traj_10_to_11 comes before traj_8_to_9.
    examples = raw_archives.tfrecords([raw_archives.bair_example(0)], compress=False)
    names = ["train/traj_8_to_9", "train/traj_10_to_11", "test/traj_0_to_1"]
    files = {f"softmotion30_44k/{name}.tfrecords": examples for name in names}
    raw_archives.write_bair(tmp_path, files)
    prepare("bair", tmp_path, tmp_path / "out")
    train, test = open_folds(tmp_path / "out")
    assert train.names == ["traj_10_to_11/001", "traj_8_to_9/001"]
    assert train.validation.tolist() == train_validation_split(2, 42)[1].tolist()
    assert test.clips.tolist() == [[0, 0]]
    assert (test.clip_frames, test.frame_step) == (30, 1)
    assert test.notes == ["1 videos in test, of 256 in the whole set"]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:5], "record 1 of .* is cut off"),
        (lambda data: data[:-1], "record 2 of .* is cut off"),
        (lambda data: data[:20] + b"?" + data[21:], "record 1 of .* has a bad checksum"),
        (lambda data: b"?" + data[1:], "record 1 of .* has a bad checksum"),
        (lambda data: data[:-1] + b"?", "record 2 of .* has a bad checksum"),
        (lambda data: b"", "holds no video"),
    ],
)
def test_bair_damaged_records_name_the_file_and_keep_the_others(
    tmp_path, damage, message, compress
):
    files = raw_archives.bair_files(train=2, test=1, videos=2)
    path = "softmotion30_44k/train/traj_2_to_3.tfrecords"
    records = [raw_archives.bair_example(2), raw_archives.bair_example(3)]
    damaged = damage(raw_archives.tfrecords(records, compress=False))
    raw_archives.write_bair(
        tmp_path, {**files, path: gzip.compress(damaged, 1) if compress else damaged}
    )
    with pytest.raises(ValueError, match=message) as error:
        prepare("bair", tmp_path, tmp_path / "out")
    assert path in str(error.value)
    finished = len(list(tmp_path.glob("out/.staging/parts/*/*.json")))
    assert finished == 2
    raw_archives.write_bair(tmp_path, files)
    prepare("bair", tmp_path, tmp_path / "out")
    check_bair(tmp_path / "out", 4, 2)


def test_bair_cut_off_gzip_names_the_file(tmp_path):
    files = raw_archives.bair_files()
    path = "softmotion30_44k/train/traj_0_to_2.tfrecords"
    raw_archives.write_bair(tmp_path, {**files, path: files[path][:-100]})
    with pytest.raises(ValueError, match=rf"{path} is truncated or damaged"):
        prepare("bair", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_bair_truncated_archive_names_the_file(tmp_path, kept):
    path = raw_archives.write_bair(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) // 512 * 512])
    with pytest.raises(ValueError, match=r"dataset_v0\.tar is truncated or damaged"):
        prepare("bair", tmp_path, tmp_path / "out")


def test_bair_record_of_something_else_is_an_error(tmp_path):
    files = raw_archives.bair_files(train=1, test=1, videos=1)
    path = "softmotion30_44k/train/traj_0_to_0.tfrecords"
    files[path] = raw_archives.tfrecords([b"not an example"], compress=False)
    raw_archives.write_bair(tmp_path, files)
    with pytest.raises(ValueError, match=rf"record 1 of .*{path} is no BAIR video"):
        prepare("bair", tmp_path, tmp_path / "out")


# Own videos


@pytest.fixture(scope="module")
def videos_raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    raw_archives.write_videos(folder)
    return folder


def test_videos_of_any_container_and_size(videos_raw, tmp_path):
    prepare("videos", videos_raw, tmp_path)
    train, test = open_folds(tmp_path)
    assert train.names == [
        "train/video 0.mp4",
        "train/video 1.avi",
        "train/video 2.webm",
        "train/video 3.gif",
        "validation/frames 4",
    ]
    assert [train.names[i] for i in train.validation] == ["validation/frames 4"]
    assert (train.channels, train.size) == (3, (64, 64))
    assert train.lengths.tolist() == [30] * 5
    assert test.names == ["test/video 5.mp4"]
    assert test.clips.tolist() == [[0, 0], [0, 12]]
    for number in range(5):
        original = raw_archives.moving_square(30, 96 + 16 * number, 128, seed=number)
        expected = np.stack([Image.fromarray(f).resize((64, 64), 1) for f in original])
        stored = train.clip(number, 0, 30).transpose(0, 2, 3, 1)
        # Lossy codecs, and a palette of 256 colours; another frame or video is off by 10 and more.
        assert np.abs(stored.astype(int) - expected).mean() < (20 if number == 3 else 4)


def test_videos_grey_cropped_smaller_and_at_another_rate(videos_raw, tmp_path):
    config = configure("videos", test_videos=1, channels=1, size=32, crop="center", frame_rate=10.0)
    videos.prepare(videos_raw, tmp_path, config)
    train, _ = open_folds(tmp_path)
    assert (train.channels, train.size) == (1, (32, 32))
    # 30 frames at 25 a second are 12 at 10 a second; numbered frames are all kept.
    assert train.lengths.tolist() == [12, 12, 12, 12, 30]
    original = raw_archives.moving_square(30, 160, 128, seed=4)
    image = Image.fromarray(original[29]).convert("L").crop((0, 16, 128, 144))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))
    # Grey before or after the resizing differs by rounding.
    assert np.abs(train.clip(4, 29, 1)[0, 0].astype(int) - expected).max() <= 1


def test_videos_are_cropped_to_the_box_of_the_configuration(videos_raw, tmp_path):
    prepare("videos", videos_raw, tmp_path, channels=1, crop=(0, 0, 64, 64))
    train, _ = open_folds(tmp_path)
    original = raw_archives.moving_square(30, 160, 128, seed=4)
    expected = np.asarray(Image.fromarray(original[0]).convert("L"))[:64, :64]
    assert np.array_equal(train.clip(4, 0, 1)[0, 0], expected)


def test_videos_split_does_not_move_when_files_are_added(tmp_path):
    names = [f"clip {number}.mp4" for number in range(400)]
    for name in names[:200]:
        (tmp_path / name).touch()
    fractions = {"test_fraction": 0.2, "validation_fraction": 0.1}
    before = {video.name: video.fold for video in videos.find_videos(tmp_path, **fractions)}
    for name in names[200:]:
        (tmp_path / name).touch()
    after = {video.name: video.fold for video in videos.find_videos(tmp_path, **fractions)}
    assert before.items() <= after.items()
    counts = {fold: list(after.values()).count(fold) for fold in videos.FOLDS}
    # Four standard deviations of a binomial count.
    assert abs(counts["test"] - 80) < 32 and abs(counts["validation"] - 40) < 24


def test_videos_numbered_frames_are_in_the_order_of_their_numbers(tmp_path):
    raw_archives.write_frames(tmp_path / "a", np.zeros((12, 4, 4, 3), np.uint8))
    (video,) = videos.find_videos(tmp_path)
    assert [path.name for path in video.files] == [f"frame-{t}.png" for t in range(12)]


@pytest.mark.parametrize("name", ["video 0.mp4", "video 1.avi", "video 2.webm", "frames 4"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage"])
def test_videos_damaged_file_is_named_and_the_next_run_completes(
    videos_raw, tmp_path, name, damage
):
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(videos_raw, raw)
    path = raw / ("validation" if name == "frames 4" else "train") / name
    path = path / "frame-7.png" if name == "frames 4" else path
    whole = path.read_bytes()
    damaged = {"empty": b"", "truncated": whole[: len(whole) * 3 // 4], "garbage": b"?" * 5000}
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=name) as error:
        prepare("videos", raw, out)
    assert "\n" not in str(error.value)
    assert list(out.glob(".staging/parts/*/*.json"))
    assert not (out / "train").exists()
    path.write_bytes(whole)
    prepare("videos", raw, out)
    assert len(PreparedVideos.open(out / "train")) == 5


def test_videos_empty_fold_and_crop_outside_are_errors(videos_raw, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no videos"):
        videos.find_videos(tmp_path)
    with pytest.raises(ValueError, match=r"the crop .* does not fit \w+/video \d\.\w+, .*128x"):
        prepare("videos", videos_raw, tmp_path / "a", crop=(0, 0, 200, 100))
    shutil.copytree(videos_raw / "train", tmp_path / "train only" / "train")
    with pytest.raises(ValueError, match="falls into the validation fold"):
        prepare("videos", tmp_path / "train only", tmp_path / "c")


def test_videos_that_a_phone_marked_as_turned_are_put_upright():
    video = raw_archives.moving_square(2, 64, 96)
    content = bytearray(raw_archives.mp4(video))
    # The matrix of the track header: a quarter turn, in 16.16 fixed point.
    at = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = [0, one, 0, -one, 0, 0, 0, 0, 1 << 30]
    content[at : at + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in matrix)
    turned = next(decode(io.BytesIO(content), "phone.mp4"))
    plain = next(decode(io.BytesIO(raw_archives.mp4(video)), "plain.mp4"))
    assert np.array_equal(turned, np.rot90(plain, -1))


def test_real_videos(tmp_path):
    folds = {"carphone_pristine": "test", "carphone_distorted": "validation"}
    for path in raw_archives.real_videos():
        folder = tmp_path / "raw" / folds.get(path.stem, "train")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    config = configure("videos", test_videos=1, test_frames=15, crop="center", frame_rate=5.0)
    videos.prepare(tmp_path / "raw", tmp_path / "out", config)
    train, test = open_folds(tmp_path / "out")
    assert dict(zip(train.names, train.lengths.tolist(), strict=True)) == {
        "train/bigbuckbunny.mp4": 26,  # 132 frames at 25 a second
        "train/bikes.mp4": 50,  # 250 frames at 25 a second
        "validation/carphone_distorted.mp4": 20,  # 120 frames at 29.97 a second
    }
    assert len(test.clips) == 1
    batch = ClipSampler(train, train.training).draw(4, 10, torch.Generator().manual_seed(0))
    assert batch.frames.std(dim=(1, 2, 3, 4)).min() > 0.02  # not blank
