"""Every model at its published sizes on a GPU: training, sampling and scoring, in minutes.

    python benchmarks/gpu.py --minutes 8                   # -> benchmarks/gpu.csv
    python benchmarks/gpu.py --device cpu --tiny           # a rehearsal, two sequences a batch

It runs from a clone, with PyTorch and the packages that the models import: nothing is installed, no
data are read. Every measurement is a row, written as soon as it is there; the next call skips the
rows of the file that succeeded. A process of its own measures them, and is replaced if it fails or
hangs, so that no row can cost those after it. First come all experiments as they are (`plain`),
then with the step as one CUDA graph (`captured`), then compiled (`compiled`), then both (`both`).

Columns, beside the names:

    ms                  of a training step, the median
    gflop               of its arithmetic, as PyTorch counts it
    arithmetic          its time at the fastest product measured, as a share of `ms`
    memory              time of the least traffic at the speed of a copy, as a share of `ms`: what
                        the backward pass needs is written and read once; weights, gradients and
                        Adam's moments are read and written once
    peak_mb             of memory while training
    sampling, scoring   predicted frames per second: futures; PSNR and SSIM of them
    problem             why there is no number
"""

import argparse
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

import pandas as pd
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from train_step import measure_peak, synchronise

from srvp.experiment import Experiment, load_experiment
from srvp.files import atomic_write, project_root
from srvp.metrics import psnr, ssim
from srvp.models.interface import Clips
from srvp.training.run import Run

MODES = ("plain", "captured", "compiled", "both")
SMALL = re.compile("tiny|quick|gpu|cpu")  # experiments that are not of published sizes
SECONDS = {"plain": 60, "captured": 60, "compiled": 150, "both": 150}  # for a row, at most
WARM_UP, ROUNDS = 3, 7
SAMPLES = 10  # futures of each of a batch of test clips


def experiments() -> list[str]:
    """Name the published experiments: one of every model first, of Moving MNIST the stochastic."""
    entries = yaml.safe_load((project_root() / "params.yaml").read_text())["experiments"]
    names = [n for n in entries if not SMALL.search(n) and "dmmnist" not in n]
    models = [entries[name]["model"]["name"] for name in names]
    first = [names[models.index(model)] for model in dict.fromkeys(models)]
    return first + [name for name in names if name not in first]


# The parent: hands out rows, writes what comes back.


def measure_all(given: argparse.Namespace) -> None:
    end = time.monotonic() + 60 * given.minutes
    table = pd.read_csv(given.out).to_dict("records") if given.out.exists() else []
    done = {(row["experiment"], row["mode"]) for row in table if pd.isna(row.get("problem"))}
    names = given.experiments or experiments()
    wanted = [(name, mode) for mode in given.modes for name in names]
    worker = None
    for name, mode in [row for row in wanted if row not in done]:
        left = end - time.monotonic()
        if left < 5:
            print(f"the {given.minutes:g} minutes are over; call again for the other rows")
            break
        worker = worker or Worker(given)
        row = worker.measure(name, mode, min(left, (5 if given.tiny else 1) * SECONDS[mode]))
        if worker.process.poll() is not None:
            worker = None
        table = [r for r in table if (r["experiment"], r["mode"]) != (name, mode)] + [row]
        with atomic_write(given.out) as temporary:
            pd.DataFrame(table).to_csv(temporary, index=False, float_format="%.4g")
        print(json.dumps(row), flush=True)
    if worker is not None:
        worker.process.kill()


class Worker:
    """A process that measures rows, one after the other."""

    def __init__(self, given: argparse.Namespace):
        tiny = ["--tiny"] if given.tiny else []
        command = [sys.executable, __file__, "--worker", "--device", given.device, *tiny]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries may print as well
                self.lines.put(line)
        self.lines.put("")  # it has ended

    def measure(self, name: str, mode: str, seconds: float) -> dict[str, Any]:
        """Return a row; the process is ended if it takes longer than that."""
        start = time.monotonic()
        print(name, mode, file=self.process.stdin, flush=True)
        try:
            line = self.lines.get(timeout=seconds)
            row = json.loads(line) if line else {"problem": f"ended ({self.process.wait()})"}
        except queue.Empty:
            self.process.kill()
            self.process.wait()
            row = {"problem": f"more than {seconds:.0f} s"}
        took = {"took_s": round(time.monotonic() - start, 1)}
        return {"experiment": name, "mode": mode, **row, **took}


# The worker.


def work(given: argparse.Namespace) -> None:
    device = torch.device(given.device)
    for line in sys.stdin:
        name, mode = line.split()
        try:
            row = measure(name, mode, device, given.tiny)
        except Exception as error:  # whatever it is, the next row may do
            text = (str(error).splitlines() or [""])[0]
            row = {"problem": f"{type(error).__name__}: {text[:200]}"}
        print(json.dumps(row), flush=True)
        if device.type == "cuda" and row.get("problem"):
            sys.exit(1)  # an error may have left the GPU's context broken
        torch._dynamo.reset()


