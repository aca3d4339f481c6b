"""How long an evaluation takes beside the authors' procedure, and how much memory it needs.

    python benchmarks/evaluate.py speed AUTHORS    # path of a checkout of the authors' code
    python benchmarks/evaluate.py memory           # --experiment tiny is a minute or two
    python benchmarks/evaluate.py lpips            # a minute
    python benchmarks/evaluate.py fvd              # 15 minutes on a core; --videos 8 is seconds
    python benchmarks/evaluate.py forecasts        # 7 minutes; after `make repro`

`speed` samples and scores (PSNR, SSIM) futures of the same Moving MNIST videos with one full-size
model, in turns: by the authors' model and metrics, called as their test program does, and by ours.
`memory` measures peak memory for few and many videos and samples, each in a process of its own.
`lpips` scores the same samples by the package `lpips`, pair by pair as the authors do, and by ours.
`fvd` embeds the same videos by I3D in either precision, in turns, and compares the FVD.
`forecasts` scores each batch of a test set twice, with and without the scores of forecasts.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import torch
from torch import Tensor, nn

from srvp.data.prepared import PreparedVideos
from srvp.data.sets.moving_mnist import MovingMNIST
from srvp.data.staging import Fold, Video, write_prepared
from srvp.evaluation.protocol import (
    batch_files,
    evaluate,
    evaluate_experiment,
    parts,
    sampler,
    score_batches,
)
from srvp.experiment import Experiment, load_experiment
from srvp.files import project_root
from srvp.metrics import lpips as our_lpips
from srvp.metrics.fvd import fvd, fvd_embeddings
from srvp.metrics.i3d import WEIGHTS, load_i3d
from srvp.metrics.table import fetch_weights
from srvp.models import official
from srvp.store import build_model, load_model, save_model

Scored = dict[str, np.ndarray]  # metric: best score of every video


def make_videos(count: int, frames: int) -> Tensor:
    """Return Moving MNIST videos of random blots for digits: uint8 `(count, frames, 1, 64, 64)`."""
    coarse = torch.rand(50, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    blots = nn.functional.interpolate(coarse, 28, mode="bilinear")[:, 0]
    digits = (255 * (2 * blots - 0.6).clamp(0, 1)).byte()
    videos = MovingMNIST(digits, deterministic=False)
    return (255 * videos.draw(count, frames, torch.Generator().manual_seed(1)).frames).byte()


def make_model(experiment: Experiment, videos: Tensor) -> nn.Module:
    """Return a model of random weights, its statistics of batch norm settled."""
    model = build_model(experiment.model, experiment.shape, seed=0)
    x = videos[:4, : experiment.training.frames].float() / 255
    with torch.no_grad():
        model.transition.f[-1].weight.mul_(0.1)  # keep the states of the untrained model small
        for seed in range(20):
            random = torch.Generator().manual_seed(seed)
            model(x, model.draw_randomness(*x.shape[:2], 1, random))
    return model.eval()


def prepare(videos: Tensor, folder: Path) -> PreparedVideos:
    """Write and open a test set."""
    clips = Fold(clips=[(i, 0) for i in range(len(videos))], clip_frames=videos.shape[1])
    named = [Video(f"{i:04d}", video) for i, video in enumerate(videos.numpy())]
    write_prepared(folder, named, clips, dataset="smmnist")
    return PreparedVideos.open(folder)


# Speed.


def compare_speed(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    experiment = load_experiment(project_root() / "params.yaml", "smmnist")
    config = replace(
        experiment.evaluation,
        metrics=("psnr", "ssim"),
        samples=given.samples,
        frames_at_once=given.frames_at_once,
    )
    experiment = replace(experiment, evaluation=config)
    videos = make_videos(given.videos, experiment.data.test_frames)
    model = make_model(experiment, videos)
    with tempfile.TemporaryDirectory() as folder:
        clips = prepare(videos, Path(folder) / "test")
        theirs = load_authors_model(given.authors, model, Path(folder))

        def run_ours(partial: Path) -> Scored:
            predicted = experiment.predicted_frames
            predictor = {"ours": sampler(model, config, predicted, config.predict[0])}
            scores = evaluate(predictor, clips, config, torch.device("cpu"), partial)["ours"]
            return {metric: values.max(axis=1) for metric, values in scores.samples.items()}

        model.to(memory_format=torch.channels_last)  # as `evaluate_experiment` does
        runs: dict[str, Callable[[int], Scored]] = {
            "authors": lambda _: authors_procedure(theirs, videos, experiment),
            "ours": lambda turn: run_ours(Path(folder) / f"{turn}"),
        }
        report_speed(runs, given)


def report_speed(runs: dict[str, Callable[[int], Scored]], given: argparse.Namespace) -> None:
    times: dict[str, list[float]] = {name: [] for name in runs}
    print(f"{given.videos} videos, {given.samples} samples, {given.threads} thread(s)")
    for turn in range(given.turns):
        for name, run in runs.items():
            start = time.perf_counter()
            scores = run(turn)
            times[name].append(time.perf_counter() - start)
            means = ", ".join(f"{metric} {v.mean():.3f}" for metric, v in scores.items())
            print(f"{name:8} {times[name][-1]:8.1f} s   {means}", flush=True)
    authors, ours = (float(np.median(times[name])) for name in ("authors", "ours"))
    print(f"ours / authors: {ours / authors:.2f} (median of {given.turns} turns)")


def load_authors_model(checkout: Path, model: nn.Module, folder: Path) -> nn.Module:
    """Return the authors' model with the weights of ours."""
    sys.path.insert(0, str(checkout))
    from module.srvp import StochasticLatentResidualVideoPredictor as Authors

    official.save(model, folder)
    c = model.config
    theirs = Authors(
        64,
        model.shape.channels,
        *(c.nf, c.nhx, c.ny, c.nz, c.skip_connections, c.inference_frames),
        *(c.nh_inf, c.nlayers_inf, c.nh_res, c.nlayers_res, c.architecture),
    )
    theirs.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return theirs.eval()


