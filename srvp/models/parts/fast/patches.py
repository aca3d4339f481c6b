"""DCGAN's layers that meet the image, 4x4 and stride 2: few channels on one side.

On a GPU each is one matrix product of patches: cuDNN pads the one channel of an image to eight and
lays it out anew, several times over what the layer has to read and write. On a CPU the transposed
one is a convolution to the four phases of the image.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


def patches(x: Tensor) -> Tensor:
    """Take 4x4 patches, stride 2, padding 1: from `(N, C, H, W)` to `(N, H / 2, W / 2, 16C)`."""
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(3)


class Overlap(torch.autograd.Function):
    """Add such patches up, the adjoint of `patches`: from `(N, h, w, 16C)` to `(N, C, 2h, 2w)`."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x = F.pad(x.unflatten(3, (-1, 4, 4)), (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
        # An even row of the image is row 1 of a patch and row 3 of the one before; an odd row is
        # row 2 of a patch and row 0 of the next. So for columns.
        here, before, after = slice(1, -1), slice(None, -2), slice(2, None)
        even = x[:, here, ..., 1, :] + x[:, before, ..., 3, :]
        odd = x[:, here, ..., 2, :] + x[:, after, ..., 0, :]
        x = torch.stack([even, odd], dim=2)  # (N, h, 2, w + 2, C, 4)
        even = x[:, :, :, here, :, 1] + x[:, :, :, before, :, 3]
        odd = x[:, :, :, here, :, 2] + x[:, :, :, after, :, 0]
        x = torch.stack([even, odd], dim=4)  # (N, h, 2, w, 2, C)
        return x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return patches(grad)


class PhasesToImage(torch.autograd.Function):
    """The transposed convolution of `(N, O, h, w)` by `(O, C, 4, 4)`: `(N, C, 2h, 2w)`.

    Four neighbouring pixels, rows 2i - 1 and 2i and columns alike, come from the same 2x2 positions
    of the map: they are 4C channels of one 2x2 convolution with stride 1, padded by 1, whose outer
    pixels lie outside the image. Gradients are those of PyTorch's transposed convolution.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Tap 2 (1 - a) + p of phase p is that of row a of the two.
        taps = weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 4)  # O, C, a, p, b, q
        phases = taps.permute(1, 3, 5, 0, 2, 4).flatten(0, 2)  # 4C, O, 2, 2
        phases = phases.contiguous(memory_format=torch.channels_last)
        return F.pixel_shuffle(F.conv2d(x, phases, padding=1), 2)[:, :, 1:-1, 1:-1].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        geometry = ([2, 2], [1, 1], [1, 1], True, [0, 0], 1)
        needed = [*ctx.needs_input_grad, False]
        found = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, needed)
        return found[0], found[1]
