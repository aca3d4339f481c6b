"""How long a training step takes beside the authors', and how far from the arithmetic it is.

    python benchmarks/train_step.py AUTHORS    # path of a checkout of the authors' code

Both take steps on Moving MNIST of their own making, data included, in turns and in one process:
the authors' step in float32 on a CPU and in their mixed precision on a GPU, ours as
`training.precision` and `training.compile` choose. The table gives medians over the rounds. The
arithmetic of a step, counted by PyTorch, over the fastest matrix product or convolution measured
between the rounds is the time of a step that does nothing else: the share is that time over the
time taken. Peak memory is that of a process of its own each; on a GPU, what a side takes of its
memory.

On a CPU the allocator matters to both: set the variables that the Makefile sets. The CPU time
counts all threads; other work on the machine lengthens it less than the time taken.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import authors
import numpy as np
import torch
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from srvp.data.sets import mnist
from srvp.data.sets.moving_mnist import DETERMINISTIC, MovingMNIST
from srvp.devices import autocast, pick_device
from srvp.experiment import Experiment, load_experiment
from srvp.files import project_root
from srvp.training.run import Run

SIDES = ("authors", "ours")
WARM_UP = 4  # steps before the first round: until then, the heap grows
Step = Callable[[], None]


def arguments(doc: str) -> argparse.ArgumentParser:
    """Return a parser of what the benchmarks of training ask for."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("authors", type=Path, help="checkout of the authors' code")
    parser.add_argument("--experiment", default="smmnist")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, help="by default 8 on a CPU, else the published")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--eager", action="store_true", help="our step without torch.compile")
    return parser


def load(given: argparse.Namespace) -> Experiment:
    experiment = load_experiment(project_root() / "params.yaml", given.experiment)
    if experiment.data.dataset not in DETERMINISTIC:
        raise SystemExit(f"{given.experiment} is not Moving MNIST: choose smmnist or dmmnist")
    batch_size = given.batch_size or experiment.training.batch_size
    changes = {"batch_size": batch_size, "device": given.device}
    if given.eager:
        changes["compile"] = False
    return replace(experiment, training=replace(experiment.training, **changes))


def our_step(experiment: Experiment, device: torch.device) -> Step:
    digits, _ = mnist.load(project_root() / "data" / "mnist", "train")
    deterministic = DETERMINISTIC[experiment.data.dataset]
    videos = MovingMNIST(torch.tensor(digits, device=device), deterministic=deterministic)
    run, config = Run(experiment, device), experiment.training
    batches = videos.batches(config.batch_size, config.frames, config.seed)
    run.model.train()

    def step() -> None:
        with record_function("data"):
            x = next(batches)
        run.update(x)

    return step


def their_step(experiment: Experiment, device: torch.device, workers: int) -> Step:
    digits, _ = mnist.load(project_root() / "data" / "mnist", "train")
    training = authors.Training(experiment, device)
    size, pin = experiment.training.batch_size, device.type == "cuda"
    batches = authors.batches(experiment, digits, size, workers, pin)

    def step() -> None:
        with record_function("data"):
            batch = next(batches)
        training.step(batch)

    return step


def build(
    side: str, given: argparse.Namespace, experiment: Experiment, device: torch.device
) -> Step:
    if side == "ours":
        return our_step(experiment, device)
    return their_step(experiment, device, given.workers)


# Time.


def compare(given: argparse.Namespace) -> None:
    experiment, device = load(given), pick_device(given.device)
    steps, memory = {}, {}
    for side in SIDES:
        with gpu_memory(device) as used:
            steps[side] = build(side, given, experiment, device)
            for _ in range(WARM_UP):
                steps[side]()
        memory[side] = peak_memory(side) if device.type == "cpu" else used["peak"]
    with FlopCounterMode(display=False) as counter:
        steps["authors"]()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    peaks = []
    for _ in range(given.rounds):
        for name, step in steps.items():
            times[name].append(measure(step, given.steps, device))
        peaks.append(measure_peak(experiment, device))
    report(given, experiment, times, counter.get_total_flops(), max(peaks), memory)
    if given.profile:
        draw_profile({n: profile_step(s, device) for n, s in steps.items()}, device, given.profile)


