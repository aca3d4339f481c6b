"""The convolutions of DCGAN, with fewer multiplications on a CPU: 4x4, stride 2, padding 1.

One stride-2 convolution is a stride-1 convolution by 2x2 of the frame's four phases (even or odd
row, even or odd column). Along one axis, two neighbouring outputs of filter (g0, g1) on
(d0, d1, d2) are, with three multiplications instead of four (Winograd's F(2, 2)):

    m0 = (d0 - d1) g0      m1 = d1 (g0 + g1)      m2 = (d2 - d1) g1
    y0 = d0 g0 + d1 g1 = m0 + m1
    y1 = d1 g0 + d2 g1 = m1 + m2

On both axes that makes nine products for four outputs instead of sixteen. Each product, over all
positions and channels, is one matrix multiplication. The transposed convolution and the gradients
are the adjoints of the same three maps. Nothing but sums and differences surrounds the products,
so that results agree with the direct convolution to float32 rounding.

Modules here have the parameters of PyTorch's, by name and shape, and its result. Anything but
float32 on a CPU, and narrow layers, for which the sums would cost more than they save, is left to
PyTorch.

Shapes: N frames; frames side x (N, H, W, C), maps side y (N, H / 2, W / 2, O); channels last. A
tile is 2x2 positions of y, and the 6x6 positions of x that they see; there are P of them in all.
Phases p, q and channels C together are one axis of 4C.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

NARROW = 128  # channels on either side below which PyTorch's own convolution is as fast
TILES_AT_ONCE = 480  # so many tiles, transformed, stay in the processor's cache


class DownConv(nn.Conv2d):
    """A 4x4 convolution that halves the resolution."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, H, W)` to `(N, O, H / 2, W / 2)`."""
        if not _pays(x, self.weight):
            return super().forward(x)
        return _add_bias(_Down.apply(x, self.weight), self.bias)


class UpConv(nn.ConvTranspose2d):
    """A transposed 4x4 convolution that doubles the resolution."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, O, H, W)` to `(N, C, 2H, 2W)`."""
        if not _pays(x, self.weight):
            return super().forward(x)
        return _add_bias(_Up.apply(x, self.weight), self.bias)


class ToVector(nn.Conv2d):
    """A 4x4 convolution of a 4x4 map: a linear map, computed as one."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 1, 0, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, 4, 4)` to `(N, O, 1, 1)`."""
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, self.bias)[..., None, None]


