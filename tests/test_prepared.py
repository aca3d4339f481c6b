"""The prepared format: reading, sampling and writing it, whole or not at all."""

import os
import re
import resource
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from srvp.data import staging
from srvp.data.prepared import ClipSampler, PreparedVideos, train_validation_split
from srvp.data.staging import Fold, Job, Video, prepare, write_prepared

LENGTHS = (7, 12, 9, 3)


def make_videos(lengths=LENGTHS, channels=3):
    """Videos whose pixels are all different from frame to frame, with an action per frame."""
    random = np.random.RandomState(0)
    return [
        Video(
            f"video {number}",
            random.randint(0, 256, (length, channels, 8, 6)).astype(np.uint8),
            {"actions": random.standard_normal((length, 4)).astype(np.float32)},
            source=f"{number}.mp4",
        )
        for number, length in enumerate(lengths)
    ]


@pytest.fixture
def prepared(tmp_path) -> PreparedVideos:
    fold = Fold(validation=[2], clips=[(1, 4), (0, 0), (1, 4)], clip_frames=3, frame_step=2)
    write_prepared(tmp_path / "set" / "train", make_videos(), fold, dataset="example")
    return PreparedVideos.open(tmp_path / "set" / "train")


def test_what_was_written_is_read(prepared):
    written = make_videos()
    assert prepared.names == [video.name for video in written]
    assert prepared.lengths.tolist() == list(LENGTHS)
    assert (prepared.channels, prepared.size) == (3, (8, 6))
    assert prepared.training.tolist() == [0, 1, 3]
    assert prepared.validation.tolist() == [2]
    assert prepared.manifest["dataset"] == "example"
    for number, video in enumerate(written):
        read = prepared.clip(number, 0, LENGTHS[number])
        assert np.array_equal(read, video.frames)
    actions = np.concatenate([video.extras["actions"] for video in written])
    assert np.array_equal(prepared.array("actions"), actions)


@pytest.mark.parametrize("step", [1, 3])
def test_batch_equals_loop_over_clips_and_frames(prepared, step):
    written = make_videos()
    videos, starts = np.array([1, 0, 1, 2]), np.array([5, 0, 0, 2])
    batch = prepared.batch(videos, starts, frames=3, step=step)
    assert batch.dtype == np.uint8
    for clip, video, start in zip(batch, videos, starts, strict=True):
        frames = [written[video].frames[start + step * t] for t in range(3)]
        assert np.array_equal(clip, frames)
        assert np.array_equal(clip, prepared.clip(video, start, 3, step))


def test_test_clips_are_those_of_the_list(prepared):
    clips = prepared.test_clips([1, 2])
    assert np.array_equal(clips[0], make_videos()[0].frames[0:5:2])
    assert np.array_equal(clips[1], make_videos()[1].frames[4:9:2])


@pytest.mark.parametrize(("start", "frames", "step"), [(-1, 2, 1), (6, 2, 1), (0, 3, 4)])
def test_clip_outside_its_video_is_refused(prepared, start, frames, step):
    with pytest.raises(ValueError, match="video 0 has 7 frames: no clip"):
        prepared.batch([1, 0], [0, start], frames, step)


def test_folder_without_manifest_is_not_a_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the prepare stage"):
        PreparedVideos.open(tmp_path)


def test_frames_that_do_not_match_the_manifest_are_refused(prepared):
    np.save(prepared.folder / "frames.npy", np.zeros((2, 3, 8, 6), np.uint8))
    with pytest.raises(ValueError, match="run the prepare stage again"):
        PreparedVideos.open(prepared.folder)


# Sampling


