"""The paper's ablations of SRVP's transition: an MLP or a GRU in place of the residual update.

The paper leaves the size of the MLP open; it is that of f.
"""

import torch
from torch import Tensor, nn


class MLPTransition(nn.Module):
    """y_{t+1} = f(y_t, z_{t+1}): without the identity of the residual update."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """As `ResidualTransition`, in one step and without residuals."""
        return _one_step(self.f(torch.cat([y, z], dim=-1)))


class GRUTransition(nn.Module):
    """y_{t+1} = GRU(y_t, z_{t+1}): a gated cell, y its hidden state."""

    def __init__(self, ny: int, nz: int):
        super().__init__()
        self.cell = nn.GRUCell(nz, ny)

    def forward(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """As `ResidualTransition`, in one step and without residuals."""
        return _one_step(self.cell(z, y))


def _one_step(y: Tensor) -> tuple[Tensor, Tensor]:
    return y[:, None], y.new_empty(len(y), 0, y.shape[-1])
