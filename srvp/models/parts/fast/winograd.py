"""Fewer multiplications for DCGAN's convolutions on a CPU: 4x4, stride 2, padding 1.

One stride-2 convolution is a stride-1 convolution by 2x2 of the frame's four phases (even or odd
row, even or odd column). Along one axis, four neighbouring outputs of filter (g0, g1) on
(d0, ..., d4), y_j = d_j g0 + d_{j+1} g1, take five multiplications instead of eight (Winograd's
F(4, 2)):

    y = A^T ((G g) * (B^T d)),    A 5x4,  G 5x2,  B 5x5.

The matrices come from multiplying polynomials by their values at five points. The rows of A and G
are the powers of the points; B is the transposed inverse of the same for five coefficients. On both
axes this makes 25 products for sixteen outputs instead of 64, with the Kronecker squares of the
matrices. Each product, over all positions and channels, is one matrix multiplication. The
transposed convolution and the gradients are the adjoints of the same three maps.

In float32, results equal the direct convolution up to rounding. Under autocast the products and
their sums are bfloat16, and the weights stay float32. They are rounded before they are combined,
so results are off by 1.2 % (root mean square; the gradient of a weight by up to 2 %). The direct
convolution in bfloat16 is off by 0.3 %.

`srvp.models.parts.fast.choice` says when this is faster than PyTorch's own convolution: for wide
layers and many maps.

Shapes: N frames; frames side x (N, H, W, C), maps side y (N, H / 2, W / 2, O); channels last. A
tile is 4x4 positions of y, and the 10x10 positions of x that they see; there are P of them in all.
Phases p, q and channels C together are one axis of 4C.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

FEW = 32  # tiles in all below which transforming the weight costs more than it saves
TILES_AT_ONCE = 240  # so many tiles, transformed, stay in the processor's cache
POINTS = (0.0, 1.0, -0.5, -2.0)  # and infinity; of all simple ones they round least


def _kronecker_square(matrix: Tensor) -> Tensor:
    return torch.kron(matrix, matrix).float()


def _powers(count: int) -> Tensor:
    """The powers of the points `(5, count)`; infinity picks the highest."""
    finite = torch.tensor(POINTS, dtype=torch.float64)[:, None] ** torch.arange(count)
    return torch.cat([finite, F.one_hot(torch.tensor([count - 1])).double()])


# Multiples of the rows of B, taken from G, that make B exact in bfloat16.
SCALE = torch.tensor([1, 4.5, 1.125, 18, 1], dtype=torch.float64)[:, None]

A = _kronecker_square(_powers(4))  # (25, 16)
G = _kronecker_square(_powers(2) / SCALE)  # (25, 4)
B = _kronecker_square(torch.linalg.inv(_powers(5)).T * SCALE)  # (25, 25): B^T above, on both axes


def fits(n: int, h: int, w: int) -> bool:
    """Whether n maps of h x w positions are whole tiles, and enough of them."""
    return h % 4 == w % 4 == 0 and n * h * w >= FEW * 16


_TRANSFORMED = WeakTensorKeyDictionary()  # of weights that do not change


def keep_transformed(weight: Tensor) -> None:
    """Transform a weight only once: it does not change any more."""
    _TRANSFORMED[weight] = []


def down(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve `(N, C, H, W)` by `(O, C, 4, 4)`: `(N, O, H / 2, W / 2)`."""
    return _apply(_Down, x, weight)


