"""Layers and recurrent cells with the conventions of TensorFlow, for SV2P, SAVP and StructVRNN.

PyTorch's layers of the same name differ in padding, in the window of a transposed convolution, in
the epsilon of a norm and in the gates of an LSTM or GRU, and each difference shows in the frames.

Maps are `(B, C, H, W)`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, Tensor]  # of an LSTM: cell c and hidden h


class SameConv2d(nn.Conv2d):
    """A convolution with SAME padding: with a stride of 2, one row more below than above."""

    def __init__(self, channels: int, out: int, size: int, stride: int = 1, bias: bool = True):
        super().__init__(channels, out, size, stride, bias=bias)
        total = size - stride
        self.before, self.after = total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, O, H / stride, W / stride)`."""
        if self.before == self.after:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.before)
        return super().forward(F.pad(x, 2 * (self.before, self.after)))


class SameUpConv2d(nn.ConvTranspose2d):
    """A transposed 3x3 convolution with SAME padding: it doubles the resolution."""

    def __init__(self, channels: int, out: int, bias: bool = True):
        super().__init__(channels, out, 3, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, O, 2H, 2W)`: the last row and column are left out."""
        return super().forward(x)[..., :-1, :-1]


def layer_norm(channels: int) -> nn.GroupNorm:
    """Layer norm: statistics of a whole map, gain and bias per channel."""
    return nn.GroupNorm(1, channels, eps=1e-12)


def instance_norm(channels: int) -> nn.GroupNorm:
    """Instance norm: statistics per channel.

    The public code asks for an epsilon of 1e-6, which TensorFlow's kernel raises to this one.
    """
    return nn.GroupNorm(channels, channels, eps=1.001e-5)


def lstm_update(gates: Tensor, c: Tensor, norm: Callable[[Tensor], Tensor] = lambda c: c) -> State:
    """Advance an LSTM by one step; 1 is added to the forget gate.

    Args:
        gates: before their activations, in the order i, j, f, o along axis 1: `(B, 4n, ...)`.
        c: the cell `(B, n, ...)`.
        norm: of the new cell.
    """
    i, j, f, o = gates.chunk(4, dim=1)
    c = norm(c * (f + 1).sigmoid() + i.sigmoid() * j.tanh())
    return c, c.tanh() * o.sigmoid()


class ConvLSTM(nn.Module):
    """An LSTM whose products are 5x5 convolutions.

    Args:
        inputs: channels of the input.
        channels: of cell and hidden state, n.
        norm: of the gates and of the new cell, if any; the gates then have no bias.
    """

    def __init__(self, inputs: int, channels: int, norm: Callable[[int], nn.Module] | None = None):
        super().__init__()
        self.channels = channels
        self.gates = SameConv2d(inputs + channels, 4 * channels, 5, bias=norm is None)
        self.norm_gates = nn.Identity() if norm is None else norm(4 * channels)
        self.norm_cell = nn.Identity() if norm is None else norm(channels)

    def forward(self, x: Tensor, state: State | None) -> State:
        """Return the state `(B, n, H, W)` after an input `(B, inputs, H, W)`; it starts at 0."""
        if state is None:
            zeros = x.new_zeros(len(x), self.channels, *x.shape[2:])
            state = (zeros, zeros)
        c, h = state
        return lstm_update(self.norm_gates(self.gates(torch.cat([x, h], dim=1))), c, self.norm_cell)


class GRUCell(nn.Module):
    """The gated recurrent unit of Keras: sigmoids are hard, and the reset acts before its product.

    Rows of the weights belong to the update gate, then to the reset gate, then to the candidate.
    """

    def __init__(self, inputs: int, size: int):
        super().__init__()
        self.input = nn.Linear(inputs, 3 * size)
        self.recurrent = nn.Linear(size, 3 * size, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Move the state `(B, size)` by an input `(B, inputs)`."""
        sizes = [2 * h.shape[-1], h.shape[-1]]
        gates, candidate = self.input(x).float().split(sizes, dim=-1)
        to_gates, to_candidate = self.recurrent.weight.split(sizes)
        gates = (0.2 * (gates + F.linear(h, to_gates)) + 0.5).clamp(0, 1)
        update, reset = gates.chunk(2, dim=-1)
        candidate = (candidate + F.linear(reset * h, to_candidate)).tanh()
        return update * h + (1 - update) * candidate


def rows_first(x: Tensor) -> Tensor:
    """Flatten maps `(B, C, H, W)` in TensorFlow's order, by row, column and channel."""
    return x.permute(0, 2, 3, 1).flatten(1)


def tile(vector: Tensor, x: Tensor) -> Tensor:
    """Repeat a vector `(B, n)` at each pixel of a map `(B, C, H, W)`: `(B, n, H, W)`."""
    return vector[..., None, None].expand(-1, -1, *x.shape[2:])


def full_precision(x: Tensor) -> Tensor:
    """Return what a layer computed in mixed precision as float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def init_truncated_normal(weight: Tensor, std: float) -> Tensor:
    """Draw a weight from a normal distribution that is cut at two standard deviations, in place."""
    return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)
