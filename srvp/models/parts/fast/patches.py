"""4x4 patches with stride 2: DCGAN's layers that meet the image, as one matrix product on a GPU.

cuDNN pads the one channel of an image to eight and lays it out anew, several times over what the
layer has to read and write.
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