def test_sampler_draws_videos_then_starts_uniformly(prepared):
    # Videos 0, 1 and 2 hold 3, 8 and 5 clips of 5 frames; video 3 is too short.
    sampler = ClipSampler(prepared, np.arange(4))
    clips = sampler.draw(6000, 5, torch.Generator().manual_seed(0))
    assert clips.shape == (6000, 5, 3, 8, 6)
    assert clips.dtype == torch.float32
    drawn = (clips[:, 0] * 255).round().byte().numpy()
    frames = np.concatenate([video.frames for video in make_videos()])
    matches = (drawn[:, None] == frames[None]).all(axis=(2, 3, 4))
    counts = matches.sum(axis=0)
    assert counts.sum() == 6000
    expected = np.zeros(sum(LENGTHS))
    for first, starts in ((0, 3), (7, 8), (19, 5)):
        expected[first : first + starts] = 2000 / starts
    # Six standard deviations of a binomial count.
    assert np.all(np.abs(counts - expected) <= 6 * np.sqrt(expected))


def test_sampler_repeats_with_its_generator_and_keeps_to_its_subset(prepared):
    sampler = ClipSampler(prepared, prepared.validation, step=2)
    first = sampler.draw(4, 3, torch.Generator().manual_seed(5))
    again = sampler.draw(4, 3, torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    windows = [prepared.clip(2, start, 3, 2) / np.float32(255) for start in range(5)]
    assert all(any(np.array_equal(clip, window) for window in windows) for clip in first.numpy())


def test_batches_depend_on_their_number_alone_and_differ(prepared):
    sampler = ClipSampler(prepared, np.arange(4))
    drawn = list(islice(sampler.batches(3, 4, seed=7), 6))
    again = list(islice(sampler.batches(3, 4, seed=7, first=2), 4))
    assert all(torch.equal(a, b) for a, b in zip(drawn[2:], again, strict=True))
    assert drawn[0].shape == (3, 4, 3, 8, 6) and drawn[0].dtype == torch.float32
    others = [*drawn[1:], next(sampler.batches(3, 4, seed=8))]
    assert not any(torch.equal(drawn[0], other) for other in others)
    with pytest.raises(ValueError, match=r"none of the 4 videos .* has 13 frames"):
        next(sampler.batches(1, 13, seed=0))


def test_sampler_says_when_every_video_is_too_short(prepared):
    with pytest.raises(ValueError, match=r"none of the 4 videos .* has 13 frames"):
        ClipSampler(prepared, np.arange(4)).draw(1, 13, torch.Generator())


@pytest.mark.parametrize("n", [1, 20, 479, 1000])
def test_split_is_the_published_one(n):
    ids = list(range(n))
    np.random.RandomState(42).shuffle(ids)
    train, validation = train_validation_split(n)
    assert train.tolist() == sorted(ids[: int(0.95 * n)])
    assert validation.tolist() == sorted(ids[int(0.95 * n) :])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_resident_memory_does_not_grow_towards_the_size_of_the_set(tmp_path):
    frames = np.zeros((64, 3, 64, 64), np.uint8)
    videos = (Video(str(number), frames) for number in range(32))  # 25 MB
    write_prepared(tmp_path / "train", videos, Fold())
    prepared = PreparedVideos.open(tmp_path / "train")
    sampler = ClipSampler(prepared, prepared.training)
    generator = torch.Generator().manual_seed(0)

    def mapped() -> int:
        """Kilobytes of mapped files that are resident."""
        return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    sampler.draw(8, 16, generator)
    before = mapped()
    for _ in range(60):  # 4 times the set
        sampler.draw(8, 16, generator)
    assert mapped() - before < 5_000


# Writing


def make_jobs(log: list[int], bad: int | None = None) -> list[Job]:
    """A job per video, which logs that it ran; the job `bad` fails after a few frames."""

    def read(number: int):
        log.append(number)
        video = make_videos()[number]
        if number == bad:
            video = Video(video.name, damaged(video.frames, f"{number}.mp4"))
        yield video

    def damaged(frames, name):
        yield from frames[:2]
        raise ValueError(f"{name} is damaged")

    names = [f"{number}.mp4" for number in range(len(LENGTHS))]
    return [
        Job("train", name, name, 1, lambda number=number: read(number))
        for number, name in enumerate(names)
    ]


def run(out: Path, jobs: list[Job], **changes) -> None:
    manifest = {"dataset": "example", "settings": {"size": (8, 6)}, "raw": {"0.mp4": 1}, **changes}
    prepare(
        out, jobs, lambda *_: Fold(), manifest=manifest, folds=["train"], workers=1, progress=False
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_bad_source_keeps_what_is_finished(tmp_path):
    log: list[int] = []
    with pytest.raises(ValueError, match=r"1\.mp4 is damaged"):
        run(tmp_path / "out", make_jobs(log, bad=1))
    assert not (tmp_path / "out" / "train").exists()
    finished = set(log) - {1}
    log.clear()
    run(tmp_path / "out", make_jobs(log))
    assert set(log) == set(range(len(LENGTHS))) - finished
    run(tmp_path / "fresh", make_jobs([]))
    assert content(tmp_path / "out" / "train") == content(tmp_path / "fresh" / "train")
    assert not (tmp_path / "out" / ".staging").exists()


def test_set_that_is_up_to_date_is_left_alone_and_another_replaced(tmp_path):
    log: list[int] = []
    run(tmp_path, make_jobs(log))
    run(tmp_path, make_jobs(log))
    assert len(log) == len(LENGTHS)
    opened = PreparedVideos.open(tmp_path / "train")
    run(tmp_path, make_jobs(log)[:2], raw={"0.mp4": 2})
    assert len(PreparedVideos.open(tmp_path / "train")) == 2
    assert np.array_equal(opened.clip(2, 0, 9), make_videos()[2].frames)  # still mapped


def test_run_killed_while_a_fold_is_put_together_goes_on(tmp_path, monkeypatch):
    copy = staging.shutil.copyfileobj
    copied = []

    def copy_then_die(source, target, size):
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(copy(source, target, size))

    monkeypatch.setattr(staging.shutil, "copyfileobj", copy_then_die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", make_jobs([]))
    monkeypatch.undo()
    log: list[int] = []
    run(tmp_path / "out", make_jobs(log))
    assert log == []
    run(tmp_path / "fresh", make_jobs([]))
    assert content(tmp_path / "out" / "train") == content(tmp_path / "fresh" / "train")


def test_full_disk_names_the_file_and_the_next_run_completes(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # of 144 bytes a frame
    try:
        with pytest.raises(OSError, match=r"no room to write .*\.staging.*finished is kept"):
            run(tmp_path, make_jobs([]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log: list[int] = []
    run(tmp_path, make_jobs(log))
    assert 0 < len(log) < len(LENGTHS)
    assert len(PreparedVideos.open(tmp_path / "train")) == len(LENGTHS)


def test_other_settings_do_not_reuse_what_is_finished(tmp_path):
    with pytest.raises(ValueError, match="damaged"):
        run(tmp_path, make_jobs([], bad=3))
    log: list[int] = []
    run(tmp_path, make_jobs(log), settings={"size": (4, 4)})
    assert log == list(range(len(LENGTHS)))


def test_folder_that_is_no_prepared_set_is_never_replaced(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "holiday.mp4").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="is not a prepared set"):
        run(tmp_path, make_jobs([]))
    with pytest.raises(FileExistsError, match="is not a prepared set"):
        write_prepared(tmp_path / "train", make_videos(), Fold())
    assert (tmp_path / "train" / "holiday.mp4").read_bytes() == b"precious"


def test_videos_of_two_sizes_and_videos_without_frames_are_refused(tmp_path):
    wide = Video("wide", np.zeros((2, 3, 8, 9), np.uint8), source="wide.mp4")
    with pytest.raises(ValueError, match=r"wide\.mp4: frames of"):
        write_prepared(tmp_path / "train", [make_videos()[0], wide], Fold())
    empty = Video("empty", np.zeros((0, 3, 8, 6), np.uint8), source="empty.mp4")
    with pytest.raises(ValueError, match=r"empty\.mp4 holds no frame"):
        write_prepared(tmp_path / "train", [empty], Fold())
    assert os.listdir(tmp_path) == []
