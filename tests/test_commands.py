"""Commands as people mistype them: one line each, and nothing of theirs is overwritten."""

import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from srvp import commands
from srvp.__main__ import main
from srvp.files import atomic_write
from srvp.models.interface import generator
from srvp.processes import in_processes


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


@pytest.mark.parametrize(
    "option", ["--model=smmnist_gpu", "--clips=2", "--metrics=psnr", "--precision=float32"]
)
def test_partial_results_do_not_overwrite_those_of_a_run(run, option):
    status, said = run("evaluate", "tiny", option)
    name = option.partition("=")[0]
    assert status == 2 and said.startswith(f"error: {name} needs --out: the results of ")
    assert said.endswith(os.path.join("runs", "tiny") + " would be overwritten")


def test_results_elsewhere_are_of_the_model_of_the_run(run, tmp_path, monkeypatch):
    """Unless a run was trained there."""

    def show(path, device):
        raise ValueError(f"reads {path}")

    monkeypatch.setattr("srvp.store.load_model", show)
    _, said = run("evaluate", "tiny", "--clips=2", "--out", tmp_path)
    assert said.endswith(os.path.join("runs", "tiny", "model.safetensors"))
    (tmp_path / "model.safetensors").touch()
    _, said = run("evaluate", "tiny", "--clips=2", "--out", tmp_path)
    assert said == f"error: reads {tmp_path / 'model.safetensors'}"


def test_a_folder_does_not_hide_a_pretrained_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("srvp.store.pretrained_file", lambda name: f"pretrained {name}")
    assert commands._model_file("mine") == "pretrained mine"
    (tmp_path / "mine").rmdir()
    (tmp_path / "mine").touch()
    assert str(commands._model_file("mine")) == "mine"


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


def raises(number: int) -> None:
    raise ValueError("in a process:\nno such thing")


def is_killed(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("fails", "line"),
    [(raises, "no such thing"), (is_killed, "process 0 terminated with signal SIGKILL")],
)
def test_an_error_in_one_of_several_processes_is_one_line(run, monkeypatch, fails, line):
    def videos(folder, experiment):
        in_processes(fails, (), 1)

    videos.__doc__ = commands.videos.__doc__
    monkeypatch.setattr(commands, "videos", videos)
    assert run("videos", ".") == (2, f"error: {line}")
