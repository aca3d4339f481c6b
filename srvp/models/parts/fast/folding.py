"""Batch norm as part of the convolution before it, where a CPU evaluates a trained model.

Without gradients and with running statistics, batch norm scales and shifts every channel: so do
other weights and a bias of the convolution. Results differ by rounding (3e-7 of the largest).
"""

import torch
from torch import Tensor, nn

from srvp.models.parts.fast import winograd


class FoldedBlock(nn.Sequential):
    """A convolution, batch norm and an activation."""

    _folded: tuple[list, Tensor, Tensor] | None = None  # made from what; weight and bias

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, H, W)`."""
        conv, norm, activation = self
        folds = not (norm.training or torch.is_grad_enabled())
        if not folds or x.device.type != "cpu":
            # Fused optimizers and batch norm change their tensors without counting a version.
            self._folded = None
            return super().forward(x)
        return activation(conv._conv_forward(x, *self._fold(conv, norm)))

    def _fold(self, conv: nn.Module, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        """Return weight and bias with the normalisation in them; made once, while they last."""
        parts = [conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean]
        parts = [part for part in (*parts, norm.running_var) if part is not None]
        # Parts are kept, so that no other tensor can have their address. Inference tensors count no
        # versions: whatever is made of them is made anew.
        kept = [(part.detach(), None if part.is_inference() else part._version) for part in parts]
        if self._folded is not None and _same(self._folded[0], kept):
            return self._folded[1:]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        outputs = (1, -1, 1, 1) if conv.transposed else (-1, 1, 1, 1)
        weight = conv.weight * scale.view(outputs)
        bias = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            bias = bias + conv.bias * scale
        winograd.keep_transformed(weight)
        self._folded = kept, weight, bias
        return weight, bias


def _same(before: list[tuple[Tensor, int | None]], now: list[tuple[Tensor, int | None]]) -> bool:
    return all(
        a.data_ptr() == b.data_ptr() and a_version == b_version is not None
        for (a, a_version), (b, b_version) in zip(before, now, strict=True)
    )