@torch.no_grad()
def authors_procedure(theirs: nn.Module, videos: Tensor, experiment: Experiment) -> Scored:
    """Sample and score with the authors' functions, in the steps of their test program.

    Their tensors are time first. Each sample encodes the given frames anew.
    """
    from metrics.ssim import ssim_loss

    given_frames, config = experiment.evaluation.conditioning_frames, experiment.evaluation
    best: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    for batch in videos.split(config.batch_size):
        x = batch.transpose(0, 1).contiguous().float() / 255
        given, truth = x[:given_frames], x[given_frames:]
        samples: dict[str, list[Tensor]] = {metric: [] for metric in best}
        skip = theirs.encode(given)[1]
        for _ in range(config.samples):
            _, y, _, w, *_ = theirs(given, given_frames, dt=1)
            y = theirs.generate(y[-1], [], len(truth) + 1, dt=1)[0][1:]
            predicted = theirs.decode(w, y.contiguous(), skip).clamp(0, 1)
            mse = (predicted - truth).square().mean(dim=(3, 4))
            samples["psnr"].append((10 * (1 / mse).log10()).mean(dim=(0, 2)))
            pair = (predicted.flatten(0, 1), truth.flatten(0, 1))
            maps = ssim_loss(*pair, max_val=1.0, reduction="none")
            samples["ssim"].append(maps.mean(dim=(1, 2, 3)).view(len(truth), -1).mean(dim=0))
        for metric, scores in samples.items():
            best[metric].append(torch.stack(scores).amax(dim=0))
    return {metric: torch.cat(scores).numpy() for metric, scores in best.items()}


# Memory.


