import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor

from srvp import figures


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
    figures.animation([figures.futures(examples, v) for v in (0, 1)], 3, folder / "moving.gif")
    return {p.name: p.read_bytes() for p in folder.rglob("*.*")}


def test_figures_are_the_same_bytes_every_time(examples, tmp_path):
    first = draw_all(examples, tmp_path / "a")
    assert len(first) == 7
    assert draw_all(examples, tmp_path / "b") == first


def test_futures_begin_with_the_given_frames(examples):
    rows = figures.futures(examples, 1)
    assert list(rows) == ["truth", "best PSNR", "random", "worst PSNR"]
    for video in rows.values():
        assert np.array_equal(video[:3], examples["truth"][1, :3])
    assert np.array_equal(rows["worst PSNR"][3:], examples["psnr.worst"][1])


def test_animation_has_a_page_per_frame_with_green_then_red_borders(examples, tmp_path):
    figures.animation([figures.futures(examples, 0)], 3, tmp_path / "moving.gif")
    with Image.open(tmp_path / "moving.gif") as gif:
        assert gif.n_frames == 9
        for t in range(9):
            gif.seek(t)
            border = gif.convert("RGB").getpixel((5, 22 + 5))
            expected = ImageColor.getrgb(figures.GIVEN if t < 3 else figures.PREDICTED)
            assert np.abs(np.subtract(border, expected)).max() < 16  # a GIF has 256 colours