def up(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve `(N, O, H, W)`, transposed, by `(O, C, 4, 4)`: `(N, C, 2H, 2W)`."""
    return _apply(_Up, x, weight)


def _apply(function: type["_Down"] | type["_Up"], x: Tensor, weight: Tensor) -> Tensor:
    """Convolve x; the weight stays float32, and its transformation is rounded to the type of x."""
    with torch.autocast("cpu", enabled=False):
        return function.apply(x, weight, torch.is_grad_enabled() and weight.requires_grad)


# The two convolutions and their gradients.


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, keep: bool) -> Tensor:
        n, _, h, w = x.shape
        y = x.new_empty(n, h // 2, w // 2, len(weight))
        weights, kept = _transform_weight(weight, x.dtype), []
        for frames, out in _chunks(_channels_last(x), y):
            tiles = _transform_frames(frames)
            _inverse_maps(torch.bmm(tiles, weights.transpose(1, 2)), out)
            if keep:
                kept.append(tiles)
        ctx.save_for_backward(weights, *kept)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, *kept = ctx.saved_tensors
        n, _, h, w = grad.shape
        x = grad.new_empty(n, 2 * h, 2 * w, weights.shape[2] // 4)
        total = None
        for i, (out, maps) in enumerate(_chunks(x, _channels_last(grad))):
            tiles = _transform_maps(maps)
            if ctx.needs_input_grad[0]:
                _adjoint_frames(torch.bmm(tiles, weights), out)
            if kept:
                total = _add_product(total, tiles, kept[i])
        return (
            x.permute(0, 3, 1, 2) if ctx.needs_input_grad[0] else None,
            _adjoint_weight(total) if kept else None,
            None,
        )


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, weight: Tensor, keep: bool) -> Tensor:
        n, _, h, w = y.shape
        x = y.new_empty(n, 2 * h, 2 * w, weight.shape[1])
        weights, kept = _transform_weight(weight, y.dtype), []
        for out, maps in _chunks(x, _channels_last(y)):
            tiles = _transform_maps(maps)
            _adjoint_frames(torch.bmm(tiles, weights), out)
            if keep:
                kept.append(tiles)
        ctx.save_for_backward(weights, *kept)
        return x.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, *kept = ctx.saved_tensors
        n, _, h, w = grad.shape
        y = grad.new_empty(n, h // 2, w // 2, weights.shape[1])
        total = None
        for i, (frames, out) in enumerate(_chunks(_channels_last(grad), y)):
            tiles = _transform_frames(frames)
            if ctx.needs_input_grad[0]:
                _inverse_maps(torch.bmm(tiles, weights.transpose(1, 2)), out)
            if kept:
                total = _add_product(total, kept[i], tiles)
        return (
            y.permute(0, 3, 1, 2) if ctx.needs_input_grad[0] else None,
            _adjoint_weight(total) if kept else None,
            None,
        )


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Go through tensors frame by frame, in chunks; the smaller of the first two is a map."""
    tiles = min(t.shape[1] * t.shape[2] for t in tensors) // 16
    return zip(*(t.split(max(1, TILES_AT_ONCE // tiles)) for t in tensors), strict=True)


def _add_product(total: Tensor | None, maps: Tensor, frames: Tensor) -> Tensor:
    """Add the gradient of the transformed weights `(25, O, 4C)` over some tiles."""
    maps = maps.transpose(1, 2)
    return torch.bmm(maps, frames) if total is None else total.baddbmm_(maps, frames)


# The linear maps around the products: `_transform` to their factors, `_inverse` from them to y, and
# `_adjoint`, the transposes that gradients need.


def _transform_frames(x: Tensor) -> Tensor:
    """B^T d: from `(n, H, W, C)` to `(25, P, 4C)`."""
    tiles = _tiles(F.pad(x, (0, 0, 1, 1, 1, 1))).reshape(25, -1)
    return (B.to(x.dtype) @ tiles).view(25, -1, 4 * x.shape[3])


def _adjoint_frames(products: Tensor, out: Tensor) -> None:
    """Write the adjoint of `_transform_frames` of `(25, P, 4C)` into `(n, H, W, C)`."""
    n, h, w, c = out.shape
    padded = out.new_empty(n, h + 2, w + 2, c)
    padded[:, h:] = 0
    padded[:, :, w:] = 0
    tiles = _tiles(padded)
    given = (B.T.to(out.dtype) @ products.view(25, -1)).view(tiles.shape)
    inner, last = slice(0, 4), slice(4, 5)  # the last position of a tile is the next one's first
    tiles[inner, inner] = given[inner, inner]
    for rows, columns in ((inner, last), (last, inner), (last, last)):
        tiles[rows, columns] += given[rows, columns]
    out.copy_(padded[:, 1:-1, 1:-1])


def _tiles(padded: Tensor) -> Tensor:
    """View d of all tiles in `(n, H + 2, W + 2, C)`: `(5, 5, n, H / 8, W / 8, 2, 2, C)`.

    Row i of phase p of a tile begins at 2i + p, and a tile at every eighth row.
    """
    n, height, width, c = padded.shape
    frame, row, column, channel = padded.stride()
    return padded.as_strided(
        (5, 5, n, height // 8, width // 8, 2, 2, c),
        (2 * row, 2 * column, frame, 8 * row, 8 * column, row, column, channel),
    )


def _transform_maps(y: Tensor) -> Tensor:
    """A y: from `(n, H / 2, W / 2, O)` to `(25, P, O)`."""
    return (A.to(y.dtype) @ _map_tiles(y).reshape(16, -1)).view(25, -1, y.shape[3])


def _inverse_maps(products: Tensor, out: Tensor) -> None:
    """Write A^T m of `(25, P, O)` into `(n, H / 2, W / 2, O)`."""
    tiles = _map_tiles(out)
    tiles.copy_((A.T.to(out.dtype) @ products.view(25, -1)).view(tiles.shape))


def _map_tiles(y: Tensor) -> Tensor:
    """View y of all tiles in `(n, H / 2, W / 2, O)`: `(4, 4, n, H / 8, W / 8, O)`."""
    return y.unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).permute(2, 4, 0, 1, 3, 5)


def _transform_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """G g: from `(O, C, 4, 4)` to `(25, O, 4C)`, rounded to `dtype`."""
    kept = _TRANSFORMED.get(weight)
    if kept and kept[0].dtype == dtype:
        return kept[0]
    out, c = weight.shape[:2]
    taps = weight.view(out, c, 2, 2, 2, 2).permute(2, 4, 0, 3, 5, 1)  # row, column, O, p, q, C
    transformed = (G @ taps.reshape(4, -1)).view(25, out, 4 * c).to(dtype)
    if kept is not None:
        kept[:] = [transformed]
    return transformed


def _adjoint_weight(products: Tensor) -> Tensor:
    """The adjoint of `_transform_weight`, channels last: from `(25, O, 4C)` to `(O, C, 4, 4)`."""
    out, c = products.shape[1], products.shape[2] // 4
    taps = (G.T @ products.float().view(25, -1)).view(2, 2, out, 2, 2, c)
    gradient = taps.new_empty(out, 2, 2, 2, 2, c)  # O, row, p, column, q, C
    gradient.permute(1, 3, 0, 2, 4, 5).copy_(taps)
    return gradient.view(out, 4, 4, c).permute(0, 3, 1, 2)