def measure(step: Step, count: int, device: torch.device) -> tuple[float, float]:
    """Return seconds per step: elapsed, and of all CPU threads."""
    synchronise(device)
    start = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    synchronise(device)
    return (time.perf_counter() - start[0]) / count, (time.process_time() - start[1]) / count


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def measure_peak(experiment: Experiment, device: torch.device) -> float:
    """Return the FLOP/s of the faster of a large matrix product and a large convolution."""
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device)
    x = torch.randn(n // 16, 256, 16, 16, device=device).to(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
    products: dict[Step, float] = {
        lambda: a @ a: 2 * n**3,
        lambda: F.conv2d(x, w, padding=1): 2 * x.numel() * 256 * 9,
    }
    with torch.no_grad(), autocast(experiment.training.precision, device):
        for product in products:
            product()
        return max(flop / measure(product, 5, device)[0] for product, flop in products.items())


def report(
    given: argparse.Namespace,
    experiment: Experiment,
    times: dict[str, list[tuple[float, float]]],
    flop: float,
    peak: float,
    memory: dict[str, float],
) -> None:
    config, device = experiment.training, pick_device(given.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(
        f"{given.experiment}, {config.batch_size} sequences of {config.frames} frames on {name}, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}\n"
        f"{flop / 1e9:.0f} GFLOP a step; {peak / 1e9:.0f} GFLOP/s measured: "
        f"{1e3 * flop / peak:.1f} ms of arithmetic\n"
    )
    print("         ms/step   CPU ms   sequences/s   share of the arithmetic   peak memory, MB")
    medians = {}
    for side, rounds in times.items():
        elapsed, cpu = medians[side] = np.median(rounds, axis=0)
        print(
            f"{side:8} {1e3 * elapsed:7.1f} {1e3 * cpu:8.0f} {config.batch_size / elapsed:13.1f}"
            f"{flop / peak / elapsed:26.2f} {memory[side]:17.0f}"
        )
    ratio, cpu_ratio = medians["ours"] / medians["authors"]
    print(f"\nours / authors: {ratio:.3f} (CPU time {cpu_ratio:.3f}), {given.rounds} rounds")


# Memory.


@contextmanager
def gpu_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """Tell by how many MB the memory of a GPU rose in the block, at its highest."""
    used: dict[str, float] = {}
    if device.type != "cuda":
        yield used
        return
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    yield used
    used["peak"] = (torch.cuda.max_memory_allocated() - before) / 1e6


def peak_memory(side: str) -> float:
    """Return the peak in MB of a process that takes steps of one side alone, on a CPU."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", side]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def print_peak(given: argparse.Namespace) -> None:
    step = build(given.peak, given, load(given), pick_device(given.device))
    for _ in range(WARM_UP):
        step()
    print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3)


# Profile.

# By name, the first that matches counts: of an outermost event of PyTorch on a CPU ...
CPU_PARTS = {
    "data": r"^data$|DataLoader",
    "optimizer": r"Optimizer|AccumulateGrad",
    "convolutions, backward": r"(Convolution|_Down|_Up)Backward",
    "convolutions, forward": r"conv|^_Down|^_Up",
    "batch norm": r"(?i)batch_?norm",
    "activations": r"(?i)relu|sigmoid|tanh",
    "linear maps, LSTM": r"(?i)linear|mm|matmul|lstm|rnn|TBackward",
    "rest": "",
}
# ... and of a kernel on a GPU, where compiled code fuses batch norm with what stands beside it.
GPU_PARTS = {
    "LSTM": r"(?i)rnn",
    "batch norm, activations": r"batch_norm|bn_fw|bn_bw|leaky_relu",
    "convolutions": r"_(fprop|dgrad|wgrad)_|conv|ImplicitGemm|nchwToNhwc|nhwcToNchw",
    "linear maps": r"(?i)nvjet|gemm|cutlass|splitK",
    "optimizer": r"multi_tensor",
    "rest": "",
}


def profile_step(step: Step, device: torch.device) -> dict[str, float]:
    """Return the seconds of a step by part."""
    on_gpu = device.type == "cuda"
    with profile() as profiler:
        step()
        synchronise(device)
    patterns = GPU_PARTS if on_gpu else CPU_PARTS
    parts = dict.fromkeys(patterns, 0.0)
    for event in profiler.events():
        if on_gpu:
            counts, seconds = event.device_type == DeviceType.CUDA, event.self_device_time_total
        else:
            counts = event.cpu_parent is None and "Synchronize" not in event.name
            seconds = event.cpu_time_total
        if counts:
            part = next(p for p, pattern in patterns.items() if re.search(pattern, event.name))
            parts[part] += seconds / 1e6
    return parts


def draw_profile(parts: dict[str, dict[str, float]], device: torch.device, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 2.4), layout="constrained")
    for side, seconds in parts.items():
        left = 0.0
        for i, (part, value) in enumerate(seconds.items()):
            label = part if side == "ours" else None
            axes.barh(side, 1e3 * value, left=1e3 * left, color=f"C{i}", label=label)
            left += value
        print(side, ", ".join(f"{part} {1e3 * value:.1f} ms" for part, value in seconds.items()))
    axes.invert_yaxis()
    axes.set(xlabel=f"ms per step on a {'GPU' if device.type == 'cuda' else 'CPU'}")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, help="of their data loader; none on a CPU, else 4")
    parser.add_argument("--steps", type=int, help="a round; by default 1 on a CPU, else 20")
    parser.add_argument("--profile", type=Path, help="PNG file: where the time goes")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    on_cpu = pick_device(given.device).type == "cpu"
    defaults = (
        {"batch_size": 8, "workers": 0, "steps": 1} if on_cpu else {"workers": 4, "steps": 20}
    )
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    torch.set_num_threads(given.threads)
    authors.add_to_path(given.authors)
    (print_peak if given.peak else compare)(given)


if __name__ == "__main__":
    main()
