import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from srvp import evaluation
from srvp.baselines import trivial
from srvp.data.prepared import PreparedVideos
from srvp.data.staging import Fold, Video, write_prepared
from srvp.evaluation import (
    Scores,
    evaluate_experiment,
    metrics_table,
    summarise,
    write_examples,
    write_scores,
)
from srvp.metrics import psnr
from srvp.training import build_model


@pytest.fixture(scope="module")
def setup(tiny, blobs, tmp_path_factory):
    """A model of random weights, and five test clips of eleven frames."""
    folder = tmp_path_factory.mktemp("prepared") / "test"
    x = blobs.train.draw(5, 11, torch.Generator().manual_seed(0))
    videos = [Video(f"{i}", v) for i, v in enumerate((255 * x).byte().numpy())]
    fold = Fold(clips=[(i, 0) for i in range(5)], clip_frames=11)
    write_prepared(folder, videos, fold, dataset="blobs")
    experiment = replace(
        tiny,
        data=replace(tiny.data, test_videos=5, test_frames=11),
        evaluation=replace(tiny.evaluation, samples=4, euler_steps=(1,)),
    )
    model = build_model(experiment.model, 1, seed=0)
    with torch.no_grad():
        model.f[-1].weight.mul_(0.1)  # keep the states of the untrained model small
        for _ in range(20):  # settle the statistics of batch norm
            model(x, model.draw(5, 11, torch.Generator().manual_seed(1)))
    return model.eval(), experiment, PreparedVideos.open(folder)


def test_trivial_baselines_by_hand():
    given = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 64, 64)
    for predict, value in (
        (trivial.copy_last_frame, 1.0),
        (trivial.mean_frame, 0.5),
        (trivial.black_frame, 0.0),
    ):
        out = predict(given, 7)
        assert out.shape == (2, 7, 1, 64, 64) and (out == value).all()


def test_summary_is_mean_and_normal_interval():
    assert summarise(np.array([1.0, 3.0])) == (2.0, pytest.approx(1.96 / np.sqrt(2)))


def test_scores_are_the_best_per_video_and_per_metric():
    scores = Scores(
        samples={"psnr": np.array([[1.0, 5.0, 3.0]]), "ssim": np.array([[0.9, 0.1, 0.2]])},
        curves={},
    )
    assert scores.best("psnr") == [1] and scores.worst("psnr") == [0]
    assert scores.best("ssim") == [0] and scores.worst("ssim") == [1]
    assert scores.summary("psnr").mean == 5.0 and scores.summary("ssim").mean == 0.9


def test_the_protocol_step_by_step(setup, tmp_path):
    """One video, written out plainly: condition, sample, score the predicted frames."""
    model, experiment, videos = setup
    scores = evaluate_experiment(model, experiment, videos, tmp_path)
    ours = scores[experiment.name]
    x = torch.from_numpy(videos.test_clips([3])).float() / 255
    noise = evaluation.video_noise(model, experiment.evaluation, 3, 11)
    with torch.no_grad():
        samples = model.predict(model.condition(x[:, :5]), 6, noise).x
    frames = psnr(samples, x[:, 5:])
    np.testing.assert_allclose(ours.samples["psnr"][3], frames.mean(dim=1), rtol=1e-5)
    best = frames.mean(dim=1).argmax()
    np.testing.assert_allclose(ours.curves["psnr"][3], frames[best], rtol=1e-5)
    black = psnr(torch.zeros(1, 6, 1, 64, 64), x[:, 5:]).mean()
    np.testing.assert_allclose(scores["black frame"].samples["psnr"][3], [black], rtol=1e-5)


@pytest.mark.parametrize("changes", [{"batch_size": 3}, {"frames_at_once": 7}])
def test_scores_do_not_depend_on_how_the_work_is_cut(setup, tmp_path, changes):
    model, experiment, videos = setup
    other = replace(experiment, evaluation=replace(experiment.evaluation, **changes))
    a = evaluate_experiment(model, experiment, videos, tmp_path)[experiment.name]
    b = evaluate_experiment(model, other, videos, tmp_path)[experiment.name]
    for metric in a.samples:  # 1e-5: batches of other sizes round otherwise
        np.testing.assert_allclose(a.samples[metric], b.samples[metric], rtol=1e-5, atol=1e-6)


