"""Batch norm over the joint batch of several CPU processes; PyTorch's own needs GPUs."""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from srvp.training import distributed


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """As `distributed.synchronise_batch_norm`, in place and on a CPU."""
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d and distributed.is_group():
            layer.__class__ = SynchronisedBatchNorm2d  # parameters, buffers and names stay
    return module


class SynchronisedBatchNorm2d(nn.SyncBatchNorm):  # the type that GPUs have
    """Batch norm over the joint batch of all processes."""

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Normalise this process' part `(N, C, H, W)` of the joint batch."""
        if not self.training:
            return super().forward(x)
        y, mean, var = _Normalise.apply(x, self.weight, self.bias, self.eps)
        count = distributed.world_size() * x.numel() / x.shape[1]
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
        every = own.new_zeros(distributed.world_size(), *own.shape)
        every[distributed.rank()] = own
        var, mean = distributed.sum_over_processes(every).unbind(dim=1)  # (processes, C) each
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
        count = distributed.world_size() * x.numel() / x.shape[1]
        mean_grad, covariance = distributed.sum_over_processes(own) / count
        scale = weight * inverse_std
        grad_x = scale[:, None, None] * (
            grad
            - mean_grad[:, None, None]
            - centred * (covariance * inverse_std.square())[:, None, None]
        )
        return grad_x.to(x.dtype), own[1] * inverse_std, own[0], None
