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
ROW = 1 << 15  # bytes of each of the 25 rows of a block of tiles: blocks stay in the cache
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
        weights, tiles = _transform_weight(weight, x.dtype), _transform_frames(_channels_last(x))
        ctx.save_for_backward(weights, tiles if keep else None)
        products = torch.bmm(tiles, weights.mT)
        return _inverse_maps(products, n, h // 2, w // 2).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, kept = ctx.saved_tensors
        n, _, h, w = grad.shape
        x, tiles = None, _transform_maps(_channels_last(grad))
        if ctx.needs_input_grad[0]:
            x = _adjoint_frames(torch.bmm(tiles, weights), n, 2 * h, 2 * w).permute(0, 3, 1, 2)
        of_weight = None if kept is None else _adjoint_weight(torch.bmm(tiles.mT, kept))
        return x, of_weight, None


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, weight: Tensor, keep: bool) -> Tensor:
        n, _, h, w = y.shape
        weights, tiles = _transform_weight(weight, y.dtype), _transform_maps(_channels_last(y))
        ctx.save_for_backward(weights, tiles if keep else None)
        return _adjoint_frames(torch.bmm(tiles, weights), n, 2 * h, 2 * w).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, kept = ctx.saved_tensors
        n, _, h, w = grad.shape
        y, tiles = None, _transform_frames(_channels_last(grad))
        if ctx.needs_input_grad[0]:
            products = torch.bmm(tiles, weights.mT)
            y = _inverse_maps(products, n, h // 2, w // 2).permute(0, 3, 1, 2)
        of_weight = None if kept is None else _adjoint_weight(torch.bmm(kept.mT, tiles))
        return y, of_weight, None


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


# The linear maps around the products: `_transform` to their factors, `_inverse` from them to y, and
# `_adjoint`, the transposes that gradients need. Each goes block by block, since a transformation
# of all tiles at once would wait for memory at every step.


def _blocks(x: Tensor) -> list[slice]:
    """Divide frames or maps `(n, ...)` into blocks."""
    n = len(x)
    step = max(1, 16 * ROW // x[0].nbytes)  # a row has one of 16 numbers
    return [slice(first, min(n, first + step)) for first in range(0, n, step)]


def _frame_blocks(x: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Go through frames `(n, H, W, C)`.

    Yields: a block; room for its frames, within a border of zeros; a view of their tiles d; room
    for these as a matrix. Room is the same for all blocks, and thus in the cache.
    """
    _, h, w, c = x.shape
    padded = x.new_empty(0)
    for frames in _blocks(x):
        count = frames.stop - frames.start
        if count != len(padded):
            padded = x.new_zeros(count, h + 2, w + 2, c)
            tiles = _tiles(padded)
            matrix = x.new_empty(25, tiles.numel() // 25)
        yield frames, padded, tiles, matrix


def _transform_frames(x: Tensor) -> Tensor:
    """B^T d: from `(n, H, W, C)` to `(25, P, 4C)`."""
    n, h, w, c = x.shape
    transformed = x.new_empty(25, n, h * w * c // 16)
    b = B.to(x.dtype)
    for frames, padded, tiles, matrix in _frame_blocks(x):
        padded[:, 1:-1, 1:-1] = x[frames]
        matrix.view(tiles.shape).copy_(tiles)
        torch.mm(b, matrix, out=transformed[:, frames].flatten(1))
    return transformed.view(25, -1, 4 * c)


def _adjoint_frames(products: Tensor, n: int, h: int, w: int) -> Tensor:
    """The adjoint of `_transform_frames`: from `(25, P, 4C)` to `(n, H, W, C)`."""
    x = products.new_empty(n, h, w, products.shape[2] // 4)
    products, b = products.view(25, n, -1), B.T.to(products.dtype)
    inner, last = slice(0, 4), slice(4, 5)  # the last position of a tile is the next one's first
    for frames, padded, tiles, matrix in _frame_blocks(x):
        given = torch.mm(b, products[:, frames].flatten(1), out=matrix).view(tiles.shape)
        padded[:, h:] = 0
        padded[:, :, w:] = 0
        tiles[inner, inner] = given[inner, inner]
        for rows, columns in ((inner, last), (last, inner), (last, last)):
            tiles[rows, columns] += given[rows, columns]
        x[frames] = padded[:, 1:-1, 1:-1]
    return x


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
    n, h, w, out = y.shape
    transformed = y.new_empty(25, n, h * w * out // 16)
    a = A.to(y.dtype)
    for maps in _blocks(y):
        tiles = _map_tiles(y[maps]).reshape(16, -1)
        torch.mm(a, tiles, out=transformed[:, maps].flatten(1))
    return transformed.view(25, -1, out)


def _inverse_maps(products: Tensor, n: int, h: int, w: int) -> Tensor:
    """A^T m: from `(25, P, O)` to `(n, H / 2, W / 2, O)`."""
    y = products.new_empty(n, h, w, products.shape[2])
    products, a = products.view(25, n, -1), A.T.to(products.dtype)
    for maps in _blocks(y):
        tiles = _map_tiles(y[maps])
        tiles.copy_((a @ products[:, maps].flatten(1)).view(tiles.shape))
    return y


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
