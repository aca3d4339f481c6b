"""Start training: here, on all GPUs of this machine, or on those of several machines.

    python -m srvp train smmnist                                 # all GPUs of this machine
    torchrun --nproc-per-node gpu -m srvp train smmnist          # the same, started by torchrun
    torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        --nproc-per-node gpu -m srvp train smmnist               # several machines

(`accelerate launch -m srvp train smmnist` starts the same processes.) Several machines need the
folders `prepared` and `runs` in common. The processes share every batch: see `distributed`.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing import SimpleQueue, get_context

from srvp.data import open_training
from srvp.devices import device_count, pick_device
from srvp.experiment import Experiment
from srvp.models.interface import VideoModel
from srvp.processes import in_processes
from srvp.store import MODEL_FILE, load_model
from srvp.training.loop import train
from srvp.training.run import Row


def train_everywhere(
    experiment: Experiment,
    prepared: Path,
    out: Path,
    log: Callable[[Row], None] = lambda row: None,
    processes: int | None = None,
) -> VideoModel:
    """Train on all GPUs of this machine, a process each; without several of them, right here.

    If torchrun or accelerate started this process, it trains as one of theirs.

    Args:
        experiment: what to train.
        prepared: folder of the prepared set.
        out: folder of the results.
        log: called in this process, as `srvp.training.loop.train` does.
        processes: how many; by default one per device.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        RuntimeError: one of several processes failed; the last line of its error.
    """
    device = pick_device(experiment.training.device)
    if "RANK" in os.environ:
        return _train_in_group(experiment, prepared, out, log)
    processes = processes or device_count(device)
    if processes == 1:
        return train(experiment, open_training(experiment.data, prepared, device), out, log)
    rows = get_context("spawn").SimpleQueue()

    def pass_on() -> None:
        while not rows.empty():
            log(rows.get())

    args = (processes, _free_port(), rows, experiment, prepared, out)
    in_processes(_process, args, processes, meanwhile=pass_on)
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
    _train_in_group(experiment, prepared, out, rows.put)


def _train_in_group(
    experiment: Experiment, prepared: Path, out: Path, log: Callable[[Row], None]
) -> VideoModel:
    """Train as one of several processes."""
    device = pick_device(experiment.training.device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        return train(experiment, open_training(experiment.data, prepared, device), out, log)
    finally:
        distributed.destroy_process_group()
