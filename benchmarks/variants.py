"""Changes that no option of `params.yaml` has: a study's setting names one as `variant`.

Each function here takes an experiment and returns a context, in which models are built, trained and
scored with the change. `soap` needs `pip install pytorch-optimizer==4.1.0`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor, nn

from srvp.data.sets.moving_digits import MovingMNIST
from srvp.experiment import Experiment, TrainingConfig
from srvp.models.interface import Clips, VideoShape
from srvp.models.parts import networks
from srvp.training import run

SHORT = 8  # frames of the first half of the steps
CHEAP = 0.1  # part of the price of a nat that a training begins with


def muon(experiment: Experiment) -> AbstractContextManager:
    """Muon for hidden weights, Adam for the others, at one learning rate."""
    return patch.object(run, "build_optimizers", lambda *given: {"model": MuonAndAdam(*given)})


class MuonAndAdam(torch.optim.Optimizer):
    """`torch.optim.Muon`, which takes matrices alone, for weights of convolutions too."""

    def __init__(self, model: nn.Module, config: TrainingConfig):
        super().__init__(model.parameters(), {"lr": config.lr})
        self.hidden = list(hidden_weights(model))
        matrices = [as_matrix(*weight) for weight in self.hidden]
        hidden = {id(weight) for weight, _ in self.hidden}
        others = [p for p in model.parameters() if id(p) not in hidden]
        scaled = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        self.muon = torch.optim.Muon(matrices, lr=config.lr, **scaled)
        self.adam = torch.optim.Adam(others, lr=config.lr, betas=config.betas, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of both; a weight without a gradient stays as it is."""
        matrices = self.muon.param_groups[0]["params"]
        for (weight, transposed), matrix in zip(self.hidden, matrices, strict=True):
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad, transposed)
        for optimizer in (self.muon, self.adam):
            optimizer.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            optimizer.step()


def hidden_weights(model: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Yield weights but for those at images and outputs, and whether they are transposed."""
    ends = {model.q_z, model.q_y[-1], model.p_z[-1]}
    for layer in model.modules():
        convolves = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        at_image = isinstance(layer, networks.UpToImage) or (
            convolves and layer.in_channels == model.shape.channels
        )
        if (convolves or isinstance(layer, nn.Linear)) and not at_image and layer not in ends:
            yield layer.weight, isinstance(layer, networks.UpConv)


def as_matrix(weight: Tensor, transposed: bool) -> Tensor:
    """Return a weight as a matrix of what each output is made of, or its transpose."""
    if weight.ndim == 2:
        return weight.detach()
    last = weight.detach().permute(0, 2, 3, 1)  # the order in memory: no copy, for a parameter
    return last.flatten(0, 2) if transposed else last.flatten(1)


def soap(experiment: Experiment) -> AbstractContextManager:
    """SOAP for all weights, at the betas and the frequency of its paper."""
    from pytorch_optimizer import SOAP

    def build(model: nn.Module, config: TrainingConfig) -> dict[str, torch.optim.Optimizer]:
        return {"model": SOAP(model.parameters(), lr=config.lr, weight_decay=0.0)}

    return patch.object(run, "build_optimizers", build)


def rising_price(experiment: Experiment) -> AbstractContextManager:
    """In the first half of the steps a nat's price rises, by equal factors, from a tenth."""
    config, update = experiment.model, run.Run.update

    def update_at_its_price(self: run.Run, clips: Clips) -> None:
        rest = max(0.0, 1 - (self.step + 1) / (0.5 * self.config.steps))
        price = {key: getattr(config, key) * CHEAP**rest for key in ("beta_y", "beta_z")}
        self.model.config = replace(config, **price)
        update(self, clips)

    return patch.object(run.Run, "update", update_at_its_price)


@contextmanager
def short_first(experiment: Experiment) -> Iterator[None]:
    """Half of the steps see sequences of 8 frames, as many frames in all."""
    batches, half = MovingMNIST.batches, experiment.training.steps // 2

    def changing(
        self: MovingMNIST, count: int, frames: int, seed: int, first: int = 0
    ) -> Iterator[Clips]:
        short = batches(self, count * frames // SHORT, SHORT, seed, first)
        for _ in range(first, half):
            yield next(short)
        yield from batches(self, count, frames, seed, max(first, half))

    with patch.object(MovingMNIST, "batches", changing):
        yield


@contextmanager
def coordinates(experiment: Experiment) -> Iterator[None]:
    """Two channels of coordinates for the encoder's first layer and the decoder's first two."""

    def encoder(shape: VideoShape, nf: int, nhx: int) -> nn.Module:
        wider = shape._replace(channels=shape.channels + 2)
        return Coordinates(networks.dcgan_encoder(wider, nf, nhx))

    def decoder(shape: VideoShape, nf: int, n: int, skip: bool) -> nn.Module:
        decoder = networks.dcgan_decoder(shape, nf, n, skip)
        for i, stage in enumerate(decoder.stages[:-1][:2]):
            conv = stage[0]
            wider = networks.conv_up(conv.in_channels + 2, conv.out_channels)
            decoder.stages[i] = Coordinates(wider)
        return decoder

    with ExitStack() as stack:
        stack.enter_context(patch.dict(networks.ENCODERS, dcgan=encoder))
        stack.enter_context(patch.dict(networks.DECODERS, dcgan=decoder))
        yield


class Coordinates(nn.Module):
    """A module that is told, as two more channels, where its input's positions are."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, C, H, H)` joined by rows and columns from -1 to 1."""
        line = torch.linspace(-1, 1, x.shape[-1])
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"))
        return self.module(torch.cat([x, grid.expand(len(x), -1, -1, -1)], dim=1))


VARIANTS: dict[str, Callable[[Experiment], AbstractContextManager]] = {
    "muon": muon,
    "soap": soap,
    "rising_price": rising_price,
    "short_first": short_first,
    "coordinates": coordinates,
}
