"""Training in several processes: what they share, and when.

Every process holds the whole model and the same random generator. It draws the clips and the random
choices of the whole batch, then keeps its shard. Batch norm takes its statistics over all processes
and gradients are averaged, so W processes take the steps of one, whatever W. A run may be resumed
with another W.

`srvp.training.launch` starts the processes.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn


def is_group() -> bool:
    """Return whether several processes train together."""
    return world_size() > 1


def rank() -> int:
    """Return the number of this process; process 0 writes the files and logs."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def check_batch(batch_size: int) -> None:
    """Make sure that a batch can be shared evenly.

    Raises:
        ValueError: it cannot.
    """
    if batch_size % world_size():
        raise ValueError(
            f"training.batch_size is {batch_size}, which {world_size()} processes cannot share "
            "evenly: choose a multiple of them"
        )


def shard(batch: Any) -> Any:
    """Return this process' part, along the batch, of nested tuples of tensors.

    Numbers, tensors `()`, belong to all processes. None stays None.
    """
    if isinstance(batch, Tensor):
        return batch.chunk(world_size())[rank()] if batch.dim() else batch
    return batch if batch is None else type(batch)(*(shard(part) for part in batch))


def mean(x: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes."""
    return sum_over_processes(x) / world_size() if is_group() else x


def any_true(condition: bool, device: torch.device) -> bool:
    """Return whether a condition holds in any process. With several, this waits for the device."""
    if not is_group():
        return condition
    return bool(mean(torch.tensor(float(condition), device=device)) > 0)


def wait_for_all(device: torch.device) -> None:
    """Wait until every process is here, and so has read what this one is going to change."""
    any_true(False, device)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace gradients by their means over the processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    joined = mean(torch.cat([g.flatten() for g in gradients]))
    parts = joined.split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a module whose batch norms take their statistics over the batch of all processes.

    Raises:
        ValueError: there are several processes on a CPU, for which PyTorch has no such batch norm.
    """
    if not is_group():
        return module
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    if norms and device.type == "cpu":
        raise ValueError("several processes on a CPU cannot share batch norm: train in one process")
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total