def compare_memory(given: argparse.Namespace) -> None:
    """Evaluate one model with few and many videos and samples, each in a process of its own.

    The processes have the settings of the allocator that the Makefile gives the pipeline.
    """
    root = project_root()
    makefile = (root / "Makefile").read_text()
    settings = dict(re.findall(r"^export ((?:MALLOC|GLIBC)_\w+) := (\S+)", makefile, re.MULTILINE))
    experiment = load_experiment(root / "params.yaml", given.experiment)
    videos = make_videos(64, experiment.data.test_frames)
    print(f"{given.experiment}, {given.frames_at_once} frames at once")
    print(f"{'videos':>8} {'samples':>8} {'peak of resident memory, MB':>30}")
    with tempfile.TemporaryDirectory() as folder:
        save_model(make_model(experiment, videos), experiment, Path(folder) / "model.safetensors")
        prepare(videos, Path(folder) / "test")
        for sizes in ((8, 10), (8, 100), (64, 10), (64, 100)):
            numbers = [str(n) for n in (*sizes, given.frames_at_once)]
            command = [sys.executable, __file__, "peak", folder, *numbers]
            run = subprocess.run(
                command, env=os.environ | settings, stdout=subprocess.PIPE, check=True
            )
            print("{:8} {:8} {:30.0f}".format(*sizes, float(run.stdout)), flush=True)


def measure_peak(given: argparse.Namespace) -> None:
    """Evaluate what `compare_memory` prepared and print the peak of the process' memory in MB."""
    torch.set_num_threads(1)
    model, experiment = load_model(given.folder / "model.safetensors", "cpu")
    config = replace(
        experiment.evaluation,
        metrics=("psnr", "ssim"),
        samples=given.samples,
        batch_size=8,
        frames_at_once=given.frames_at_once,
    )
    clips = PreparedVideos.open(given.folder / "test")
    clips.clips = clips.clips[: given.videos]
    experiment = replace(experiment, evaluation=config)
    source = given.folder / "model.safetensors"
    evaluate_experiment(model, experiment, clips, source, given.folder / str(os.getpid()))
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3)


# LPIPS and FVD.


def compare_lpips(given: argparse.Namespace) -> None:
    """Compare the time that LPIPS of a frame takes, by the package `lpips` and by ours."""
    torch.set_num_threads(given.threads)
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(4, 20, 1, 64, 64, generator=random)
    samples = torch.rand(4, given.samples, 20, 1, 64, 64, generator=random)
    # Random weights take as long as AlexNet's.
    theirs = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False).eval()
    fetch_weights(["lpips"])
    compare = our_lpips.load(torch.device("cpu"))

    def pair_by_pair() -> None:
        for clip, futures in zip(truth, samples, strict=True):
            for future in futures:
                theirs(*(2 * x.expand(-1, 3, -1, -1) - 1 for x in (future, clip)))

    runs = {"lpips": pair_by_pair, "ours": lambda: compare(truth)(samples)}
    frames, times = samples[..., 0, 0, 0].numel(), defaultdict(list)
    with torch.no_grad():
        for name, run in 3 * list(runs.items()):
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start) / frames)
    package, ours = (np.median(times[name]) for name in runs)
    print(f"{given.threads} thread(s), ms a frame: lpips {package:.2f}, ours {ours:.2f}")


def compare_precisions(given: argparse.Namespace) -> None:
    """Compare the FVD of softened videos to others, and the time I3D takes for a video."""
    torch.set_num_threads(given.threads)
    WEIGHTS.fetch()
    real, others = make_videos(2 * given.videos, given.frames).chunk(2)
    softened = nn.functional.avg_pool2d(others.flatten(0, 1).float(), 3, 1, 1).byte()
    sets = {"real": real, "generated": softened.unflatten(0, others.shape[:2])}
    precisions = ("float32", "bfloat16")
    networks = [load_i3d(precision=getattr(torch, p)) for p in precisions]
    embeddings: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    times: dict[str, list[float]] = defaultdict(list)
    for first in range(0, given.videos, 2):
        for name, videos in sets.items():
            for precision, i3d in zip(precisions, networks, strict=True):
                start = time.perf_counter()
                embeddings[precision, name].append(fvd_embeddings(i3d, videos[first : first + 2]))
                times[precision].append((time.perf_counter() - start) / 2)
    print(f"{given.videos} videos of {given.frames} frames a side, {given.threads} thread(s)")
    for precision in precisions:
        generated, truth = (torch.cat(embeddings[precision, n]) for n in ("generated", "real"))
        distance = fvd(generated, truth, given.frames).value
        print(f"{precision:10} {np.median(times[precision]):6.2f} s a video, FVD {distance:.3f}")


