"""DCGAN's convolutions of small maps as one matrix product: 4x4, stride 2, padding 1.

A direct convolution goes along the rows of a map. Rows of four positions leave AMX's tiles of
sixteen nearly empty: of 256 to 512 channels it reached 0.1 to 0.3 TFLOP/s a core in bfloat16, a
matrix product 0.8 to 1. Here every position's 4x4 patch is a row of a matrix (`_patches`), and
patches are added up where they overlap (`_overlap`, its adjoint).

Results are those of the direct convolution up to the rounding of their type. Under autocast a
gradient of x is a sum of four numbers in bfloat16, which rounds by 0.4 % (root mean square).

Shapes: N frames; frames side x (N, H, W, C), maps side y (N, H / 2, W / 2, O); channels last.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


def down(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve `(N, C, H, W)` by `(O, C, 4, 4)`: `(N, O, H / 2, W / 2)`."""
    return _Down.apply(x, weight.to(x.dtype))


def up(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve `(N, O, H, W)`, transposed, by `(O, C, 4, 4)`: `(N, C, 2H, 2W)`."""
    return _Up.apply(x, weight.to(x.dtype))


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        rows, matrix = _patches(x), _matrix(weight)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, matrix)
        return _map(rows @ matrix.T, x.shape[2] // 2, x.shape[3] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        maps = _rows(grad)
        return (
            _overlap(maps @ matrix, *grad.shape[2:]) if of_x else None,
            _weight(_transposed_product(maps, rows)) if of_weight else None,
        )


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, weight: Tensor) -> Tensor:
        maps, matrix = _rows(y), _matrix(weight)
        ctx.save_for_backward(maps, matrix)
        return _overlap(maps @ matrix, *y.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, matrix = ctx.saved_tensors
        of_y, of_weight = ctx.needs_input_grad
        rows = _patches(grad)
        return (
            _map(rows @ matrix.T, grad.shape[2] // 2, grad.shape[3] // 2) if of_y else None,
            _weight(_transposed_product(maps, rows)) if of_weight else None,
        )


def _matrix(weight: Tensor) -> Tensor:
    """From `(O, C, 4, 4)` to `(O, 16C)`: a row of every output's weights, channels last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _weight(matrix: Tensor) -> Tensor:
    """From `(O, 16C)` to `(O, C, 4, 4)`."""
    return matrix.view(len(matrix), 4, 4, -1).permute(0, 3, 1, 2)


def _rows(maps: Tensor) -> Tensor:
    """From maps `(N, O, h, w)` to a row for every position, `(N h w, O)`."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _map(rows: Tensor, h: int, w: int) -> Tensor:
    """From `(N h w, O)` to maps `(N, O, h, w)`."""
    return rows.view(-1, h, w, rows.shape[1]).permute(0, 3, 1, 2)


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b; oneDNN takes half the time for a matrix that is laid out as it is multiplied."""
    return a.T.contiguous() @ b


def _patches(x: Tensor) -> Tensor:
    """Take 4x4 patches of `(N, C, H, W)`, stride 2: `(N h w, 16C)`, h = H / 2 and w = W / 2."""
    n, c, height, width = x.shape
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    frame, row, column, channel = x.stride()
    size = (n, height // 2, width // 2, 4, 4, c)
    stride = (frame, 2 * row, 2 * column, row, column, channel)
    return x.as_strided(size, stride).reshape(-1, 16 * c)


def _overlap(rows: Tensor, h: int, w: int) -> Tensor:
    """Add patches `(N h w, 16C)` up, the adjoint of `_patches`: `(N, C, 2h, 2w)`."""
    patches = rows.view(-1, h, w, 4, 4, rows.shape[1] // 16)
    sums = _add_neighbours(patches.movedim(3, 0), axis=1)  # (N, h, 2, w, 4, C)
    x = _add_neighbours(sums.movedim(4, 0), axis=3)  # (N, h, 2, w, 2, C)
    return x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _add_neighbours(taps: Tensor, axis: int) -> Tensor:
    """Add the four taps of an axis up where they meet: two positions for each patch.

    The even position of a patch is its tap 1 and tap 3 of the patch before; the odd one is its tap
    2 and tap 0 of the next.
    """
    count = taps.shape[axis + 1]
    size = [*taps.shape[1:]]
    size.insert(axis + 1, 2)
    x = taps.new_empty(size)
    even, odd = x.unbind(axis + 1)
    before, after = (0, count - 1), (1, count - 1)  # where a patch has one after or before it
    even.select(axis, 0).copy_(taps[1].select(axis, 0))
    torch.add(
        taps[1].narrow(axis, *after), taps[3].narrow(axis, *before), out=even.narrow(axis, *after)
    )
    odd.select(axis, -1).copy_(taps[2].select(axis, -1))
    torch.add(
        taps[2].narrow(axis, *before), taps[0].narrow(axis, *after), out=odd.narrow(axis, *before)
    )
    return x