def measure(name: str, mode: str, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Measure a row: training in every mode, the rest with `plain`."""
    if mode in ("captured", "both") and device.type != "cuda":
        raise ValueError("only a GPU captures a step")
    experiment = load_experiment(project_root() / "params.yaml", name)
    experiment = smaller(experiment) if tiny else experiment
    settings = replace(experiment.training, device=device.type, compile=mode != "plain")
    experiment = replace(experiment, training=settings)
    run = Run(experiment, device)
    if mode == "captured":
        run.loss = run.model.loss
    run.captured = {} if mode in ("captured", "both") else None
    run.model.train()
    clips = random_clips(experiment, settings.batch_size, settings.frames, device)
    row: dict[str, Any] = {"model": type(experiment.model).__module__.rpartition(".")[2]}
    row |= {"batch": settings.batch_size, "frames": settings.frames}
    row |= measure_training(run, clips, device, rounds=1 if tiny else ROUNDS)
    if mode == "plain":
        seconds = row["ms"] / 1e3
        row |= floors(run, clips, seconds, device)
        row |= measure_evaluation(run, experiment, device, 2 if tiny else SAMPLES)
    row["on"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return row | {"torch": torch.__version__}


def smaller(experiment: Experiment) -> Experiment:
    """Return two sequences a batch and narrow convolutions, where the model has a width."""
    model = experiment.model
    widths = {field.name for field in fields(model)} & {"nf", "ngf", "nef", "ndf"}
    model = replace(model, **dict.fromkeys(widths, 4))
    training = replace(experiment.training, batch_size=2)
    return replace(experiment, model=model, training=training)


def random_clips(experiment: Experiment, count: int, frames: int, device: torch.device) -> Clips:
    channels, size, actions = experiment.shape
    random = torch.Generator(device).manual_seed(0)
    draw = {"generator": random, "device": device}
    taken = torch.randn(count, frames, actions, **draw) if actions else None
    return Clips(torch.rand(count, frames, channels, size, size, **draw), taken)


def measure_training(run: Run, clips: Clips, device: torch.device, rounds: int) -> dict[str, float]:
    def step() -> None:
        run.update(run.model.prepare(clips))

    for _ in range(WARM_UP if rounds > 1 else 1):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = timed(step, device)
    steps, times = max(1, int(0.2 / first)), [first]
    while len(times) < rounds and sum(times) * steps < 8:
        times.append(timed(lambda: [step() for _ in range(steps)], device) / steps)
    seconds = median(times)
    row = {"ms": 1e3 * seconds, "sequences": len(clips.frames) / seconds}
    if device.type == "cuda":
        row["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return row


def floors(run: Run, clips: Clips, seconds: float, device: torch.device) -> dict[str, float]:
    """Return what a step at least needs, as shares of the seconds that it took."""
    saved: dict[int, int] = {}  # bytes by address

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        run.update(run.model.prepare(clips))
    weights = sum(p.numel() for p in run.model.parameters())
    own = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    maps = sum(size for address, size in saved.items() if address not in own)
    flop = counter.get_total_flops()
    n = 1 << (28 if device.type == "cuda" else 22)
    source, target = (torch.empty(n, device=device) for _ in range(2))
    target.copy_(source)
    copying = min(timed(lambda: target.copy_(source), device) for _ in range(5))
    bandwidth = 8 * n / copying  # bytes read and written
    traffic = 2 * maps + 4 * 8 * weights  # weight, gradient and two moments, read and written
    return {
        "gflop": flop / 1e9,
        "arithmetic": flop / measure_peak(run.experiment, device) / seconds,
        "memory": traffic / bandwidth / seconds,
    }


def measure_evaluation(
    run: Run, experiment: Experiment, device: torch.device, samples: int
) -> dict[str, float]:
    config, frames = experiment.evaluation, experiment.predicted_frames
    count = min(config.batch_size, 2 if samples < SAMPLES else config.batch_size)
    clips = random_clips(experiment, count, experiment.data.test_frames, device)
    model = run.model.eval()
    random = torch.Generator().manual_seed(0)
    noise = [model.draw_noise(samples, clips.frames.shape[1], random) for _ in range(count)]
    given = clips.until(config.conditioning_frames)

    def sample() -> list[torch.Tensor]:
        return list(model.futures(given, frames, noise, config.frames_at_once, **config.predict[0]))

    parts: list[torch.Tensor] = []
    sampling = timed(lambda: parts.extend(sample()), device)
    if samples == SAMPLES:
        sampling = min(sampling, timed(sample, device))  # the first call warms up
    truth = clips.after(config.conditioning_frames)
    compare = [metric.load(device)(truth) for metric in (psnr, ssim)]

    def score() -> None:
        for part in parts:
            for against in compare:
                against(part)

    with torch.inference_mode():
        score()
        scoring = min(timed(score, device) for _ in range(2))
    total = count * samples * frames
    return {"sampling": total / sampling, "scoring": total / scoring}


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that a call takes, its work on an accelerator included."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a rehearsal of every row")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--experiments", nargs="+", help="by default all of published sizes")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gpu.csv"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is available: --device cpu --tiny rehearses the measurement")
    (work if given.worker else measure_all)(given)


if __name__ == "__main__":
    main()