# Scores of forecasts.


def compare_forecasts(given: argparse.Namespace) -> None:
    """Score every batch of a test set with PSNR and SSIM alone and with `energy`, in turns."""
    torch.set_num_threads(given.threads)
    root, name = project_root(), given.experiment
    experiment = load_experiment(root / "params.yaml", name)
    model, _ = load_model(root / "pretrained" / name / "model.safetensors", "cpu")
    videos = PreparedVideos.open(root / "prepared" / name / "test")
    metrics = {"psnr, ssim": ("psnr", "ssim"), "and energy": ("psnr", "ssim", "energy")}
    times: dict[str, list[float]] = defaultdict(list)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        batches = batch_files(videos, experiment.evaluation, Path(folder))
        for turn, (path, numbers) in enumerate(batches.items()):
            # Whoever is first meets a colder memory: they take turns in that, too.
            for scores in sorted(metrics, reverse=turn % 2 == 1):
                config = replace(experiment.evaluation, metrics=metrics[scores])
                scored = replace(experiment, evaluation=config)
                both = parts(model, scored, videos, Path(folder), None)
                predictors = {n: p for part in both for n, p in part.predictors.items()}
                batch = {path.with_name(f"{len(config.metrics)}-{path.name}"): numbers}
                start = time.perf_counter()
                score_batches(batch, predictors, videos, config, device, progress=False)
                times[scores].append((time.perf_counter() - start) / len(numbers))
            print(f"{numbers[0]:4}: " + ", ".join(f"{m} {times[m][-1]:.2f} s" for m in metrics))
    alone, both = (np.array(times[scores]) for scores in metrics)
    print(f"{name}, {len(videos.clips)} clips, {given.threads} thread(s), seconds a clip:")
    print(f"psnr, ssim {np.median(alone):.2f}, and energy {np.median(both):.2f}")
    print(f"median of the batches' ratios: {np.median(both / alone):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser("speed", help="beside the authors' procedure")
    speed.add_argument("authors", type=Path, help="checkout of the authors' code")
    speed.add_argument("--videos", type=int, default=4)
    speed.add_argument("--samples", type=int, default=100)
    speed.add_argument("--threads", type=int, default=torch.get_num_threads())
    speed.add_argument("--turns", type=int, default=3)
    speed.add_argument("--frames-at-once", type=int, default=1000, help="as in params.yaml")
    speed.set_defaults(run=compare_speed)
    memory = commands.add_parser("memory", help="of few and many videos and samples")
    memory.add_argument("--experiment", default="smmnist", help="whose model to take")
    memory.add_argument("--frames-at-once", type=int, default=160)
    memory.set_defaults(run=compare_memory)
    perceptual = commands.add_parser("lpips", help="beside the package lpips")
    perceptual.add_argument("--samples", type=int, default=12)
    perceptual.add_argument("--threads", type=int, default=torch.get_num_threads())
    perceptual.set_defaults(run=compare_lpips)
    precision = commands.add_parser("fvd", help="of I3D in float32 and in bfloat16")
    precision.add_argument("--videos", type=int, default=400)
    precision.add_argument("--frames", type=int, default=25)
    precision.add_argument("--threads", type=int, default=1)
    precision.set_defaults(run=compare_precisions)
    forecasts = commands.add_parser("forecasts", help="what the scores of forecasts cost")
    forecasts.add_argument("--experiment", default="smmnist_gpu", help="of a pretrained model")
    forecasts.add_argument("--threads", type=int, default=torch.get_num_threads())
    forecasts.set_defaults(run=compare_forecasts)
    peak = commands.add_parser("peak", help="one measurement of `memory`")
    peak.add_argument("folder", type=Path)
    for name in ("videos", "samples", "frames_at_once"):
        peak.add_argument(name, type=int)
    peak.set_defaults(run=measure_peak)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
