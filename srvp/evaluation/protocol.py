"""The test protocol: best of N samples per video and metric, over the predicted frames only.

For every test video, N futures are sampled. Each is scored frame by frame (PSNR, SSIM, LPIPS); its
score is the mean over frames. Per video, and separately per metric, the best sample counts.
Reported are the mean over videos and its 95 % interval, 1.96 standard deviations / sqrt(videos)
(the authors' protocol). FVD compares one random sample per video, its given frames included and
all frames rounded down to 8 bits, with the true videos; its mean and interval are over the first
five samples, or, of a predictor that has one sample alone, its interval over the videos.

Every batch of videos that is finished is a file, so that an evaluation that was killed goes on
where it was, and several devices can share the work.

    python -m srvp.evaluation.protocol smmnist                              # runs/smmnist
    python -m srvp.evaluation.protocol smmnist --model FILE --out FOLDER    # any model of this program

Shapes: B videos, S samples of each (s at a time), T frames, of which F are predicted.
"""

import argparse
import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing import spawn
from tqdm import tqdm

from srvp import __version__
from srvp.config import EvaluationConfig, Experiment, Precision, load_experiment
from srvp.data import open_test
from srvp.data.prepared import PreparedVideos
from srvp.evaluation.results import (
    LABELS,
    NETWORK_METRICS,
    Scores,
    at_step_size,
    metrics_table,
    weights_folder,
    write_scores,
)
from srvp.evaluation.scoring import Batch, load_networks
from srvp.files import atomic_write, project_root
from srvp.metrics.perceptual import FEWEST_FRAMES, FEWEST_VIDEOS, fetch_weights, fvd
from srvp.models.trivial import TRIVIAL
from srvp.training.loop import MODEL_FILE, load_model

# Futures of some videos: given frames (B, T - F, C, H, W) and the videos' numbers, in chunks of
# samples (B, s, F, C, H, W), so that all samples never stand in memory together.
Predictor = Callable[[Tensor, list[int]], Iterator[Tensor]]


# Predictors.


