import os
import subprocess
import sys
from io import BytesIO

import av
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageColor

from srvp.report import animation, figures


@pytest.fixture
def examples():
    random = np.random.RandomState(0)
    shape = {"truth": 9} | dict.fromkeys(["random", "psnr.best", "psnr.worst"], 6)
    return {k: random.randint(0, 256, (2, t, 1, 64, 64)).astype(np.uint8) for k, t in shape.items()}


def draw_all(examples, folder):
    figures.use_style()
    rows = figures.futures(examples, 1)
    figures.save(figures.sample_grid(rows, 3, [0, 2, 3, 8]), folder, "grid")
    curves = pd.DataFrame(
        [(p, m, t, 1.0 * t, 0.5) for p in "ab" for m in ("psnr", "ssim") for t in (4, 5, 6)],
        columns=["predictor", "metric", "frame", "mean", "ci95"],
    )
    figures.save(figures.metric_curves(curves), folder, "curves")
    history = pd.DataFrame({"step": range(30), "total": np.linspace(3, 1, 30)})
    figures.save(figures.training_curves(history), folder, "training")
    samples = np.random.RandomState(1).randint(0, 256, (5, 6, 1, 64, 64)).astype(np.uint8)
    figures.save(figures.diversity_maps(samples, [0, 2, 5], 4), folder, "diversity")
    rates = {rate: samples[0].repeat(rate, axis=0) for rate in (1, 2)}
    figures.save(figures.frame_rates(rates, 4, 3), folder, "rates")
    norms = np.random.RandomState(2).rand(4, 9)
    figures.save(figures.residual_norms(norms, norms > 0.8), folder, "norms")
    figures.save(figures.trajectories(norms[:, :2], norms[None, :, 2:4], 2), folder, "paths")
    steps = pd.DataFrame({"steps": [1, 2], "metric": "psnr", "mean": [14.0, 14.1], "ci95": 0.2})
    figures.save(figures.step_sizes(steps), folder, "steps")
    figures.save(figures.generative_model(), folder, "model")
    clips = [figures.futures(examples, v) for v in (0, 1)]
    animation.save(animation.pages(clips, 3), folder, "moving")
    return {p.name: p.read_bytes() for p in folder.rglob("*.*")}


def test_figures_are_the_same_bytes_every_time(examples, tmp_path):
    first = draw_all(examples, tmp_path / "a")
    assert len(first) == 20
    assert draw_all(examples, tmp_path / "b") == first


def test_animations_do_not_depend_on_what_memory_held(tmp_path):
    """x264 on a processor with AVX-512 used to read memory before it was written.

    glibc fills what it hands out with the byte in MALLOC_PERTURB_.
    """
    code = (
        "import sys, numpy, pathlib\n"
        "from srvp.report import animation\n"
        "pages = numpy.random.RandomState(0).randint(0, 256, (4, 302, 560, 3), numpy.uint8)\n"
        "animation.save(pages, pathlib.Path(sys.argv[1]), 'moving')\n"
    )
    written = set()
    for fill in ("1", "2"):
        command = [sys.executable, "-c", code, tmp_path / fill]
        subprocess.run(command, check=True, env=os.environ | {"MALLOC_PERTURB_": fill})
        written.add((tmp_path / fill / "print" / "moving.mp4").read_bytes())
    assert len(written) == 1


def test_a_frame_that_comes_back_does_not_flatten_the_curves():
    curves = pd.DataFrame({"frame": range(9), "mean": 13.0, "ci95": 0.5})
    curves = curves.assign(predictor="copy last frame", metric="psnr")
    curves.loc[5, "mean"] = 100.0
    assert figures.metric_curves(curves).axes[0].get_ylim()[1] == 26
    curves.loc[5, "mean"] = 16.0
    assert 16 < figures.metric_curves(curves).axes[0].get_ylim()[1] < 17


def test_futures_begin_with_the_given_frames(examples):
    rows = figures.futures(examples, 1)
    assert list(rows) == ["truth", "best PSNR", "random", "worst PSNR"]
    for video in rows.values():
        assert np.array_equal(video[:3], examples["truth"][1, :3])
    assert np.array_equal(rows["worst PSNR"][3:], examples["psnr.worst"][1])


def test_the_one_future_of_a_video_is_shown_once(examples):
    one = {name: examples["random"] for name in ("random", "psnr.best", "psnr.worst")}
    rows = figures.futures({"truth": examples["truth"], **one}, 0)
    assert list(rows) == ["truth", "prediction"]
    assert np.array_equal(rows["prediction"][3:], examples["random"][0])


def test_animation_has_a_page_per_frame_with_green_then_red_borders(examples, tmp_path):
    animation.save(animation.pages([figures.futures(examples, 0)], 3), tmp_path, "moving")
    with Image.open(tmp_path / "figures" / "moving.gif") as gif:
        pages = []
        for t in range(gif.n_frames):
            gif.seek(t)
            pages.append(np.array(gif.convert("RGB")))
    with av.open(str(tmp_path / "print" / "moving.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(pages) == len(frames) == 9
    for t, (page, frame) in enumerate(zip(pages, frames, strict=True)):
        expected = ImageColor.getrgb(figures.GIVEN if t < 3 else figures.PREDICTED)
        border = (animation.HEADER + 5, 5)
        assert np.abs(page[border].astype(int) - expected).max() < 16  # a GIF has 256 colours
        assert page[1, 1].tolist() == [255, 255, 255]
        assert np.abs(frame[border].astype(int) - expected).max() < 48  # colour at half resolution


def test_plots_are_stored_in_a_palette_and_photographs_are_not(tmp_path):
    rng = np.random.default_rng(0)
    plot, photograph = plt.subplots()[0], plt.figure()
    plot.axes[0].plot(rng.random((20, 3)))
    photograph.add_axes((0, 0, 1, 1)).imshow(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for figure, mode in ((plot, "P"), (photograph, "RGB")):
        plt.close(figure)
        figures.save(figure, tmp_path, mode)
        with Image.open(tmp_path / "figures" / f"{mode}.png") as stored:
            assert stored.mode == mode
            drawn = BytesIO()
            figure.savefig(drawn, format="png")
            difference = np.asarray(stored.convert("RGB"), int) - Image.open(drawn).convert("RGB")
            assert np.abs(difference).mean() < 1


def test_frames_become_bytes():
    assert figures.to_bytes(torch.tensor([0.0, 0.4999, 1.0])).tolist() == [0, 127, 255]


def test_rows_at_several_frame_rates_have_their_frames_at_their_times():
    """At twice the rate there is one frame more between two; whole times stand below each other."""
    videos = {rate: np.zeros((4 * rate, 1, 64, 64), np.uint8) for rate in (1, 2)}
    axes = figures.frame_rates(videos, 6, frames=3).axes
    once, twice = axes[:3], axes[3:]
    assert len(twice) == 5
    assert [ax.get_position().x0 for ax in once] == [ax.get_position().x0 for ax in twice[::2]]


def test_means_around_bounces_count_every_frame_near_one():
    norms = np.arange(6.0)[None]
    bounces = np.array([[False, False, True, False, False, False]])
    table = figures.around_bounces(norms, bounces, reach=1)
    assert table.to_numpy().tolist() == [[-1, 1], [0, 2], [1, 3]]
