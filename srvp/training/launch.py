r"""Start training: here, on all GPUs of this machine, or on those of several machines.

    from srvp.training.launch import train_everywhere                          # notebooks: all GPUs
    python -m srvp.training.launch smmnist                                     # the same without a notebook
    torchrun --nproc-per-node gpu -m srvp.training.launch smmnist              # one process per GPU
    torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --nproc-per-node gpu \
        -m srvp.training.launch smmnist                                        # several machines

(`accelerate launch -m srvp.training.launch smmnist` starts the same processes.) Several machines need the
folders `prepared` and `runs` in common. The processes share every batch: `srvp.training.distributed`.
"""

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, nn
from torch.multiprocessing import SimpleQueue, get_context, spawn

from srvp.config import Experiment, load_experiment
from srvp.data import open_training
from srvp.files import repository_root
from srvp.training.loop import MODEL_FILE, Row, load_model, pick_device, train


def train_everywhere(
    experiment: Experiment,
    prepared: Path,
    out: Path,
    log: Callable[[Row], None] = lambda row: None,
    processes: int | None = None,
) -> nn.Module:
    """Train on all GPUs of this machine, a process each; without several of them, right here.

    Args:
        experiment: what to train.
        prepared: folder of the prepared set.
        out: folder of the results.
        log: called in this process, as `srvp.training.loop.train` does.
        processes: how many; by default one per device.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the error of a process that failed.
    """
    device = pick_device(experiment.training.device)
    processes = processes or (torch.accelerator.device_count() if device.type != "cpu" else 1)
    if processes == 1:
        return train(experiment, open_training(experiment.data, prepared, device), out, log)
    rows = get_context("spawn").SimpleQueue()
    given = (processes, _free_port(), rows, experiment, prepared, out)
    workers = spawn(_process, given, nprocs=processes, join=False)
    try:
        running = True
        while running:
            running = not workers.join(timeout=1)
            while not rows.empty():
                log(rows.get())
    finally:  # an interrupt reaches this process alone
        for process in workers.processes:
            process.terminate()
    return load_model(Path(out) / MODEL_FILE, device.type)[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _process(
    rank: int,
    processes: int,
    port: int,
    rows: SimpleQueue,
    experiment: Experiment,
    prepared: Path,
    out: Path,
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    train_in_group(experiment, prepared, out, rows.put)


def train_in_group(
    experiment: Experiment, prepared: Path, out: Path, log: Callable[[Row], None]
) -> None:
    """Train as one of the processes that torchrun or accelerate started, or alone."""
    device = pick_device(experiment.training.device)
    grouped = "RANK" in os.environ
    if grouped:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        train(experiment, open_training(experiment.data, prepared, device), out, log)
    finally:
        if grouped:
            distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an experiment of params.yaml.")
    parser.add_argument("experiment")
    parser.add_argument("--prepared", type=Path, help="by default prepared/EXPERIMENT")
    parser.add_argument("--out", type=Path, help="by default runs/EXPERIMENT")
    given = parser.parse_args()
    root = repository_root()
    experiment = load_experiment(root / "params.yaml", given.experiment)
    prepared = given.prepared or root / "prepared" / given.experiment
    out = given.out or root / "runs" / given.experiment
    start = train_in_group if "RANK" in os.environ else train_everywhere
    start(experiment, prepared, out, lambda row: print(row, flush=True))


if __name__ == "__main__":
    main()