def test_an_evaluation_that_is_cut_off_goes_on_to_the_same_numbers(setup, tmp_path, monkeypatch):
    model, experiment, videos = setup
    whole = evaluate_experiment(model, experiment, videos, tmp_path / "whole")
    score, done = evaluation._score, []

    def cut_off(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(score(*args))
        return done[-1]

    monkeypatch.setattr(evaluation, "_score", cut_off)
    with pytest.raises(KeyboardInterrupt):
        evaluate_experiment(model, experiment, videos, tmp_path / "cut")
    calls = []
    monkeypatch.setattr(evaluation, "_score", lambda *args: calls.append(0) or score(*args))
    resumed = evaluate_experiment(model, experiment, videos, tmp_path / "cut")
    assert len(calls) == 4 * 3 - 2  # four predictors, three batches each, two of them done before
    assert not (tmp_path / "cut" / "partial").exists()
    for name, scores in whole.items():
        for metric in scores.samples:
            assert np.array_equal(resumed[name].samples[metric], scores.samples[metric])


def test_scores_of_another_model_are_not_taken_for_these(setup):
    model, experiment, videos = setup
    other = build_model(experiment.model, 1, seed=1)
    fingerprints = {
        evaluation._fingerprint(model, experiment, videos),
        evaluation._fingerprint(other, experiment, videos),
        evaluation._fingerprint(
            model,
            replace(experiment, evaluation=replace(experiment.evaluation, seed=2)),
            videos,
        ),
    }
    assert len(fingerprints) == 3


def test_every_test_step_size_is_scored(setup, tmp_path):
    model, experiment, videos = setup
    evaluated = replace(experiment.evaluation, euler_steps=(1, 2, 3))
    scores = evaluate_experiment(model, replace(experiment, evaluation=evaluated), videos, tmp_path)
    assert list(scores)[:3] == ["tiny", "tiny, dt = 1/2", "tiny, dt = 1/3"]
    assert not np.array_equal(
        scores["tiny"].samples["psnr"], scores["tiny, dt = 1/2"].samples["psnr"]
    )


def test_examples_are_the_samples_that_were_scored(setup, tmp_path):
    model, experiment, videos = setup
    scores = evaluate_experiment(model, experiment, videos, tmp_path)
    ours = scores[experiment.name]
    write_examples(model, experiment, videos, ours, tmp_path / "examples.safetensors", count=3)
    examples = load_file(tmp_path / "examples.safetensors")
    assert np.array_equal(examples["truth"], videos.test_clips(range(3)))
    truth = torch.from_numpy(examples["truth"][:, 5:]).float() / 255
    for name, expected in (
        ("psnr.best", ours.samples["psnr"].max(axis=1)),
        ("psnr.worst", ours.samples["psnr"].min(axis=1)),
        ("random", ours.samples["psnr"][:, 0]),
    ):
        assert examples[name].shape == (3, 6, 1, 64, 64)
        scored = psnr(torch.from_numpy(examples[name]).float() / 255, truth).mean(dim=1)
        np.testing.assert_allclose(scored, expected[:3], atol=0.01)  # 8-bit rounding of the frames


def test_files_hold_the_numbers_of_the_table(setup, tmp_path):
    model, experiment, videos = setup
    scores = evaluate_experiment(model, experiment, videos, tmp_path)
    write_scores(scores, experiment, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    table = metrics_table(scores)
    assert list(metrics) == list(table.index)
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert sorted(curves["frame"].unique()) == [6, 7, 8, 9, 10, 11]
    for name in metrics:
        assert metrics[name]["psnr"] == pytest.approx(table.loc[name, "PSNR (dB)"], abs=1e-6)
        shown = curves[(curves["predictor"] == name) & (curves["metric"] == "ssim")]
        assert shown["mean"].mean() == pytest.approx(metrics[name]["ssim"], abs=1e-5)
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert protocol["evaluation"]["samples"] == 4
