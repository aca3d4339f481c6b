"""Every data set from the owners' files to figures, through the pipeline itself."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import raw_archives
import yaml
from conftest import ROOT
from projects import copy_pipeline
from safetensors.numpy import load_file

from srvp.notebook import run_notebook

TEST_FRAMES = {"kth": 8, "human36m": 7, "bair": 30}
GIVEN = {"kth": 4, "human36m": 4, "bair": 2}


def shrunk(name: str, entry: dict) -> dict:
    """A published experiment, with small networks, two steps and short clips."""
    entry["data"] |= {"test_videos": 2, "test_frames": TEST_FRAMES[name]}
    entry["model"] |= {"nf": 4, "nhx": 8, "nh_inf": 8, "nh_res": 8, "ny": 4, "nz": 4}
    entry["training"] |= {"frames": 6, "batch_size": 2, "constant_steps": 1, "decay_steps": 1}
    entry["training"] |= {"validation_interval": 1, "validation_frames": 6, "device": "cpu"}
    entry["training"] |= {"validation_videos": 1, "validation_samples": 2}
    entry["evaluation"] |= {"conditioning_frames": GIVEN[name], "samples": 2, "batch_size": 2}
    entry["evaluation"] |= {"metrics": ["psnr", "ssim"]}  # FVD needs more and longer clips
    return entry


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A copy of the repository with small raw archives, after `dvc repro`."""
    root = tmp_path_factory.mktemp("clone")
    raw_archives.write_kth(root / "data" / "kth", length=lambda name: 10)
    raw_archives.write_human36m(root / "data" / "human36m", frames=(60,))
    raw_archives.write_bair(root / "data" / "bair")
    published = yaml.safe_load((ROOT / "params.yaml").read_text())["experiments"]
    experiments = {name: shrunk(name, published[name]) for name in TEST_FRAMES}
    params = {"run": list(experiments), "train": dict.fromkeys(experiments, "srvp/models")}
    params |= {"pretrained": [], "experiments": experiments}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    copy_pipeline(root)
    environment = os.environ | {"PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1"}
    for command in (["init", "--no-scm", "--quiet"], ["repro"]):
        subprocess.run(
            [sys.executable, "-m", "dvc", *command], cwd=root, env=environment, check=True
        )
    return root


@pytest.mark.parametrize("name", TEST_FRAMES)
def test_real_data_sets_from_raw_files_to_figures(pipeline, name):
    run = pipeline / "runs" / name
    manifest = json.loads((pipeline / "prepared" / name / "test" / "manifest.json").read_text())
    assert manifest["settings"]["dataset"] == name
    channels = 1 if name == "kth" else 3
    examples = load_file(run / "examples.safetensors")
    assert examples["truth"].shape == (2, TEST_FRAMES[name], channels, 64, 64)
    assert set(json.loads((run / "metrics.json").read_text())) >= {name, "black frame"}
    figures = {path.name for path in (run / "figures").iterdir()}
    assert {"predictions.gif", "metric_curves.png", "training_curves.png"} <= figures


def test_the_report_has_a_row_for_every_data_set(pipeline):
    table = (pipeline / "reports" / "table.md").read_text()
    assert all(f"`runs/{name}`" in table for name in TEST_FRAMES)


def test_real_videos_go_through_the_notebooks(tmp_path, monkeypatch):
    """A notebook that is opened on its own asks for the ones before."""
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
    monkeypatch.setenv("SRVP_ROOT", str(tmp_path))
    run_notebook("02_train", {}, tmp_path / "02_train.ipynb")  # asks for 01_prepare
    own = {"model": "scratch/tiny/model.safetensors", "run": "scratch/tiny"}
    run_notebook("04_figures", own, tmp_path / "04_figures.ipynb")  # asks for 03_evaluate
    made = {path.name for path in (tmp_path / "scratch" / "tiny").rglob("*.*")}
    assert {"manifest.json", "model.safetensors", "metrics.json", "predictions.gif"} <= made
