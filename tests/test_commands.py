"""Commands as people mistype them: one line each, and nothing of theirs is overwritten."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from srvp import commands
from srvp.__main__ import main
from srvp.files import atomic_write
from srvp.models.interface import generator


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command; return its exit status and the last line on stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["srvp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return ended.value.code, said.splitlines()[-1]

    return run


NUMBERS = """--rate=0 --rate=-5 --rate=nan --rate=inf --rate=fast --seed=-1 --seed=1.5
--seed=99999999999999999999 --frames=0 --frames=-3 --samples=1e3 --given=0"""


@pytest.mark.parametrize("option", NUMBERS.split())
def test_numbers_that_mean_nothing_are_refused(run, option):
    name, value = option.split("=")
    status, said = run("predict", "walk.mp4", "--model", "smmnist_gpu", option)
    assert status == 2 and said.startswith(f"python -m srvp predict: error: argument {name}: ")
    assert repr(value) in said


@pytest.mark.parametrize("minutes", ["nan", "-1", "inf", "long"])
def test_minutes_are_a_number(run, minutes):
    """Training would never stop after nan minutes."""
    assert run("train", "tiny", f"--minutes={minutes}")[0] == 2


@pytest.mark.parametrize(
    ("video", "out"),
    [
        ("futures.mp4", "futures.mp4"),
        ("walk.gif", "walk.mp4"),  # a GIF is written, too
        ("walk.mp4", "walk"),
        ("frames", "frames/1.mp4"),  # a PNG is written, too: 1.png is a frame
        ("link.mp4", "walk.mp4"),
    ],
)
def test_predictions_do_not_overwrite_the_video(run, tmp_path, monkeypatch, video, out):
    monkeypatch.chdir(tmp_path)
    for name in ("futures.mp4", "walk.gif", "walk.mp4"):
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "link.mp4").symlink_to("walk.mp4")
    (tmp_path / "frames").mkdir()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "frames" / "1.png")
    status, said = run("predict", video, "--model", "smmnist_gpu", "--out", out)
    assert status == 2 and "choose another --out" in said and f" overwrite {video}," in said


def test_scores_are_not_written_into_the_predictions(run, tmp_path):
    """They would change the predictions' checksum."""
    out = tmp_path / "scores"
    status, said = run("score", tmp_path, "--experiment", "tiny", "--out", out)
    assert status == 2 and f"{out} would overwrite {tmp_path}" in said


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 4 TiB"), EOFError()])
def test_too_small_a_machine_is_one_line(run, monkeypatch, error):
    def fail(folder, experiment):
        raise error

    fail.__doc__ = commands.videos.__doc__
    monkeypatch.setattr(commands, "videos", fail)
    status, said = run("videos", ".")
    assert status == 2 and said == f"error: {str(error) or 'EOFError'}"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    """A checkpoint may be hundreds of megabytes. Files of processes that run are kept."""
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    left, other, running = (
        tmp_path / f".{name}.{process}.partial"
        for name, process in (("a[1].pt", child), ("b.pt", child), ("a[1].pt", os.getppid()))
    )
    for path in (left, other, running):
        path.touch()
    with atomic_write(tmp_path / "a[1].pt") as temporary:
        temporary.touch()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a[1].pt", other, running])


def test_a_date_can_be_a_seed():
    """PyTorch takes seeds below 2^64; those of numbered generators are multiples."""
    first, second = (generator(20261129123456, n).initial_seed() for n in (1, 2))
    assert second == first + 1
