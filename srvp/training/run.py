"""The state of a training run, and its steps.

One step, for every model: draw the randomness, then for each objective in order take the gradients
of its loss and let the optimizers of its parameter groups move them.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srvp.data import VideoSource
from srvp.devices import autocast
from srvp.experiment import Experiment, TrainingConfig, to_entry
from srvp.files import atomic_write, project_root
from srvp.models.interface import VideoModel
from srvp.store import build_model, load_model
from srvp.training import distributed
from srvp.training.capture import Captured
from srvp.training.validation import validation_scores

GPU_CLIPS_AT_ONCE = 4  # in validation: launching the kernels of one takes longer than they do
Row = dict[str, float]  # of the training curves: the step and what was measured there


def rate_factor(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of optimisation step 1, 2, ... as a share of `lr`.

    It rises linearly in the first `warmup_steps`, is constant until `constant_steps`, and falls as
    `decay` says in the `decay_steps` that follow.
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps
    decayed = max(step - config.constant_steps, 0) // config.decay_interval * config.decay_interval
    if decayed == 0:
        return 1.0
    progress, final = decayed / config.decay_steps, config.final_lr
    if config.decay == "exponential":
        return final**progress
    if config.decay == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    return 1 - (1 - final) * progress


class Run:
    """The whole state of a training run: what a checkpoint holds.

    Args:
        experiment: what to train.
        device: where.

    Raises:
        ValueError: `training` names a parameter group that the model has not.
    """

    PROGRESS = ("step", "history", "sums", "counts", "best")

    def __init__(self, experiment: Experiment, device: torch.device):
        self.experiment = experiment
        self.config = experiment.training
        self.device = device
        self.in_group = distributed.is_group()
        model = build_model(experiment.model, experiment.shape, self.config.seed)
        # Convolutions are faster this way, on a CPU as on a GPU.
        model.to(device, memory_format=torch.channels_last)
        if self.config.init_from:
            initialise(model, project_root() / self.config.init_from)
        self.model: VideoModel = distributed.synchronise_batch_norm(model, device)
        self.loss = self.model.loss
        self.captured: dict[tuple, Captured] | None = None  # by objective: CUDA graphs, on a GPU
        self._prepare_device()
        self.average = copy.deepcopy(self.model) if self.config.ema else None
        self.optimizers = build_optimizers(self.model, self.config)
        self.generator = torch.Generator(device).manual_seed(self.config.seed)
        self.step = 0
        self.history: list[Row] = []  # the curves so far
        self.sums: dict[str, Tensor] = {}  # of the loss terms since the last row
        self.counts: dict[str, int] = {}  # steps that each sum is over
        self.best: dict[str, Any] | None = None  # if selected: psnr and weights of the best so far

    def _prepare_device(self) -> None:
        on_gpu = self.device.type == "cuda"
        torch.backends.cudnn.benchmark = on_gpu  # all steps have the same shapes
        if self.config.compile is True or (self.config.compile == "auto" and on_gpu):
            self.loss = torch.compile(self.model.loss)
            if on_gpu and distributed.world_size() == 1:  # messages stay out of a graph
                self.captured = {}

    @property
    def result(self) -> VideoModel:
        """The model to validate and to keep: with `ema`, the moving average."""
        return self.model if self.average is None else self.average

    def update(self, clips: NamedTuple) -> None:
        """Take one optimisation step on clips, prepared or not, without waiting for it.

        Each of several processes is given the same clips and takes its share of the work.
        """
        self.step += 1
        count, frames = clips.frames.shape[:2]
        randomness = self.model.draw_randomness(count, frames, self.step, self.generator)
        if self.in_group:
            clips, randomness = distributed.shard(clips), distributed.shard(randomness)
        for objective, groups in self.model.objectives(self.step).items():
            terms = self._gradients_of(objective, groups)(clips, randomness)
            self._move(groups)
            self._add_to_sums(objective, terms)
        if self.average is not None:
            self._average_weights()

    def _gradients_of(self, objective: str, groups: tuple[str, ...]):
        """Return the function that leaves the gradients of an objective in its parameters."""

        def gradients(clips: NamedTuple, randomness: NamedTuple) -> NamedTuple:
            for group in groups:
                self.optimizers[group].zero_grad()
            with autocast(self.config.precision, self.device):
                loss = self.loss(clips, randomness, objective)
            loss.total.backward(inputs=self._parameters(groups))
            return type(loss)(*(term.detach() for term in loss))

        if self.captured is None:
            return gradients
        key = (objective, groups)
        if key not in self.captured:
            self.captured[key] = Captured(gradients, self.model)
        return self.captured[key]

    def _parameters(self, groups: tuple[str, ...]) -> list[nn.Parameter]:
        optimizers = (self.optimizers[group] for group in groups)
        return [p for optimizer in optimizers for p in optimizer.param_groups[0]["params"]]

    def _move(self, groups: tuple[str, ...]) -> None:
        """Let the optimizers of some groups take their step."""
        moved = self._parameters(groups)
        if self.in_group:
            distributed.average_gradients(moved)
        if self.config.clip_norm is not None:
            for together in moved if self.config.clip_each else [moved]:
                nn.utils.clip_grad_norm_(together, self.config.clip_norm)
        factor = rate_factor(self.config, self.step)
        for group in groups:
            optimizer = self.optimizers[group]
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * factor
            optimizer.step()

    def _add_to_sums(self, objective: str, terms: NamedTuple) -> None:
        prefix = "" if objective == "loss" else f"{objective}_"
        for term, value in terms._asdict().items():
            name = prefix + term
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def _average_weights(self) -> None:
        """Move the average 1 - `ema` of the way to the weights, further in the first steps.

        The statistics of batch norm are averaged as the weights are: both are those of the last
        1 / (1 - `ema`) steps or so.
        """
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        averaged, last = self.average.state_dict(), self.model.state_dict()
        moving = [name for name, value in last.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[n] for n in moving], [last[n] for n in moving], 1 - decay)

    def close_row(self) -> Row:
        """Append the mean of the loss terms since the last row to the curves.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        row = {"step": self.step, "lr": self.config.lr * rate_factor(self.config, self.step)}
        row |= self._mean_terms()
        self.sums, self.counts = {}, {}
        self.history.append(row)
        return row

    def _mean_terms(self) -> Row:
        """Return the mean of the loss terms since the last row; the loss must be finite."""
        if not self.sums:
            return {}
        sums = distributed.mean(torch.stack(list(self.sums.values()))).tolist()
        means = {n: value / self.counts[n] for n, value in zip(self.sums, sums, strict=True)}
        for name, value in means.items():
            if name.endswith("total"):
                self._check_finite(value, f"the loss ({name})")
        return means

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{what} is {value} at step {self.step}: lower training.lr; the last checkpoint is "
                "kept"
            )

    def validate(self, source: VideoSource) -> Row:
        """Append the validation scores to the curves; keep the best weights if selected."""
        at_once = 1 if self.device.type == "cpu" else GPU_CLIPS_AT_ONCE
        scores = validation_scores(self.result, source, self.experiment, self.device, at_once)
        value = scores["validation_psnr"]
        if self.config.select_best and (self.best is None or value > self.best["psnr"]):
            weights = {k: v.cpu().clone() for k, v in self.result.state_dict().items()}
            self.best = {"psnr": value, "weights": weights}
        row = {"step": self.step, **scores}
        self.history.append(row)
        return row

    # Checkpoints.

    def save(self, path: Path) -> None:
        """Write the checkpoint, atomically.

        Raises:
            FloatingPointError: a loss or a weight is not finite; the last checkpoint is kept.
        """
        self._mean_terms()
        # A finite loss can have gradients that are not, and the next loss would tell too late.
        sums = {name: weights.detach().sum() for name, weights in self.model.named_parameters()}
        for name, value in zip(sums, torch.stack(list(sums.values())).tolist(), strict=True):
            self._check_finite(value, f"the sum of the weights {name}")
        self.sums = {name: distributed.mean(value) for name, value in self.sums.items()}
        if distributed.rank() > 0:
            return
        state = {
            "experiment": json.dumps(to_entry(self.experiment)),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "generator": self.generator.get_state(),
            **{name: getattr(self, name) for name in self.PROGRESS},
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the content of a checkpoint of the same data, model and training."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.generator.set_state(state["generator"].cpu())
        for name in self.PROGRESS:
            setattr(self, name, state[name])


def build_optimizers(model: VideoModel, config: TrainingConfig) -> dict[str, torch.optim.Adam]:
    """Return an Adam for each of a model's parameter groups.

    Raises:
        ValueError: `training.optimizers` names a group that the model has not.
    """
    groups = model.parameter_groups()
    if unknown := config.optimizers.keys() - groups.keys():
        raise ValueError(
            f"training.optimizers names {sorted(unknown)}, but the model's parameter groups are "
            f"{sorted(groups)}"
        )
    optimizers = {}
    for name, parameters in groups.items():
        own = config.optimizers.get(name)
        lr = own.lr if own and own.lr is not None else config.lr
        betas = own.betas if own and own.betas is not None else config.betas
        optimizers[name] = torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)
    return optimizers


def initialise(model: VideoModel, path: Path) -> None:
    """Take over the weights of a model file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no model file, or its model has other weights.
    """
    weights = load_model(path)[0].state_dict()
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        shapes = [tuple(w[name].shape) if name in w else "missing" for w in (weights, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"training.init_from: {path} has {name} {shapes[0]}, this model {shapes[1]}: "
                "choose a file of a model of the same settings"
            )
    model.load_state_dict(weights)
