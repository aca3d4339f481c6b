"""The authors' code, imported from a checkout of it and called as its training program does."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from srvp.experiment import Experiment


def add_to_path(checkout: Path) -> None:
    """Make the modules of a checkout importable."""
    if not (checkout / "module" / "srvp.py").is_file():
        raise SystemExit(f"{checkout} is no checkout of the authors' code: no module/srvp.py")
    sys.path.insert(0, str(checkout))
    sys.modules["args"] = types.ModuleType("args")  # reads the command line with another package


def batches(
    experiment: Experiment, digits: np.ndarray, batch_size: int, workers: int, pin: bool
) -> Iterator[Tensor]:
    """Yield their training batches of Moving MNIST without end, `(T, B, 1, 64, 64)`."""
    from data.base import collate_fn
    from data.mmnist import MovingMNIST

    deterministic = experiment.data.dataset == "dmmnist"
    videos = MovingMNIST(digits, 64, experiment.training.frames, 4, deterministic, 2, True)
    loader = DataLoader(
        videos,
        batch_size=batch_size,
        collate_fn=collate_fn,
        num_workers=workers,
        shuffle=True,
        drop_last=True,
        pin_memory=pin,
    )
    while True:
        yield from loader


class Training:
    """Their model, optimiser and training step, in their mixed precision on a GPU."""

    def __init__(self, experiment: Experiment, device: torch.device):
        import train
        from helper import DotDict
        from module.srvp import StochasticLatentResidualVideoPredictor

        c = experiment.model
        self.step_function, self.device = train.train, device
        self.model = StochasticLatentResidualVideoPredictor(
            64,
            experiment.data.channels,
            *(c.nf, c.nhx, c.ny, c.nz, c.skip_connections, c.inference_frames),
            *(c.nh_inf, c.nlayers_inf, c.nh_res, c.nlayers_res, c.architecture),
        )
        self.model.init(res_gain=c.res_gain)
        self.model.to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=experiment.training.lr)
        self.mixed = device.type == "cuda"
        self.scaler = torch.amp.GradScaler() if self.mixed else None
        self.options = DotDict(
            n_euler_steps=c.euler_steps,
            obs_scale=c.obs_scale,
            beta_y=c.beta_y,
            beta_z=c.beta_z,
            l2_res=c.l2_res,
            torch_amp=self.mixed,
        )
        torch.backends.cudnn.benchmark = True

    def step(self, batch: Tensor) -> None:
        """Take one optimisation step."""
        with torch.autocast(self.device.type, torch.float16, enabled=self.mixed):
            self.step_function(
                self.model, self.optimizer, self.scaler, batch, self.device, self.options
            )
