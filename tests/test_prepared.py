"""The prepared format: reading, sampling and writing it, whole or not at all."""

import itertools
import json
import os
import re
import resource
import signal
import sys
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from srvp.data.config import DataConfig
from srvp.data.jobs import Job, Video
from srvp.data.prepared import ClipSampler, PreparedVideos, train_validation_split
from srvp.data.staging import Fold, stage, write, write_prepared

LENGTHS = (7, 12, 9, 3)


def make_videos(lengths=LENGTHS, channels=3):
    """Videos whose pixels are all different from frame to frame, with an action per frame."""
    random = np.random.RandomState(0)
    return [
        Video(
            f"video {number}",
            random.randint(0, 256, (length, channels, 8, 6)).astype(np.uint8),
            {"actions": random.standard_normal((length, 4)).astype(np.float32)},
        )
        for number, length in enumerate(lengths)
    ]


@pytest.fixture
def prepared(tmp_path) -> PreparedVideos:
    fold = Fold(validation=[2], clips=[(1, 4), (0, 0), (1, 4)], clip_frames=3, frame_step=2)
    write_prepared(tmp_path / "set" / "train", make_videos(), fold, dataset="example")
    return PreparedVideos.open(tmp_path / "set" / "train")


def open_with_actions(folder: Path) -> PreparedVideos:
    manifest = json.loads((folder / "manifest.json").read_text())
    return PreparedVideos(folder, manifest, with_actions=True)


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


