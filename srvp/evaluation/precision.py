"""In which precision models are sampled and I3D is computed: `evaluation.precision`.

Only the decoders of SRVP and SVG, which are nearly all of the work, change with it. States stay
float32: errors would grow from frame to frame. A score of a clip then moves by 0.002 dB or 0.00005
in SSIM (root mean square; the full-size model of Moving MNIST on 24 clips).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from srvp.devices import autocast, pick_precision
from srvp.experiment import Experiment
from srvp.models.parts.networks import Decoder


def settled(experiment: Experiment, device: torch.device) -> Experiment:
    """Return an experiment with the precision that `auto` is on a device, for its protocol."""
    config = experiment.evaluation
    config = replace(config, precision=pick_precision(config.precision, device))
    return replace(experiment, evaluation=config)


@contextmanager
def decoding_in(model: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Let a model's decoders compute in a precision; all else stays as it is."""
    decoders = [module for module in model.modules() if isinstance(module, Decoder)]
    for decoder in decoders:
        decoder.forward = _cast(decoder.forward, precision, device)
    try:
        yield
    finally:
        for decoder in decoders:
            del decoder.forward  # that of the class


def _cast(
    forward: Callable[..., Tensor], precision: str, device: torch.device
) -> Callable[..., Tensor]:
    def decode(*inputs: Tensor | list[Tensor] | None) -> Tensor:
        with autocast(precision, device):
            return forward(*inputs)

    return decode
