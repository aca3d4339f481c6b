"""Training in several processes: what they share, and when.

Every process holds the whole model and the same random generator. It draws the videos and the
random choices of the whole batch, then keeps its shard. As batch norm takes its statistics over all
processes and gradients are averaged, W processes make the steps of one, whatever W, and a run may
be resumed with another W. In a single process every function here does nothing.

`srvp.training.launch` starts the processes.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


def rank() -> int:
    """Number of this process; process 0 writes the files and logs."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
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
    """Return this process' part of a tensor, or of a named tuple of tensors, along the batch."""
    if world_size() == 1:
        return batch
    if isinstance(batch, Tensor):
        return batch.chunk(world_size())[rank()]
    return type(batch)(*map(shard, batch))


def mean(x: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes."""
    if world_size() == 1:
        return x
    return _sum(x) / world_size()


def any_true(condition: bool, device: torch.device) -> bool:
    """Return whether a condition holds in any process. With several, this waits for the device."""
    if world_size() == 1:
        return condition
    return bool(mean(torch.tensor(float(condition), device=device)) > 0)


def average_gradients(module: nn.Module) -> None:
    """Replace the gradients by their means over the processes, in one message."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    joined = mean(torch.cat([g.flatten() for g in gradients]))
    parts = joined.split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def synchronise_batch_norm(module: nn.Module) -> None:
    """Let every batch norm take its statistics over the batch of all processes, in place."""
    if world_size() == 1:
        return
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SynchronisedBatchNorm2d  # parameters, buffers and names stay


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the joint batch of all processes, on any device.

    PyTorch's own synchronised batch norm knows GPUs alone.
    """

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Normalise this process' part `(N, C, H, W)` of the joint batch."""
        if not self.training:
            return super().forward(x)
        y, mean, var = _Normalise.apply(x, self.weight, self.bias, self.eps)
        count = world_size() * x.numel() / x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return y


class _Normalise(torch.autograd.Function):
    """(x - mean) / std * weight + bias; mean and variance over all processes.

    One message forward, one backward.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.stack(torch.var_mean(x.to(weight.dtype), dim=(0, 2, 3), correction=0))
        every = own.new_zeros(world_size(), *own.shape)
        every[rank()] = own
        var, mean = _sum(every).unbind(dim=1)  # (processes, C) each
        var = var.mean(dim=0) + mean.var(dim=0, correction=0)
        mean = mean.mean(dim=0)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        grad = grad.to(weight.dtype)
        centred = x.to(weight.dtype) - mean[:, None, None]
        own = torch.stack([grad.sum(dim=(0, 2, 3)), (grad * centred).sum(dim=(0, 2, 3))])
        count = world_size() * x.numel() / x.shape[1]
        mean_grad, covariance = _sum(own) / count
        scale = weight * inverse_std
        grad_x = scale[:, None, None] * (
            grad
            - mean_grad[:, None, None]
            - centred * (covariance * inverse_std.square())[:, None, None]
        )
        return grad_x.to(x.dtype), own[1] * inverse_std, own[0], None


def _sum(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total