@pytest.mark.parametrize("name", ["frames.npy", "actions.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "zeros"])
def test_damaged_file_is_named(prepared, name, damage):
    path = prepared.folder / name
    whole = path.read_bytes()
    damaged = {"empty": b"", "truncated": whole[: len(whole) // 2], "garbage": b"\x93NUMPY?" * 9}
    path.write_bytes(damaged.get(damage, bytes(len(whole))))
    with pytest.raises(ValueError, match=rf"{name} is damaged .*run the prepare stage") as error:
        PreparedVideos.open(prepared.folder).array("actions")
    assert "\n" not in str(error.value)


def test_arrays_of_other_length_and_manifests_of_other_content_are_damaged(prepared):
    np.save(prepared.folder / "frames.npy", np.zeros((2, 3, 8, 6), np.uint8))
    with pytest.raises(ValueError, match=r"frames\.npy is damaged \(2 rows for 31 frames\)"):
        PreparedVideos.open(prepared.folder)
    (prepared.folder / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        PreparedVideos.open(prepared.folder)


def test_actions_are_those_of_the_frames(prepared):
    opened = open_with_actions(prepared.folder)
    written = [video.extras["actions"] for video in make_videos()]
    one, other = opened.batch_actions([1, 0], [8, 0], frames=4)
    assert np.array_equal(one, written[1][8:12]) and np.array_equal(other, written[0][:4])
    # Of frames two apart, both actions between them; after the last frame of a video, its last.
    skipped = opened.batch_actions([1, 0], [6, 2], frames=3, step=2)
    assert np.array_equal(skipped[0], written[1][6:12].reshape(3, 8))
    assert np.array_equal(skipped[1], written[0][[2, 3, 4, 5, 6, 6]].reshape(3, 8))
    tested = opened.test_actions([0, 1])
    assert np.array_equal(tested[0], written[1][4:10].reshape(3, 8))
    assert np.array_equal(tested[1], written[0][:6].reshape(3, 8))
    assert prepared.batch_actions([1], [8], frames=4) is None


def test_sampler_gives_frames_and_actions_of_one_clip(prepared):
    opened = open_with_actions(prepared.folder)
    clips = ClipSampler(opened, np.array([1])).draw(5, 4, torch.Generator().manual_seed(0))
    video = make_videos()[1]
    for frames, actions in zip(*clips, strict=True):
        (start,) = (
            s for s in range(9) if np.array_equal(video.frames[s], (255 * frames[0]).round())
        )
        assert np.array_equal(actions, video.extras["actions"][start : start + 4])


# Sampling


def test_sampler_draws_videos_then_starts_uniformly(prepared):
    # Videos 0, 1 and 2 hold 3, 8 and 5 clips of 5 frames; video 3 is too short.
    sampler = ClipSampler(prepared, np.arange(4))
    clips = sampler.draw(6000, 5, torch.Generator().manual_seed(0)).frames
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
    first = sampler.draw(4, 3, torch.Generator().manual_seed(5)).frames
    again = sampler.draw(4, 3, torch.Generator().manual_seed(5)).frames
    assert torch.equal(first, again)
    windows = [prepared.clip(2, start, 3, 2) / np.float32(255) for start in range(5)]
    assert all(any(np.array_equal(clip, window) for window in windows) for clip in first.numpy())


def test_batches_depend_only_on_their_number_and_differ(prepared):
    sampler = ClipSampler(prepared, np.arange(4))
    drawn = [clips.frames for clips in islice(sampler.batches(3, 4, seed=7), 6)]
    again = [clips.frames for clips in islice(sampler.batches(3, 4, seed=7, first=2), 4)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[2:], again, strict=True))
    assert drawn[0].shape == (3, 4, 3, 8, 6) and drawn[0].dtype == torch.float32
    others = [*drawn[1:], next(sampler.batches(3, 4, seed=8)).frames]
    assert not any(torch.equal(drawn[0], other) for other in others)
    with pytest.raises(ValueError, match=r"none of the 4 videos .* has 13 frames"):
        next(sampler.batches(1, 13, seed=0))


def test_video_that_is_as_long_as_the_clip_is_drawn(prepared):
    frames, _ = ClipSampler(prepared, np.array([3])).draw(2, 3, torch.Generator())
    assert np.array_equal((255 * frames).round(), 2 * [make_videos()[3].frames])


def test_sampler_says_when_every_video_is_too_short(prepared):
    with pytest.raises(ValueError, match=r"none of the 4 videos .* has 13 frames"):
        ClipSampler(prepared, np.arange(4)).draw(1, 13, torch.Generator())


@pytest.mark.parametrize("n", [1, 20, 479, 1000])
def test_split_is_the_official_one(n):
    ids = list(range(n))
    np.random.RandomState(42).shuffle(ids)
    train, validation = train_validation_split(n, 42)
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


def make_raw(folder: Path, mark: str = "") -> list[Path]:
    """Write a raw file per video, of content that depends on `mark`."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.mp4" for number in range(len(LENGTHS))]
    for path in paths:
        path.write_text(path.name + mark)
    return paths


def make_jobs(paths: list[Path], log: list[int], bad: int | None = None) -> list[Job]:
    """A job per video, which logs that it ran; the job `bad` fails after a few frames.

    The last is of the test fold. The first letter of a raw file is the value of all pixels.
    """

    def read(number: int):
        log.append(number)
        video = make_videos()[number]
        frames = video.frames ^ paths[number].read_bytes()[-1]
        yield Video(video.name, damaged(frames, number) if number == bad else frames, video.extras)

    def damaged(frames, number):
        yield from frames[:2]
        raise ValueError(f"{number}.mp4 is damaged")

    return [
        Job("test" if number == 3 else "train", path.name, path.name, [path], partial(read, number))
        for number, path in enumerate(paths)
    ]


CONFIG = DataConfig("videos", channels=3, test_videos=1, test_frames=3)


def run(out: Path, jobs: list[Job], config: DataConfig = CONFIG) -> None:
    files = [file for job in jobs for file in job.files]
    train, test = stage(files[0].parent, out, config, jobs, files)
    write(config, (train, Fold([1])), (test, Fold([], [(0, 0)], config.test_frames)))


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def raw(tmp_path) -> list[Path]:
    return make_raw(tmp_path / "raw")


@pytest.fixture
def fresh(raw, tmp_path) -> dict[str, bytes]:
    """The content of a set that was written without a disturbance."""
    run(tmp_path / "fresh", make_jobs(raw, []))
    return content(tmp_path / "fresh")


def test_bad_source_keeps_what_is_finished(raw, fresh, tmp_path):
    log: list[int] = []
    with pytest.raises(ValueError, match=r"1\.mp4 is damaged"):
        run(tmp_path / "out", make_jobs(raw, log, bad=1))
    assert not (tmp_path / "out" / "train").exists()
    finished = set(log) - {1}
    log.clear()
    run(tmp_path / "out", make_jobs(raw, log))
    assert set(log) == set(range(len(LENGTHS))) - finished
    assert content(tmp_path / "out") == fresh


def test_videos_are_in_the_order_of_names_whatever_that_of_the_jobs(raw, fresh, tmp_path):
    run(tmp_path / "out", make_jobs(raw, [])[::-1])
    assert content(tmp_path / "out") == fresh
    assert PreparedVideos.open(tmp_path / "out" / "train").names == [
        "video 0",
        "video 1",
        "video 2",
    ]


def test_set_that_is_up_to_date_is_left_alone_and_another_replaced(raw, tmp_path):
    log: list[int] = []
    out = tmp_path / "out"
    run(out, make_jobs(raw, log))
    before = [(out / fold / "manifest.json").stat().st_mtime_ns for fold in ("train", "test")]
    run(out, make_jobs(raw, log))
    assert len(log) == len(LENGTHS)
    assert before == [(out / f / "manifest.json").stat().st_mtime_ns for f in ("train", "test")]
    opened = PreparedVideos.open(out / "train")
    run(out, make_jobs(raw, log)[1:])
    assert len(PreparedVideos.open(out / "train")) == 2
    assert np.array_equal(opened.clip(2, 0, 9), make_videos()[2].frames ^ ord("4"))  # still mapped


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def run_and_die(moment: int, *args) -> bool:
    """Run in a process that is killed before change number `moment` of a file; tell if it was."""
    seen = itertools.count()

    def kill(event: str, args: tuple) -> None:
        opens = event == "open" and str(args[1]) != "r"
        if (event in CHANGES or opens) and next(seen) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        sys.addaudithook(kill)
        run(*args)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("stale", ["raw files", "test clips"])
def test_run_killed_at_any_moment_is_completed_by_the_next(raw, fresh, tmp_path, stale):
    """Where a set of other raw files is to be replaced, and where only other clips are listed."""
    jobs, config = make_jobs(raw, []), CONFIG
    if stale == "raw files":
        jobs = make_jobs(make_raw(tmp_path / "other", "?"), [])
    else:
        config = replace(CONFIG, test_frames=2)
    for moment in itertools.count():
        out = tmp_path / f"{moment}" / "out"
        run(out, jobs, config)
        killed = run_and_die(moment, out, make_jobs(raw, []))
        run(out, make_jobs(raw, []))
        assert content(out) == fresh, moment
        if not killed:
            break
    assert moment > (40 if stale == "raw files" else 2)


def test_part_is_removed_only_when_its_rows_are_in_the_array(raw, fresh, tmp_path, monkeypatch):
    """A kill right after the removal loses nothing."""
    unlink, removed = Path.unlink, []

    def check(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".frames":
            (array,) = (tmp_path / "out").glob(f".staging/whole-*/{path.parent.name}/frames.npy")
            assert path.read_bytes() in array.read_bytes()
            removed.append(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", check)
    run(tmp_path / "out", make_jobs(raw, []))
    assert len(removed) == len(LENGTHS)
    assert content(tmp_path / "out") == fresh


def test_raw_files_that_change_after_a_kill_are_read_again(raw, fresh, tmp_path):
    """Also where parts had been moved into the arrays already."""
    other = make_raw(tmp_path / "other", "?")
    for moment in range(1, 60, 4):
        out = tmp_path / str(moment) / "out"
        assert run_and_die(moment, out, make_jobs([raw[0], *other[1:]], []))
        run(out, make_jobs(raw, []))
        assert content(out) == fresh, moment


def test_full_disk_names_the_file_and_the_next_run_completes(raw, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # of 144 bytes a frame
    try:
        with pytest.raises(OSError, match=r"no room to write .*\.staging.*finished is kept"):
            run(tmp_path / "out", make_jobs(raw, []))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log: list[int] = []
    run(tmp_path / "out", make_jobs(raw, log))
    assert 0 < len(log) < len(LENGTHS)
    assert len(PreparedVideos.open(tmp_path / "out" / "train")) == len(LENGTHS) - 1


def test_other_settings_do_not_reuse_what_is_finished(raw, tmp_path):
    with pytest.raises(ValueError, match="damaged"):
        run(tmp_path / "out", make_jobs(raw, [], bad=3))
    log: list[int] = []
    run(tmp_path / "out", make_jobs(raw, log), replace(CONFIG, size=32))
    assert log == list(range(len(LENGTHS)))


def test_folder_that_is_no_prepared_set_is_never_replaced(raw, tmp_path):
    (tmp_path / "out" / "train").mkdir(parents=True)
    precious = tmp_path / "out" / "train" / "holiday.mp4"
    precious.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="is not a prepared set"):
        run(tmp_path / "out", make_jobs(raw, []))
    with pytest.raises(FileExistsError, match="is not a prepared set"):
        write_prepared(tmp_path / "out" / "train", make_videos(), Fold())
    assert precious.read_bytes() == b"precious"


def test_videos_that_cannot_be_stored_together_are_refused(tmp_path):
    wide = Video("wide", np.zeros((2, 3, 8, 9), np.uint8))
    with pytest.raises(ValueError, match=r"wide: frames of .*: all must have one size"):
        write_prepared(tmp_path / "train", [make_videos()[0], wide], Fold())
    empty = Video("empty", np.zeros((0, 3, 8, 6), np.uint8))
    with pytest.raises(ValueError, match=r"empty holds no frame"):
        write_prepared(tmp_path / "train", [empty], Fold())
    short = Video("short", np.zeros((2, 3, 8, 6), np.uint8), {"actions": np.zeros((1, 4))})
    with pytest.raises(ValueError, match=r"short: .*each array needs a row per frame"):
        write_prepared(tmp_path / "train", [short], Fold())
    assert os.listdir(tmp_path) == []


def test_parts_whose_arrays_differ_are_refused(raw, tmp_path):
    jobs = make_jobs(raw, [])
    bare = Video("bare", np.zeros((2, 3, 8, 6), np.uint8))
    jobs[0] = replace(jobs[0], read=lambda: [bare])
    with pytest.raises(ValueError, match=r"video 1 has arrays .*actions.*; others have"):
        run(tmp_path / "out", jobs)


def test_two_sources_of_one_name_are_refused(raw, tmp_path):
    jobs = make_jobs(raw, [])
    with pytest.raises(ValueError, match=r"0\.mp4 and 0\.mp4 are both 0\.mp4: remove one"):
        run(tmp_path / "out", [replace(jobs[0]), *jobs])