def sampler(model: nn.Module, experiment: Experiment, euler_steps: int) -> Predictor:
    """Return the model as a predictor, with `euler_steps` per predicted frame.

    The noise of a sample depends on the seed, the video and the sample alone: not on the batch
    size, the device, or the videos evaluated before.
    """
    config, frames = experiment.evaluation, experiment.predicted_frames

    @torch.inference_mode()
    def predict(given: Tensor, videos: list[int]) -> Iterator[Tensor]:
        condition = model.condition(given)  # once for all samples
        total = given.shape[1] + frames
        noise = [video_noise(model, config, video, total) for video in videos]
        chunk = max(1, config.frames_at_once // (len(videos) * frames))
        for first in range(0, config.samples, chunk):
            chosen = slice(first, first + chunk)
            part = join_noise([select_noise(n, chosen) for n in noise], given.device)
            x = model.predict(condition, frames, part, euler_steps=euler_steps).x
            yield x.float().unflatten(0, (len(videos), -1))
            del x, part  # before the next is sampled

    return predict


def video_noise(model: nn.Module, config: EvaluationConfig, video: int, frames: int) -> NamedTuple:
    """Draw the noise of all samples of a test video, on the CPU so that it is the same anywhere."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + video)
    return model.draw_noise(config.samples, frames, generator)


def select_noise(noise: NamedTuple, samples: slice) -> NamedTuple:
    """Return the noise of some samples."""
    return type(noise)(*(x[samples] for x in noise))


def join_noise(parts: list[NamedTuple], device: torch.device) -> NamedTuple:
    """Concatenate the noise of several videos, on the device that predicts."""
    return type(parts[0])(*(torch.cat(x).to(device) for x in zip(*parts, strict=True)))


def model_predictors(model: nn.Module, experiment: Experiment) -> dict[str, Predictor]:
    """Return the model, under the experiment's name and at every test step size."""
    first, *others = experiment.evaluation.euler_steps
    predictors = {experiment.name: sampler(model, experiment, first)}
    for steps in others:
        predictors[at_step_size(experiment.name, steps)] = sampler(model, experiment, steps)
    return predictors


def trivial_predictors(frames: int) -> dict[str, Predictor]:
    """Return the baselines of `srvp.models.trivial`, of one sample each."""

    def predictor(predict: Callable[[Tensor, int], Tensor]) -> Predictor:
        return lambda given, videos: iter([predict(given, frames)[:, None]])

    return {name: predictor(predict) for name, predict in TRIVIAL.items()}


# Scoring a test set.


def evaluate(
    predictors: dict[str, Predictor],
    videos: PreparedVideos,
    config: EvaluationConfig,
    device: torch.device,
    partial: Path,
) -> dict[str, Scores]:
    """Score predictors on every test clip.

    Args:
        predictors: by name.
        videos: the test set.
        config: the protocol.
        device: where to score.
        partial: folder for the finished batches, which are not scored again; they stay until
            `write_scores`. Its name must tell all that scores depend on (`fingerprint`).

    Returns:
        Scores by predictor.

    Raises:
        ValueError: predictions are no frames, or the test set is too small for FVD.
        FileNotFoundError: weights that a metric needs cannot be fetched.
    """
    _require(config, videos)
    batches = _batches(videos, config, partial)
    _score_batches(batches, predictors, videos, config, device)
    joined = [load_file(path) for path in batches]
    arrays = {key: np.concatenate([batch[key] for batch in joined]) for key in joined[0]}
    return {name: _scores(name, arrays, config, videos.clip_frames) for name in predictors}


def _require(config: EvaluationConfig, videos: PreparedVideos) -> None:
    """Make sure, before hours of sampling, of all that the metrics need."""
    count, frames = len(videos.clips), videos.clip_frames
    if "fvd" in config.metrics and (count < FEWEST_VIDEOS or frames < FEWEST_FRAMES):
        raise ValueError(
            f"FVD needs {FEWEST_VIDEOS} videos of {FEWEST_FRAMES} frames, but {videos.folder} has "
            f"{count} of {frames}: take more, or fvd out of evaluation.metrics"
        )
    if NETWORK_METRICS & set(config.metrics):
        fetch_weights(weights_folder())


def _batches(
    videos: PreparedVideos, config: EvaluationConfig, partial: Path
) -> dict[Path, list[int]]:
    """Return the file of every batch, with the numbers of its clips."""
    count, size = len(videos.clips), _batch_size(videos, config)
    starts = range(0, count, size)
    return {partial / f"{i:05d}.safetensors": list(range(i, min(i + size, count))) for i in starts}


def _batch_size(videos: PreparedVideos, config: EvaluationConfig) -> int:
    """Return how many videos to take at a time: `frames_at_once` may leave less room."""
    predicted = videos.clip_frames - config.conditioning_frames
    return max(1, min(config.batch_size, config.frames_at_once // predicted))


def _score_batches(
    batches: dict[Path, list[int]],
    predictors: dict[str, Predictor],
    videos: PreparedVideos,
    config: EvaluationConfig,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Write the files of those batches that have none."""
    todo = {path: chosen for path, chosen in batches.items() if not path.exists()}
    if not todo:
        return
    networks = load_networks(config, device)
    with _progress(batches, disable=not progress) as bar:
        for path, chosen in todo.items():
            # A call, so that nothing is left of a batch when the next one begins.
            clips = torch.from_numpy(videos.test_clips(chosen)).to(device)
            _score_batch(path, Batch(clips, config, networks), chosen, predictors)
            del clips
            bar.update()


def _score_batch(
    path: Path, batch: Batch, chosen: list[int], predictors: dict[str, Predictor]
) -> None:
    """Write the scores of the clips of these numbers."""
    arrays = {} if batch.real is None else {"real": batch.real.numpy()}
    for name, predictor in predictors.items():
        try:
            scores = batch.score(predictor(batch.given, chosen))
        except ValueError as error:
            raise ValueError(f"{name}, clips {chosen[0]}-{chosen[-1]}: {error}") from error
        arrays |= {f"{name}/{key}": array for key, array in scores.items()}
    with atomic_write(path) as temporary:
        save_file(arrays, temporary)


def _progress(batches: dict[Path, list[int]], disable: bool = False) -> tqdm:
    done = sum(path.exists() for path in batches)
    # Rarely refreshed: every refresh is a line in an executed notebook.
    return tqdm(
        desc="evaluate",
        initial=done,
        total=len(batches),
        unit="batch",
        mininterval=5,
        disable=disable,
    )


def _scores(
    name: str, arrays: dict[str, np.ndarray], config: EvaluationConfig, frames: int
) -> Scores:
    of_frames = [metric for metric in config.metrics if metric != "fvd"]
    repetitions: tuple = ()
    if "fvd" in config.metrics:
        generated = arrays[f"{name}/embeddings"].swapaxes(0, 1)
        real, single = arrays["real"], len(generated) == 1
        repetitions = tuple(fvd(sample, real, frames, interval=single) for sample in generated)
    return Scores(
        samples={metric: arrays[f"{name}/samples/{metric}"] for metric in of_frames},
        curves={metric: arrays[f"{name}/curves/{metric}"] for metric in of_frames},
        fvd=repetitions,
    )


def fingerprint(content: str, config: EvaluationConfig, videos: PreparedVideos) -> str:
    """Return a name for all that scores depend on: predictions, protocol, test set and code.

    Args:
        content: what tells the predictions from others, such as `weights_digest`.
        config: the protocol.
        videos: the test set.
    """
    protocol = {**asdict(config), "batch_size": _batch_size(videos, config)}
    del protocol["frames_at_once"]  # of no effect but through the batch size
    parts = [__version__, content, protocol, len(videos.clips), videos.manifest]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


# Scoring a trained model.


def evaluate_experiment(
    model: nn.Module,
    experiment: Experiment,
    videos: PreparedVideos,
    out: Path,
    devices: Sequence[torch.device] | None = None,
) -> dict[str, Scores]:
    """Score a model, at every test step size, and the trivial baselines.

    Finished batches are kept in `out/partial` until `write_scores`, so that an evaluation that was
    killed goes on where it was.

    Args:
        model: in evaluation mode.
        experiment: whose protocol to follow.
        videos: the test set.
        out: folder of the results.
        devices: that share the test set, a process each; by default the model's, or all of its
            kind if there are several GPUs.

    Returns:
        Scores by predictor: the model under the experiment's name, then the same model with other
        numbers of Euler steps, then the baselines.
    """
    config = experiment.evaluation
    _require(config, videos)
    partial = out / "partial" / fingerprint(weights_digest(model), config, videos)
    device = next(model.parameters()).device
    devices = devices or _all_like(device)
    if len(devices) > 1:
        _share(model, experiment, videos, partial, devices)
    predictors = _predictors(model, experiment)
    return evaluate(predictors, videos, config, device, partial)


def _predictors(model: nn.Module, experiment: Experiment) -> dict[str, Predictor]:
    # Convolutions are faster this way, on a CPU as on a GPU.
    model.to(memory_format=torch.channels_last)
    return model_predictors(model, experiment) | trivial_predictors(experiment.predicted_frames)


def _all_like(device: torch.device) -> list[torch.device]:
    if device.type == "cpu" or torch.accelerator.device_count() == 1:
        return [device]
    return [torch.device(device.type, i) for i in range(torch.accelerator.device_count())]


def _share(
    model: nn.Module,
    experiment: Experiment,
    videos: PreparedVideos,
    partial: Path,
    devices: Sequence[torch.device],
) -> None:
    """Score all batches, each device its share, and show the progress of all."""
    batches = _batches(videos, experiment.evaluation, partial)
    given = (devices, copy.deepcopy(model).cpu(), experiment, videos.folder, videos.clips, partial)
    workers = spawn(_score_share, given, nprocs=len(devices), join=False)
    try:
        with _progress(batches) as bar:
            while not workers.join(timeout=1):
                bar.update(sum(path.exists() for path in batches) - bar.n)
    finally:  # an interrupt reaches this process alone
        for process in workers.processes:
            process.terminate()


def _score_share(
    rank: int,
    devices: Sequence[torch.device],
    model: nn.Module,
    experiment: Experiment,
    folder: Path,
    clips: np.ndarray,
    partial: Path,
) -> None:
    """Score every n-th batch: what one of n processes does."""
    device, config = devices[rank], experiment.evaluation
    videos = PreparedVideos.open(folder)  # a memory map cannot be handed over
    videos.clips = clips
    batches = list(_batches(videos, config, partial).items())[rank :: len(devices)]
    predictors = _predictors(model.to(device), experiment)
    _score_batches(dict(batches), predictors, videos, config, device, progress=False)


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def write_examples(
    model: nn.Module,
    experiment: Experiment,
    videos: PreparedVideos,
    scores: Scores,
    path: Path,
    count: int = 8,
) -> None:
    """Sample the best, a random and the worst future of the first test videos again, as uint8.

    The file holds `truth` `(count, T, C, H, W)` and, of the predicted frames alone, `random` (the
    first sample) and `METRIC.best` and `METRIC.worst` for every metric of frames
    `(count, F, C, H, W)`.
    """
    config, frames = experiment.evaluation, experiment.predicted_frames
    device = next(model.parameters()).device
    chosen = list(range(min(count, len(videos.clips))))
    clips = videos.test_clips(chosen)
    x = torch.from_numpy(clips).to(device).float() / 255
    condition = model.condition(x[:, : config.conditioning_frames])
    noise = [video_noise(model, config, video, x.shape[1]) for video in chosen]
    wanted = {"random": [0] * len(chosen)}
    for metric in scores.samples:
        wanted[f"{metric}.best"] = scores.best(metric)[chosen].tolist()
        wanted[f"{metric}.worst"] = scores.worst(metric)[chosen].tolist()
    examples = {"truth": clips}
    for name, samples in wanted.items():
        picked = [select_noise(n, slice(s, s + 1)) for n, s in zip(noise, samples, strict=True)]
        part = join_noise(picked, device)
        prediction = model.predict(condition, frames, part, euler_steps=config.euler_steps[0]).x
        examples[name] = (prediction.float() * 255).round().byte().cpu().numpy()
    with atomic_write(path) as temporary:
        save_file(examples, temporary)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srvp.evaluation.protocol",
        description="Score a model by the protocol of an experiment, on its test clips.",
    )
    parser.add_argument("experiment", help="an entry of params.yaml")
    parser.add_argument("--model", type=Path, help="default runs/EXPERIMENT/model.safetensors")
    parser.add_argument("--videos", type=int, help="the first test clips alone; default all")
    parser.add_argument("--metrics", nargs="+", choices=list(LABELS), help="default the protocol's")
    precisions = get_args(Precision)
    parser.add_argument("--fvd-precision", choices=precisions, help="default the protocol's")
    parser.add_argument("--prepared", type=Path, help="prepared set; default prepared/EXPERIMENT")
    parser.add_argument("--out", type=Path, help="folder for the results; default runs/EXPERIMENT")
    given, root = parser.parse_args(), project_root()
    run = root / "runs" / given.experiment
    path, out = given.model or run / MODEL_FILE, given.out or run
    try:
        protocol = load_experiment(root / "params.yaml", given.experiment)
        model, trained = load_model(path, protocol.training.device)
        data = replace(protocol.data, test_videos=given.videos or protocol.data.test_videos)
        evaluation = replace(
            protocol.evaluation,
            metrics=tuple(given.metrics or protocol.evaluation.metrics),
            fvd_precision=given.fvd_precision or protocol.evaluation.fvd_precision,
        )
        settings = replace(
            protocol,
            name=trained.name,
            model=trained.model,
            data=data,
            evaluation=evaluation,
        )
        videos = open_test(data, given.prepared or root / "prepared" / given.experiment)
        scores = evaluate_experiment(model, settings, videos, out)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    write_scores(scores, settings, path, out)
    print(metrics_table(scores).round(4).to_string())


if __name__ == "__main__":
    main()
