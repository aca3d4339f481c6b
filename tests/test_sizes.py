"""Frames of 128 pixels, from training to figures; and how many files a reader goes through."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, generator
from PIL import Image
from safetensors.numpy import load_file

from srvp.data import TrainingVideos, open_test, open_training, prepare
from srvp.data.prepared import PreparedVideos
from srvp.data.sets.moving_mnist import MovingMNIST
from srvp.data.staging import Fold, Video, write_prepared
from srvp.evaluation.protocol import evaluate_experiment
from srvp.experiment import load_experiment
from srvp.models.interface import VideoShape
from srvp.report import figures
from srvp.store import load_model
from srvp.training.loop import read_checkpoint, train
from srvp.training.run import Run

SIZE = 128
SMALL = {"nf": 2, "nhx": 4, "nh_inf": 4, "nh_res": 4, "ny": 3, "nz": 3}


def experiments() -> dict:
    tiny = load_experiment(ROOT / "params.yaml", "tiny")
    kth = load_experiment(ROOT / "params.yaml", "kth")
    svg = load_experiment(ROOT / "params.yaml", "svg_tiny")
    models = {
        "srvp_dcgan": replace(tiny.model, **SMALL),
        "srvp_vgg": replace(kth.model, **SMALL, inference_frames=3),
        "srvp_warp": load_experiment(ROOT / "params.yaml", "warp_tiny").model,
        "svg_dcgan": replace(svg.model, nf=2),
        "svg_vgg": replace(svg.model, nf=2, architecture="vgg"),
    }
    data = replace(tiny.data, size=SIZE, test_videos=2, test_frames=8)
    training = replace(
        tiny.training,
        device="cpu",
        frames=6,
        batch_size=2,
        constant_steps=2,
        decay_steps=0,
        validation_frames=7,
        validation_videos=1,
        checkpoint_interval=1,
    )
    evaluation = replace(tiny.evaluation, samples=2, predict=({},))
    parts = {"data": data, "training": training, "evaluation": evaluation}
    return {name: replace(tiny, model=model, **parts) for name, model in models.items()}


@pytest.fixture(scope="module")
def videos() -> TrainingVideos:
    """Squares of 56 pixels in place of digits, in frames of 128."""
    digits = torch.zeros(6, 56, 56, dtype=torch.uint8)
    digits[:, 10:40, 5:45] = 200
    return TrainingVideos(*2 * [MovingMNIST(digits, deterministic=False)])


@pytest.fixture(scope="module")
def clips(videos, tmp_path_factory) -> PreparedVideos:
    folder = tmp_path_factory.mktemp("prepared") / "test"
    frames = figures.to_bytes(videos.train.draw(2, 8, generator()).frames)
    stored = [Video(str(i), x) for i, x in enumerate(frames)]
    fold = Fold(clips=[(0, 0), (1, 0)], clip_frames=8)
    write_prepared(folder, stored, fold, dataset="smmnist")
    return PreparedVideos.open(folder)


@pytest.mark.parametrize("name", ["srvp_dcgan", "srvp_vgg", "svg_dcgan", "svg_vgg"])
def test_128_pixels_from_training_to_figures(name, videos, clips, tmp_path):
    experiment = experiments()[name]
    model = train(experiment, videos, tmp_path)
    loaded, saved = load_model(tmp_path / "model.safetensors")
    assert saved == experiment and loaded.shape == VideoShape(1, SIZE)
    resumed = Run(experiment, torch.device("cpu"))
    resumed.restore(read_checkpoint(tmp_path / "checkpoint.pt", torch.device("cpu")))
    for (key, value), same in zip(
        model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, same), key
    scores = evaluate_experiment(
        loaded, experiment, clips, tmp_path / "model.safetensors", tmp_path
    )
    assert np.isfinite(scores[experiment.name].samples["psnr"]).all()
    examples = load_file(tmp_path / "examples.safetensors")
    assert examples["psnr.best"].shape == (2, 3, 1, SIZE, SIZE)
    grid = figures.sample_grid(figures.futures(examples, 0), 5, [0, 4, 5, 7])
    figures.save(grid, tmp_path, "samples")
    assert (tmp_path / "figures" / "samples.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("architecture", "channels", "encoder", "decoder"),
    [
        ("dcgan", 1, 8_001_216, 14_948_673),
        ("vgg", 1, 15_770_944, 21_263_297),
        ("vgg", 3, 15_772_096, 21_264_451),
    ],
)
def test_svg_has_as_many_parameters_at_128_pixels_as_the_public_code(
    architecture, channels, encoder, decoder
):
    """Counted from models/dcgan_128.py and vgg_128.py of edenton/svg, commit 3f19f0b, dim 128."""
    config = load_experiment(ROOT / "params.yaml", "svg_smmnist").model
    with torch.device("meta"):
        model = replace(config, architecture=architecture).build(VideoShape(channels, SIZE))
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == [encoder, decoder]


def test_a_reader_of_a_step_opens_six_files_and_of_an_evaluation_nineteen():
    """Seven of these are metrics, a file each."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "reading.py"], capture_output=True, text=True
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("files")]
    counts = {line[1]: int(line[2].rstrip(":")) for line in lines}
    assert counts["step"] <= 6 and counts["evaluation"] <= 19, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["srvp_dcgan", "srvp_vgg", "svg_dcgan", "svg_vgg"])
def test_own_videos_are_stored_trained_on_and_predicted_at_128_pixels(name, tmp_path):
    """Six small films of a moving square, two for each fold."""
    for number, fold in enumerate(["train", "train", "val", "val", "test", "test"]):
        films = [np.zeros((48, 64, 3), np.uint8) for _ in range(10)]
        for t, film in enumerate(films):
            film[10 : 20 + number, 3 * t : 3 * t + 12] = (250, 200, 30)
        path = tmp_path / "raw" / "videos" / fold / f"{number}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        first, *others = map(Image.fromarray, films)
        first.save(path, save_all=True, append_images=others, duration=100)
    experiment = experiments()[name]
    data = replace(experiment.data, dataset="videos", channels=3)
    experiment = replace(experiment, data=data)
    prepared = tmp_path / "prepared"
    prepare(data, tmp_path / "raw", prepared)
    train(experiment, open_training(data, prepared, torch.device("cpu")), tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    model, _ = load_model(file)
    evaluate_experiment(model, experiment, open_test(data, prepared), file, tmp_path / "run")
    examples = load_file(tmp_path / "run" / "examples.safetensors")
    assert examples["psnr.best"].shape == (2, 3, 3, SIZE, SIZE)
