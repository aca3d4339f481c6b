"""All residual updates of a video at once: y <- y + dt f(y, z), f a perceptron.

The loop over time is what keeps a GPU waiting, and the threads of a CPU: each update is a few small
matrix products. Of the work around them, only what the next update needs stays in the loop. What z
adds to the first layer is one product for all frames, and so is, after the loop backward, the
gradient of every weight. In a loop of PyTorch's own operations each update makes a gradient of
every weight, which are then added up.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def pays(f: nn.Module, y: Tensor, z: Tensor) -> bool:
    """Whether `unroll_mlp` is faster than a loop; without gradients a CPU gains nothing."""
    perceptron = isinstance(f, nn.Sequential) and z.shape[1] > 0
    return perceptron and (y.is_cuda or torch.is_grad_enabled())


def unroll_mlp(f: nn.Sequential, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
    """Unroll the states after y `(B, ny)`: `euler_steps` updates for each of z `(B, T, nz)`.

    Args:
        f: linear maps with ReLU between them (`srvp.models.parts.networks.mlp`), from
            `(..., ny + nz)` to `(..., ny)`.
        y: states to start from.
        z: stochastic variables, one a frame.
        euler_steps: updates per frame, dt = 1 / euler_steps.

    Returns:
        States `(B, T, ny)` at whole times and residuals dt f(y, z) `(B, T * euler_steps, ny)`.
    """
    linear = [layer for layer in f if isinstance(layer, nn.Linear)]
    parameters = [p for layer in linear for p in (layer.weight, layer.bias)]
    return _Unroll.apply(y, z, euler_steps, *parameters)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, y: Tensor, z: Tensor, euler_steps: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        device = y.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else y.dtype
        first, *weights = (w.to(dtype) for w in parameters[::2])
        first_bias, *biases = (b.to(dtype) for b in parameters[1::2])
        of_y, of_z = first.split([y.shape[1], z.shape[2]], dim=1)
        z = z.to(dtype).transpose(0, 1)  # (T, B, nz)
        from_z = (z @ of_z.T + first_bias).repeat_interleave(euler_steps, dim=0)
        states, residuals, inputs = [y], [], []
        for shift in from_z.unbind():
            x = states[-1].to(dtype)
            layers = [x]  # the input of every linear map
            x = torch.addmm(shift, x, of_y.T)
            for weight, bias in zip(weights, biases, strict=True):
                layers.append(x.relu())
                x = torch.addmm(bias, layers[-1], weight.T)
            residuals.append(x.to(y.dtype) / euler_steps)
            states.append(states[-1] + residuals[-1])
            inputs.append(layers)
        stacked = map(torch.stack, zip(*inputs, strict=True))  # (T * euler_steps, B, .) each
        ctx.save_for_backward(of_y, of_z, *weights, z, *stacked)
        ctx.euler_steps, ctx.types = euler_steps, [p.dtype for p in parameters]
        return torch.stack(states[euler_steps::euler_steps], dim=1), torch.stack(residuals, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_y: Tensor, grad_residual: Tensor) -> tuple:
        steps, depth = ctx.euler_steps, len(ctx.types) // 2
        of_y, of_z, *saved = ctx.saved_tensors
        weights, z, inputs = saved[: depth - 1], saved[depth - 1], saved[depth:]
        grad = torch.zeros_like(grad_y[:, 0])  # of the state
        grads = []  # of the output of every linear map, from the last update to the first
        for i in reversed(range(len(inputs[0]))):
            if i % steps == steps - 1:  # the update that ends in a frame's state
                grad = grad + grad_y[:, i // steps]
            g = ((grad + grad_residual[:, i]) / steps).to(z.dtype)
            layers = [g]
            for weight, x in zip(reversed(weights), reversed(inputs[1:]), strict=True):
                layers.append((layers[-1] @ weight) * (x[i] > 0))
            grad = grad + (layers[-1] @ of_y).to(grad.dtype)
            grads.append(layers[::-1])
        outputs = [torch.stack(g[::-1]) for g in zip(*grads, strict=True)]
        # z is the same for all updates of a frame.
        of_frames = outputs[0].unflatten(0, (-1, steps)).sum(dim=1) if steps > 1 else outputs[0]
        found = [
            g for x, o in zip(inputs, outputs, strict=True) for g in (_product(o, x), o.sum((0, 1)))
        ]
        found[0] = torch.cat([found[0], _product(of_frames, z)], dim=1)
        found = [g.to(dtype) for g, dtype in zip(found, ctx.types, strict=True)]
        grad_z = (of_frames @ of_z).transpose(0, 1).to(grad_y.dtype)
        return grad, grad_z, None, *found


def _product(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of a weight: from those of its outputs, and its inputs `(T, B, .)`."""
    return grad.flatten(0, 1).T @ x.flatten(0, 1)
