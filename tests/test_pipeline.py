"""Every data set from the owners' files to figures, and the pipeline as DVC would run it."""

import shutil
from dataclasses import replace

import papermill
import pytest
import raw_archives
import torch
import yaml
from conftest import ROOT
from safetensors.numpy import load_file

from srvp import evaluation, figures
from srvp.config import load_experiment
from srvp.data import open_test, open_training, prepare
from srvp.training import train

RAW = {
    "kth": lambda folder: raw_archives.write_kth(folder, length=lambda name: 10),
    "human36m": lambda folder: raw_archives.write_human36m(folder, frames=(60,)),
    "bair": raw_archives.write_bair,
}
GIVEN, TEST_FRAMES = {"kth": 4, "human36m": 4, "bair": 2}, {"kth": 8, "human36m": 7, "bair": 30}


def shrunk(name: str):
    """The published experiment with small networks, few steps and short clips."""
    e = load_experiment(ROOT / "params.yaml", name)
    return replace(
        e,
        data=replace(e.data, test_videos=2, test_frames=TEST_FRAMES[name]),
        model=replace(e.model, nf=2, nhx=8, nh_inf=8, nh_res=8, ny=4, nz=4),
        training=replace(
            e.training,
            frames=6,
            batch_size=2,
            constant_steps=1,
            decay_steps=1,
            validation_frames=6,
            validation_videos=1,
            validation_samples=2,
            device="cpu",
        ),
        evaluation=replace(
            e.evaluation,
            conditioning_frames=GIVEN[name],
            samples=2,
            batch_size=2,
            metrics=("psnr", "ssim"),  # FVD needs more and longer clips
        ),
    )


@pytest.mark.parametrize("name", RAW)
def test_real_data_sets_from_raw_files_to_figures(name, tmp_path):
    RAW[name](tmp_path / "data" / name)
    experiment = shrunk(name)
    prepare(experiment.data, tmp_path / "data", tmp_path / "prepared")
    videos = open_training(experiment.data, tmp_path / "prepared", torch.device("cpu"))
    model = train(experiment, videos, tmp_path)
    test = open_test(experiment.data, tmp_path / "prepared")
    scores = evaluation.evaluate_experiment(model, experiment, test, tmp_path)
    examples = tmp_path / "examples.safetensors"
    evaluation.write_examples(model, experiment, test, scores[name], examples)
    rows = figures.futures(load_file(examples), 0)
    assert rows["truth"].shape == (TEST_FRAMES[name], experiment.data.channels, 64, 64)
    figures.save(figures.sample_grid(rows, GIVEN[name], [0, 3, 5]), tmp_path, "samples")
    figures.animation([rows], GIVEN[name], tmp_path / "figures" / "moving.gif")
    assert len(list((tmp_path / "figures").iterdir())) == 2


def test_real_videos_go_through_the_notebooks(tmp_path):
    """The last notebook, run on its own, asks for the ones before: the whole pipeline."""
    folds = {"carphone_pristine": "test", "carphone_distorted": "validation"}
    for path in raw_archives.real_videos():
        folder = tmp_path / "data" / "videos" / folds.get(path.stem, "train")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    tiny = params["experiments"]["tiny"]
    tiny["data"] |= {"dataset": "videos", "channels": 3, "test_videos": 1, "test_frames": 9}
    tiny["training"] |= {"validation_frames": 8, "frames": 8, "constant_steps": 2, "decay_steps": 0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"experiments": {"tiny": tiny}}))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    papermill.execute_notebook(
        tmp_path / "notebooks" / "04_figures.ipynb",
        tmp_path / "04_figures.ipynb",
        kernel_name="python3",
        cwd=tmp_path / "notebooks",
        progress_bar=False,
    )
    made = {path.name for path in (tmp_path / "scratch" / "tiny").rglob("*.*")}
    assert {"manifest.json", "model.safetensors", "metrics.json", "predictions.gif"} <= made
