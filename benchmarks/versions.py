"""Training sequences per second of this version beside another one, in turns.

    git worktree add /tmp/before f853970
    OMP_NUM_THREADS=2 python benchmarks/versions.py /tmp/before --threads 2

Each version runs in a process of its own, which waits while the other takes its steps. Each trains
the experiment of its own `params.yaml`, data drawing included, so that batches may differ in size.
Medians and the best round are printed; other work on the machine shows in the difference.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from srvp.files import project_root

# Trains on as many sequences as a line says, and answers with how many that was per second. The
# second imports are those of earlier versions.
WORKER = """
import gzip, json, re, sys, time, torch
from contextlib import nullcontext
from torch.profiler import profile
sys.path.insert(0, ".")
try:
    from srvp.data.sets.moving_mnist import MovingMNIST
    from srvp.experiment import load_experiment
    from srvp.training.ahead import made_ready
    from srvp.training.run import Run
except ModuleNotFoundError:
    from srvp.config import load_experiment
    from srvp.data.moving_mnist import MovingMNIST
    from srvp.training import Run
    made_ready = lambda batches, model, device: nullcontext(batches)

name, threads, PARTS, images = sys.argv[1:]
torch.set_num_threads(int(threads))
experiment = load_experiment("params.yaml", name)
config = experiment.training
with gzip.open(images) as file:
    digits = torch.frombuffer(bytearray(file.read()[16:]), dtype=torch.uint8).view(-1, 28, 28)
videos = MovingMNIST(digits, deterministic=False)
batches = videos.batches(config.batch_size, config.frames, 0)
run = Run(experiment, torch.device("cpu"))
run.model.train()
ready = made_ready(batches, run.model, run.device)  # named, as it ends when nothing refers to it
batches = ready.__enter__()
parts = json.loads(PARTS)
for line in sys.stdin:
    if line == "profile\\n":
        with profile() as profiler:
            for _ in range(5):
                run.update(next(batches))
        sums = dict.fromkeys(parts, 0.0)
        for e in profiler.key_averages():
            part = next(p for p, pattern in parts.items() if re.search(pattern, e.key))
            sums[part] += e.self_cpu_time_total / 5e3 / config.batch_size
        print(json.dumps(sums), flush=True)
        continue
    steps = max(1, int(line) // config.batch_size)
    for _ in range(4):  # batches that waited, ready, are not counted
        run.update(next(batches))
    start = time.perf_counter()
    for _ in range(steps):
        run.update(next(batches))
    print(steps * config.batch_size / (time.perf_counter() - start), flush=True)
"""


DIGITS = project_root() / "data" / "mnist" / "train-images-idx3-ubyte.gz"
# By name, the first that matches counts: of PyTorch's operations, without those they call.
PARTS = {
    "convolutions": r"conv|pixel_shuffle|aten::bmm",
    "batch norm": r"batch_norm",
    "activations": r"relu|tanh|sigmoid|softplus",
    "linear maps, LSTM": r"aten::(add)?mm|rnn",
    "optimiser": r"(?i)adam|Optimizer",
    "copies": r"copy_|clone|aten::cat|stack|contiguous|fill_|zero_|index",
    "other arithmetic": r"aten::(add|sub|mul|div|neg|pow|log|exp|sum|norm|clamp|sqrt|abs|square)",
    "launching": r"",
}


class Version:
    """A process that trains the version of the code in a folder."""

    def __init__(self, folder: Path, experiment: str, threads: int):
        arguments = [experiment, str(threads), json.dumps(PARTS), str(DIGITS)]
        command = [sys.executable, "-c", WORKER, *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True
        )
        self.rates: list[float] = []

    def train(self, sequences: int) -> float:
        """Train on so many sequences; return those per second."""
        print(sequences, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def profile(self) -> dict[str, float]:
        """Return the CPU time of a sequence by part, in ms."""
        print("profile", file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def draw_profile(versions: dict[str, Version], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 2.4), layout="constrained")
    for name, version in versions.items():
        left = 0.0
        for i, (part, value) in enumerate(version.profile().items()):
            label = part if name == "now" else None
            axes.barh(name, value, left=left, color=f"C{i}", label=label)
            left += value
    axes.invert_yaxis()
    axes.set(xlabel="ms of a training sequence, by PyTorch's profiler")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path, help="checkout of the other version")
    parser.add_argument("--experiment", default="quick")
    parser.add_argument("--named", help="what the other version calls the experiment")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=64, help="a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", type=Path, help="PNG file: where the time goes")
    given = parser.parse_args()
    folders = {"before": given.before, "now": project_root()}
    names = {"before": given.named or given.experiment, "now": given.experiment}
    versions = {n: Version(f, names[n], given.threads) for n, f in folders.items()}
    for version in versions.values():
        version.train(given.sequences)  # warms up
    for _ in range(given.rounds):
        for version in versions.values():
            version.rates.append(version.train(given.sequences))
    if given.profile:
        draw_profile(versions, given.profile)
    print(
        f"{given.experiment}, {given.threads} thread(s), {given.rounds} rounds of "
        f"{given.sequences} sequences; sequences per second"
    )
    for name, version in versions.items():
        version.close()
        print(f"{name:7} median {median(version.rates):7.1f}, best {max(version.rates):7.1f}")
    ratio = median(versions["now"].rates) / median(versions["before"].rates)
    print(f"now / before: {ratio:.2f}")


if __name__ == "__main__":
    main()
