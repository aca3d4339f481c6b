import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image, ImageColor

import srvp
from srvp.evaluation.futures import Futures
from srvp.report import animation, figures
from srvp.report.figures.states import around_bounces
from srvp.report.figures.style import BETWEEN, GIVEN, OTHERS, PREDICTED
from srvp.report.figures.style import CURVES as CURVES_OF_MODELS

CURVES = pd.DataFrame(
    [(p, m, t, 1.0 * t, 0.5) for p in "ab" for m in ("psnr", "ssim") for t in (4, 5, 6)],
    columns=["predictor", "metric", "frame", "mean", "ci95"],
)


def noise(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


@pytest.fixture
def examples():
    lengths = {"truth": 9} | dict.fromkeys(["random", "psnr.best", "psnr.worst"], 6)
    return {k: noise(2, t, 1, 64, 64, seed=i) for i, (k, t) in enumerate(lengths.items())}


def draw_all(examples):
    figures.use_style()
    samples, norms = noise(5, 6, 1, 64, 64), np.random.RandomState(2).rand(4, 9)
    history = pd.DataFrame({"step": range(30), "total": np.linspace(3, 1, 30)})
    options = {"m": {"psnr": 14.0, "psnr_ci95": 0.2}, "m, steps = 2": {"psnr": 14.1}}
    return {
        "grid": figures.sample_grid(figures.futures(examples, 1), 3, [0, 2, 3, 8], "clip 1"),
        "curves": figures.metric_curves(CURVES),
        "training": figures.training_curves(history, {"total": "loss (nats)"}),
        "diversity": figures.diversity_maps(samples, [0, 2, 5], 4),
        "rates": figures.frame_rates({r: samples[0].repeat(r, axis=0) for r in (1, 2)}, 4, 3),
        "norms": figures.residual_norms(norms, norms > 0.8),
        "paths": figures.trajectories(norms[:, :2], norms[None, :, 2:4], 2),
        "options": figures.prediction_options(options, list(options)),
        "model": figures.generative_model(),
    }


def write(examples, folder):
    drawn = draw_all(examples)
    for name in ("grid", "curves", "norms"):
        figures.save(drawn[name], folder, name)
    clips = [figures.futures(examples, v) for v in (0, 1)]
    animation.save(animation.Pages(clips, 3), folder, "moving")
    return {p.name: p.read_bytes() for p in folder.rglob("*.*")}


def test_figures_are_the_same_bytes_every_time(examples, tmp_path):
    first = write(examples, tmp_path / "a")
    assert len(first) == 8
    assert write(examples, tmp_path / "b") == first


def test_no_figure_is_held_by_pyplot(examples):
    """In a notebook, pyplot keeps every figure until the cell ends."""
    draw_all(examples)
    assert pyplot.get_fignums() == []
    package = Path(srvp.__file__).parent
    sources = [*package.rglob("*.py"), *(package.parent / "notebooks").glob("*.ipynb")]
    assert len(sources) > 20
    assert not [p.name for p in sources if re.search(r"import.*\bpyplot\b", p.read_text())]


def test_titles_are_larger_than_labels(examples):
    drawn = draw_all(examples)
    for figure in drawn.values():
        for ax in figure.axes:
            labels = [ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
            assert ax.title.get_fontsize() > max(label.get_fontsize() for label in labels)
    grid = drawn["grid"]
    (title,) = (text for text in grid.texts if text.get_text() == "clip 1")
    assert title.get_fontsize() > grid.axes[0].title.get_fontsize()


# Frames.


def shown(ax):
    """Return what an axis shows: the colour of its border and the picture."""
    return to_hex(ax.spines["left"].get_edgecolor()), ax.images[0].get_array()


def test_a_grid_has_the_asked_frames_with_green_then_red_borders(examples):
    rows = {"first": examples["truth"][0], "second": examples["truth"][1]}
    grid = figures.sample_grid(rows, {"first": 3, "second": 0}, [0, 2, 3, 8])
    assert [ax.get_title() for ax in grid.axes] == ["t = 1", "t = 3", "t = 4", "t = 9"] + 4 * [""]
    assert [ax.get_ylabel() for ax in grid.axes[::4]] == ["first", "second"]
    borders, pictures = zip(*map(shown, grid.axes), strict=True)
    assert borders == (GIVEN, GIVEN, PREDICTED, PREDICTED, *4 * [PREDICTED])
    assert np.array_equal(pictures, examples["truth"][:, [0, 2, 3, 8], 0].reshape(8, 64, 64))
    assert {ax.images[0].get_clim() for ax in grid.axes} == {(0, 255)}  # dark frames stay dark


def test_colour_frames_of_any_size_are_drawn():
    video = noise(4, 3, 128, 128)
    grid = figures.sample_grid({"clip": video}, 1, [3])
    assert np.array_equal(shown(grid.axes[0])[1], video[3].transpose(1, 2, 0))
    page = animation.Pages([{"clip": video}], 1)[3]
    inside = animation.BORDER + animation.MARGIN
    frame = page[animation.HEADER :][inside:-inside, inside:-inside]
    assert np.array_equal(frame, video[3].transpose(1, 2, 0))


def test_frames_to_draw_begin_with_the_given_and_end_with_the_last():
    assert figures.spread(5, 25) == [0, 4, 5, 8, 11, 14, 18, 21, 24]
    assert figures.spread(1, 3) == [0, 1, 2]


def test_diversity_is_the_deviation_between_futures():
    """Three futures, of which one is white in the second frame, and all others are black."""
    samples = np.zeros((3, 2, 1, 64, 64), np.uint8)
    samples[1, 1] = 255
    axes = np.reshape(figures.diversity_maps(samples, [0, 1], 4).axes[:6], (3, 2))
    values = [[float(ax.images[0].get_array().mean()) for ax in row] for row in axes]
    assert values == [[0, 0], [0, 85], [0, pytest.approx(2**0.5 / 3)]]
    assert [ax.get_title() for ax in axes[0]] == ["t = 4", "t = 5"]
    assert axes[1, 0].get_ylabel() == "mean of 3"


def test_rows_at_several_frame_rates_have_their_frames_at_their_times():
    """At twice the rate there is one frame more between two; whole times are below each other."""
    videos = {rate: noise(4 * rate, 1, 64, 64, seed=rate) for rate in (1, 2)}
    axes = figures.frame_rates(videos, 6, frames=3).axes
    once, twice = axes[:3], axes[3:]
    assert len(twice) == 5
    assert [ax.get_position().x0 for ax in once] == [ax.get_position().x0 for ax in twice[::2]]
    assert once[0].get_position().y0 > twice[0].get_position().y0
    assert [ax.get_title() for ax in once] == ["t = 6", "t = 7", "t = 8"]
    borders, pictures = zip(*map(shown, twice), strict=True)
    assert borders == (PREDICTED, BETWEEN, PREDICTED, BETWEEN, PREDICTED)
    assert np.array_equal(pictures, videos[2][1:6, 0])  # the first is between 5 and 6
    assert np.array_equal([shown(ax)[1] for ax in once], videos[1][:3, 0])


def test_futures_begin_with_the_given_frames(examples):
    rows = figures.futures(examples, 1)
    assert list(rows) == ["truth", "best PSNR", "random", "worst PSNR"]
    for video in rows.values():
        assert np.array_equal(video[:3], examples["truth"][1, :3])
    for label, name in {"best": "psnr.best", "random": "random", "worst": "psnr.worst"}.items():
        (video,) = (row for key, row in rows.items() if key.startswith(label))
        assert np.array_equal(video[3:], examples[name][1])


def test_the_one_future_of_a_video_is_shown_once(examples):
    one = {name: examples["random"] for name in ("random", "psnr.best", "psnr.worst")}
    rows = figures.futures({"truth": examples["truth"], **one}, 0)
    assert list(rows) == ["truth", "prediction"]
    assert np.array_equal(rows["prediction"][3:], examples["random"][0])


def test_frames_become_bytes():
    x = torch.tensor([0.0, 0.4999, 0.5001, 1.0])
    assert figures.to_bytes(x).tolist() == [0, 127, 128, 255]


# Curves.


def test_bands_are_the_intervals_around_the_means():
    figure = figures.metric_curves(CURVES)
    assert [ax.get_ylabel() for ax in figure.axes] == ["PSNR (dB)", "SSIM"]
    for ax in figure.axes:
        for name, line, band in zip("ab", ax.lines, ax.collections, strict=True):
            assert line.get_label() == name
            assert to_hex(band.get_facecolor()[0]) == to_hex(line.get_color())
            assert line.get_xydata().tolist() == [[4, 4], [5, 5], [6, 6]]
            edges = band.get_paths()[0].vertices
            assert {tuple(edge) for edge in edges} >= {(5, 4.5), (5, 5.5), (6, 5.5), (6, 6.5)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_models_have_colours_and_references_greys():
    names = ["first", "second", "perfect model (best of 10)", "black frame"]
    curves = pd.concat([CURVES[CURVES["predictor"] == "a"].assign(predictor=n) for n in names])
    lines = figures.metric_curves(curves).axes[0].lines
    colors = [line.get_color() for line in lines]
    assert colors == [*CURVES_OF_MODELS[:2], OTHERS, OTHERS]
    assert lines[2].get_linestyle() != lines[3].get_linestyle()


def test_a_frame_that_comes_back_does_not_flatten_the_curves():
    curves = pd.DataFrame({"frame": range(9), "mean": 13.0, "ci95": 0.5})
    curves = curves.assign(predictor="copy last frame", metric="psnr")
    curves.loc[5, "mean"] = 100.0
    assert figures.metric_curves(curves).axes[0].get_ylim()[1] == 26
    curves.loc[5, "mean"] = 16.0
    assert 16 < figures.metric_curves(curves).axes[0].get_ylim()[1] < 17
    curves = curves.assign(metric="ssim", mean=[0.1] * 8 + [0.9])  # this is possible
    assert figures.metric_curves(curves).axes[0].get_ylim()[1] > 0.9


def test_terms_of_a_loss_are_called_as_the_model_calls_them():
    history = pd.DataFrame({"step": [1, 2, 3], "lr": 0.1, "total": 3.0, "kl": 1.0, "adv": 2.0})
    history.loc[1, "validation_psnr"] = 14.0
    figure = figures.training_curves(history, {"kl": "KL of z (nats per video)"})
    titles = [(ax.get_title(), ax.get_ylabel()) for ax in figure.axes]
    assert titles == [
        ("loss", ""),
        ("KL of z", "nats per video"),
        ("adv", ""),
        ("validation PSNR, best sample", "dB"),
    ]
    points = [ax.lines[0].get_xydata().tolist() for ax in figure.axes]
    assert points[1] == [[1, 1], [2, 1], [3, 1]]
    assert points[3] == [[2, 14]]
    assert figures.training_curves(history, {"total": "ELBO"}).axes[0].get_title() == "ELBO"


def test_the_psnr_of_single_frames_is_drawn_beside_the_mean():
    history = pd.DataFrame({"step": [1, 2], "lr": 0.1, "validation_psnr": [14.0, 15.0]})
    history["validation_psnr_1"], history["validation_energy"] = [19.0, 20.0], [40.0, 38.0]
    psnr, energy = figures.training_curves(history, {}).axes
    assert [line.get_ydata().tolist() for line in psnr.lines] == [[14, 15], [19, 20]]
    assert [(text.get_text(), text.xy) for text in psnr.texts] == [("frame 1", (2, 20))]
    assert energy.get_title() == "validation energy score"


@pytest.mark.filterwarnings("error")
def test_first_steps_do_not_hide_the_later_ones():
    history = pd.DataFrame({"step": range(100), "total": [1e6, *range(1, 100)], "kl": 1.0})
    total, constant = figures.training_curves(history, {}).axes
    assert total.get_ylim() == (5, 99)
    assert constant.get_ylim()[0] < 1 < constant.get_ylim()[1]


def test_many_terms_of_a_loss_have_room_for_their_titles():
    """Those of SAVP, which leaves out a term here: it is always 0."""
    figures.use_style()
    terms = [f"generator_term_of_a_long_name_{i}" for i in range(11)]
    history = pd.DataFrame({"step": range(5), **dict.fromkeys(terms, 1.0), "off": 0.0})
    figure = figures.training_curves(history, {})
    assert [ax.get_title().replace("\n", " ") for ax in figure.axes] == [
        term.replace("_", " ") for term in terms
    ]
    figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# Intervals.


def test_options_of_prediction_are_drawn_with_their_intervals():
    """A row per option, the first on top, and only the metrics that were measured."""
    scores = {
        "m": {"psnr": 14.0, "psnr_ci95": 0.5, "lpips": 0.3},
        "other": {"psnr": 9.0},
        "m, euler_steps = 2": {"psnr": 15.0, "psnr_ci95": 1.0},
    }
    figure = figures.prediction_options(scores, ["m", "m, euler_steps = 2"])
    psnr, lpips = figure.axes
    assert [label.get_text() for label in psnr.get_yticklabels()] == ["m", "m, euler_steps = 2"]
    assert psnr.get_ylim() == (1.5, -0.5)
    assert [ax.get_xlabel() for ax in figure.axes] == ["PSNR (dB) ↑", "LPIPS ↓"]
    bars = [bar.get_segments()[0][:, 0].tolist() for bar in psnr.collections]
    assert bars == [[13.5, 14.5], [14, 16]]
    assert [line.get_xydata().tolist() for line in psnr.lines] == [[[14, 0]], [[15, 1]]]
    assert [text.get_text() for text in lpips.texts] == ["0.3000"]


# States.


def test_residual_norms_have_dots_where_a_digit_bounces():
    norms = np.arange(8.0).reshape(2, 4)
    bounces = np.array([[False, True, False, False], [False, False, False, True]])
    single, around = figures.residual_norms(norms, bounces).axes
    lines = [line.get_xydata().tolist() for line in single.lines]
    assert lines == [
        [[2, 0], [3, 1], [4, 2], [5, 3]],
        [[3, 1]],
        [[2, 4], [3, 5], [4, 6], [5, 7]],
        [[5, 7]],
    ]
    assert around.lines[0].get_xydata()[3:6].tolist() == [[0, 4], [1, 2], [2, 3]]
    assert set(around.lines[1].get_ydata()) == {3.5}  # the mean of all frames
    assert len(figures.residual_norms(norms).axes) == 1


def test_means_around_bounces_count_every_frame_near_one():
    """Two bounces: the second is in the last frame, which has none after it."""
    norms = np.array([[0.0, 1, 2, 3, 4, 8]])
    bounces = np.array([[False, False, True, False, False, True]])
    table = around_bounces(norms, bounces, reach=1)
    assert table.index.tolist() == [-1, 0, 1]
    assert table["mean"].tolist() == [2.5, 5, 3]  # of 1 and 4, of 2 and 8, of 3
    deviations = np.array([1.5, 3, 0])
    assert np.allclose(table["ci95"], 1.96 * deviations / np.sqrt([2, 2, 1]))


def test_futures_leave_from_the_last_given_state():
    """With two states per frame, every second one is at a whole time and drawn larger."""
    given, futures = np.array([[0.0, 0], [1, 1]]), np.arange(2.0, 10).reshape(1, 4, 2)
    ax = figures.trajectories(given, futures, steps=2).axes[0]
    assert ax.lines[0].get_xydata().tolist() == [[1, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert ax.lines[1].get_xydata().tolist() == given.tolist()
    every, whole = (dots.get_offsets().tolist() for dots in ax.collections)
    assert every == futures[0].tolist() and whole == [[4, 5], [8, 9]]
    sizes = [dots.get_sizes()[0] for dots in ax.collections]
    assert sizes[0] < sizes[1]


def test_in_the_graphical_model_frames_depend_on_content_and_state_only():
    ax = figures.generative_model().axes[0]
    names = {text.get_position(): text.get_text().strip("$") for text in ax.texts}
    arrows = [(names[a.xyann], names[a.xy]) for a in ax.texts if isinstance(a, Annotation)]
    parents = {name: {start for start, end in arrows if end == name} for name in names.values()}
    for t, before in ((1, None), (2, 1), (3, 2)):
        assert parents[f"x_{t}"] == {"w", f"y_{t}"}
        assert parents[f"y_{t}"] == ({f"y_{before}", f"z_{t}"} if before else set())
    assert parents["z_2"] == {"y_1"} and parents["z_3"] == {"y_2"} and parents["w"] == set()


# Files.


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


def test_animation_has_a_page_per_frame_with_green_then_red_borders(examples, tmp_path):
    animation.save(animation.Pages([figures.futures(examples, 0)], 3), tmp_path, "moving")
    with Image.open(tmp_path / "figures" / "moving.gif") as gif:
        pages, duration = [], gif.info["duration"]
        for t in range(gif.n_frames):
            gif.seek(t)
            pages.append(np.array(gif.convert("RGB")))
    with av.open(str(tmp_path / "print" / "moving.mp4")) as film:
        assert round(1000 / film.streams.video[0].average_rate) == pytest.approx(duration, abs=10)
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(pages) == len(frames) == 9
    for t, (page, frame) in enumerate(zip(pages, frames, strict=True)):
        expected = ImageColor.getrgb(GIVEN if t < 3 else PREDICTED)
        border = (animation.HEADER + 5, 5)
        assert np.abs(page[border].astype(int) - expected).max() < 16  # a GIF has 256 colours
        assert page[1, 1].tolist() == [255, 255, 255]
        assert np.abs(frame[border].astype(int) - expected).max() < 48  # colour at half resolution


def test_an_animation_moves_as_the_videos_do(examples):
    """Rows are videos and columns their labels; a frame of 64 pixels is drawn at twice its size."""
    clips = [figures.futures(examples, v) for v in (0, 1)]
    for t, page in enumerate(animation.Pages(clips, 3)):
        cells = page[animation.HEADER :].reshape(2, 140, 4, 140, 3)[:, 6:-6:2, :, 6:-6:2, 0]
        for row, clip in enumerate(clips):
            assert np.array_equal(cells[row].swapaxes(0, 1), [v[t, 0] for v in clip.values()])


def test_labels_of_several_lines_stand_whole_above_the_videos(examples):
    clip = figures.futures(examples, 0)
    long = {f"SV2P\n{label}\nbest of 20": video for label, video in clip.items()}
    one, several = (animation.Pages([videos], 3)[0] for videos in (clip, long))
    taller = len(several) - len(one)
    assert np.array_equal(several[animation.HEADER + taller :], one[animation.HEADER :])
    ink = (several[: animation.HEADER + taller] < 128).any(axis=(1, 2))
    rows = np.flatnonzero(ink)
    assert rows[0] > 0 and rows[-1] < len(ink) - 1  # nothing is cut off
    assert np.sum(np.diff(rows) > 1) >= 2  # three lines, with space between


@pytest.mark.parametrize("samples", [3, 20])
def test_futures_of_a_video_are_written_beside_what_follows(samples, tmp_path):
    """Two frames are given and four predicted; the video has only one of these."""
    futures = Futures(
        given=noise(2, 1, 64, 64),
        truth=noise(1, 1, 64, 64),
        samples=noise(samples, 4, 1, 64, 64),
        how_read="",
    )
    paths = animation.write_futures(futures, tmp_path / "futures.gif")
    assert [p.name for p in paths] == ["futures.mp4", "futures.gif", "futures.png"]
    with av.open(str(paths[0])) as film:
        pages = [frame.to_ndarray(format="gray") for frame in film.decode(video=0)]
    zoom, columns = (2, 6) if samples == 3 else (1, 6)
    cell, inside = 64 * zoom + 12, slice(6, -6)
    assert len(pages) == 6
    assert pages[0].shape[1] == cell * min(columns, samples + 1)
    videos = [np.concatenate([futures.given, sample]) for sample in futures.samples]
    for i, video in enumerate(videos, start=1):
        top = i // columns * (22 + cell) + 22
        left = i % columns * cell
        for page, frame in zip(pages, video, strict=True):
            drawn = page[top : top + cell, left : left + cell][inside, inside]
            error = np.abs(drawn[::zoom, ::zoom].astype(int) - frame[0])
            assert error.mean() < 12  # noise, compressed; another frame is some 85 away
    truth = [page[22 : 22 + cell, :cell][inside, inside].mean() for page in pages]
    assert min(truth[3:]) > 250 and max(truth[:3]) < 150  # white where the video has ended
    with Image.open(paths[1]) as gif, Image.open(paths[2]) as picture:
        assert gif.n_frames == 6 and gif.width == 140 * min(6, samples + 1)
        assert picture.height > picture.width * min(samples, 11) / 12


def test_plots_are_stored_in_a_palette_and_photographs_are_not(tmp_path):
    rng = np.random.default_rng(0)
    plot, photograph = Figure(), Figure()
    plot.subplots().plot(rng.random((20, 3)))
    photograph.add_axes((0, 0, 1, 1)).imshow(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for figure, mode in ((plot, "P"), (photograph, "RGB")):
        figures.save(figure, tmp_path, mode)
        with Image.open(tmp_path / "figures" / f"{mode}.png") as stored:
            assert stored.mode == mode
            drawn = BytesIO()
            figure.savefig(drawn, format="png")
            difference = np.asarray(stored.convert("RGB"), int) - Image.open(drawn).convert("RGB")
            assert np.abs(difference).mean() < 1