class FromVector(nn.ConvTranspose2d):
    """A transposed 4x4 convolution of a 1x1 map: a linear map, computed as one."""

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 1, 0, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, O, 1, 1)` to `(N, C, 4, 4)`."""
        weight = self.weight.permute(0, 2, 3, 1)  # (O, 4, 4, C)
        y = (x.flatten(1) @ weight.flatten(1)).unflatten(1, weight.shape[1:])
        return _add_bias(y.permute(0, 3, 1, 2), self.bias)


class UpToImage(nn.ConvTranspose2d):
    """A transposed 4x4 convolution that doubles the resolution, to one or three channels.

    So few channels leave a convolution's inner loops nearly empty. Here every pixel's 4x4 patch is
    one row of a matrix product; overlapping patches are then added up.
    """

    def __init__(self, channels: int, out: int, bias: bool = False):
        super().__init__(channels, out, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, O, H, W)` to `(N, C, 2H, 2W)`."""
        if not _pays(x, self.weight, image=True):
            return super().forward(x)
        h, w = x.shape[2:]
        patches = x.permute(0, 2, 3, 1).flatten(1, 2) @ self.weight.flatten(1)  # (N, H W, C 4 4)
        image = F.fold(patches.transpose(1, 2), (2 * h, 2 * w), 4, padding=1, stride=2)
        return _add_bias(image, self.bias)


def _pays(x: Tensor, weight: Tensor, image: bool = False) -> bool:
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.dtype != torch.float32:
        return False
    if image:
        return weight.shape[0] >= NARROW // 2
    return min(weight.shape[:2]) >= NARROW and x.shape[2] % 4 == x.shape[3] % 4 == 0


def _add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias[:, None, None]


# The two convolutions and their gradients.


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _down(x, _transform_weight(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        return (
            _up(grad, _transform_weight(weight)) if need_x else None,
            _weight_gradient(x, grad) if need_weight else None,
        )


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(y, weight)
        return _up(y, _transform_weight(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        y, weight = ctx.saved_tensors
        need_y, need_weight = ctx.needs_input_grad
        return (
            _down(grad, _transform_weight(weight)) if need_y else None,
            _weight_gradient(grad, y) if need_weight else None,
        )


def _down(x: Tensor, weights: Tensor) -> Tensor:
    """The convolution, with transformed weights `(9, O, 4C)`."""
    n, _, h, w = x.shape
    y = x.new_empty(n, h // 2, w // 2, weights.shape[1])
    for part, out in _chunks(_channels_last(x), y):
        products = torch.bmm(_transform_frames(part), weights.transpose(1, 2))
        _inverse_maps(products, out)
    return y.permute(0, 3, 1, 2)


def _up(y: Tensor, weights: Tensor) -> Tensor:
    """Its adjoint: the transposed convolution."""
    n, _, h, w = y.shape
    x = y.new_empty(n, 2 * h, 2 * w, weights.shape[2] // 4)
    for out, part in _chunks(x, _channels_last(y)):
        _adjoint_frames(torch.bmm(_transform_maps(part), weights), out)
    return x.permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, y: Tensor) -> Tensor:
    """The gradient `(O, C, 4, 4)` of <conv(x), y> with respect to the weight."""
    gradient = x.new_zeros(9, y.shape[1], 4 * x.shape[1])
    for frames, maps in _chunks(_channels_last(x), _channels_last(y)):
        gradient.baddbmm_(_transform_maps(maps).transpose(1, 2), _transform_frames(frames))
    return _adjoint_weight(gradient)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _chunks(x: Tensor, y: Tensor) -> zip:
    frames = max(1, TILES_AT_ONCE * 4 // (y.shape[1] * y.shape[2]))
    return zip(x.split(frames), y.split(frames), strict=True)


# The linear maps around the products: `_transform` to the factors of m, `_inverse` from m to y, and
# `_adjoint`, the transposes that gradients need. k, l = 0, 1, 2 number the products of either axis.


def _transform_frames(x: Tensor) -> Tensor:
    """(d0 - d1, d1, d2 - d1) on both axes: from `(n, H, W, C)` to `(9, P, 4C)`."""
    n, h, w, c = x.shape
    d0, d1, d2 = _windows(F.pad(x, (0, 0, 1, 1, 1, 1)), dim=1)  # (n, H / 4, p, W + 2, C)
    rows = x.new_empty(3, *d0.shape)
    torch.sub(d0, d1, out=rows[0])
    rows[1] = d1
    torch.sub(d2, d1, out=rows[2])
    d0, d1, d2 = _windows(rows, dim=4)  # (k, n, H / 4, p, W / 4, q, C)
    tiles = x.new_empty(3, 3, n, h // 4, w // 4, 2, 2, c)  # k, l, n, H / 4, W / 4, p, q, C
    columns = tiles.permute(1, 0, 2, 3, 5, 4, 6, 7)  # l, k, n, H / 4, p, W / 4, q, C
    torch.sub(d0, d1, out=columns[0])
    columns[1] = d1
    torch.sub(d2, d1, out=columns[2])
    return tiles.view(9, -1, 4 * c)


def _adjoint_frames(products: Tensor, out: Tensor) -> None:
    """Write the adjoint of `_transform_frames` of `(9, P, 4C)` into `(n, H, W, C)`."""
    n, h, w, c = out.shape
    columns = products.view(3, 3, n, h // 4, w // 4, 2, 2, c).permute(1, 0, 2, 3, 5, 4, 6, 7)
    rows = products.new_empty(3, n, h // 4, 2, w + 2, c)
    _add_windows(columns, rows, dim=4)
    padded = products.new_empty(n, h + 2, w + 2, c)
    _add_windows(rows, padded, dim=1)
    out.copy_(padded[:, 1:-1, 1:-1])


def _windows(x: Tensor, dim: int) -> list[Tensor]:
    """Split an axis of 4t + 2 positions into t tiles: views d0, d1, d2 `(..., t, 2, ...)`.

    Tile i of d_j begins at position 4i + 2j, so that d2 of a tile is d0 of the next.
    """
    stride = x.stride(dim)
    sizes, strides = list(x.shape), list(x.stride())
    sizes[dim : dim + 1] = [(x.shape[dim] - 2) // 4, 2]
    strides[dim : dim + 1] = [4 * stride, stride]
    return [x.as_strided(sizes, strides, x.storage_offset() + 2 * j * stride) for j in range(3)]


def _add_windows(m: Tensor, out: Tensor, dim: int) -> None:
    """Write the adjoint of (d0 - d1, d1, d2 - d1) of the windows along `dim` into `out`."""
    d0, d1, d2 = _windows(out, dim)
    torch.sub(m[1], m[0], out=d1)
    d1.sub_(m[2])
    d0.copy_(m[0])
    tiles = d0.shape[dim]
    d0.narrow(dim, 1, tiles - 1).add_(m[2].narrow(dim, 0, tiles - 1))
    d2.narrow(dim, tiles - 1, 1).copy_(m[2].narrow(dim, tiles - 1, 1))


def _transform_maps(y: Tensor) -> Tensor:
    """(y0, y0 + y1, y1) on both axes: from `(n, H / 2, W / 2, O)` to `(9, P, O)`."""
    n, h, w, channels = y.shape
    y = y.view(n, h // 2, 2, w // 2, 2, channels).permute(2, 4, 0, 1, 3, 5)
    m = y.new_empty(3, 3, *y.shape[2:])
    m[::2, ::2] = y
    torch.add(m[::2, 0], m[::2, 2], out=m[::2, 1])
    torch.add(m[0], m[2], out=m[1])
    return m.view(9, -1, channels)


def _inverse_maps(products: Tensor, out: Tensor) -> None:
    """Write (m0 + m1, m1 + m2) on both axes of `(9, P, O)` into `(n, H / 2, W / 2, O)`."""
    n, h, w, channels = out.shape
    m = products.view(3, 3, n, h // 2, w // 2, channels)
    rows = m[:2] + m[1:]
    y = out.view(n, h // 2, 2, w // 2, 2, channels).permute(2, 4, 0, 1, 3, 5)
    torch.add(rows[:, :2], rows[:, 1:], out=y)


def _transform_weight(weight: Tensor) -> Tensor:
    """(g0, g0 + g1, g1) on both axes: from `(O, C, 4, 4)` to `(9, O, 4C)`."""
    out, c = weight.shape[:2]
    g = weight.view(out, c, 2, 2, 2, 2).permute(2, 4, 0, 3, 5, 1)  # row, column, O, p, q, C
    m = weight.new_empty(3, 3, out, 2, 2, c)
    m[::2, ::2] = g
    torch.add(m[::2, 0], m[::2, 2], out=m[::2, 1])
    torch.add(m[0], m[2], out=m[1])
    return m.view(9, out, 4 * c)


def _adjoint_weight(products: Tensor) -> Tensor:
    """The adjoint of `_transform_weight`, channels last: from `(9, O, 4C)` to `(O, C, 4, 4)`."""
    m = products.view(3, 3, products.shape[1], 2, 2, -1)
    rows = m[:2] + m[1:]
    out, c = m.shape[2], m.shape[-1]
    gradient = products.new_empty(out, 2, 2, 2, 2, c)  # O, row, p, column, q, C
    torch.add(rows[:, :2], rows[:, 1:], out=gradient.permute(1, 3, 0, 2, 4, 5))
    return gradient.view(out, 4, 4, c).permute(0, 3, 1, 2)
