"""Training: one loop for every model, resumed exactly where it was cut off.

The loop knows a model by its interface alone: `draw` (the randomness of a step) and `loss` (its
terms, `total` first) to train; `condition`, `draw_noise` and `predict` to validate.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from srvp.config import (
    MODELS,
    ConfigError,
    Experiment,
    ModelConfig,
    TrainingConfig,
    from_entry,
    to_entry,
)
from srvp.data import TrainingVideos, VideoSource
from srvp.files import atomic_write, repository_root
from srvp.metrics.frames import psnr
from srvp.training import distributed
from srvp.training.capture import Captured

MODEL_FILE = "model.safetensors"
CURVES_FILE = "training.csv"
CHECKPOINT_FILE = "checkpoint.pt"
LOG_POINTS = 400  # rows of loss terms in the curves of a run, at most
GPU_VIDEOS_AT_ONCE = 4  # in validation: launching the kernels of one takes longer than they do
CLOCK_INTERVAL = 10  # steps between two looks at the clock of a run that is bounded by minutes
Row = dict[str, float]  # of the training curves: the step and what was measured there


def build_model(config: ModelConfig, channels: int, seed: int) -> nn.Module:
    """Build the registered model that `config` belongs to, its weights drawn from `seed`."""
    build = next(entry.build for entry in MODELS.values() if entry.config is type(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(config, channels)


def pick_device(name: str) -> torch.device:
    """Return the device that `name` asks for; `auto` is an accelerator if there is one.

    Raises:
        ValueError: the device is not there. Nothing trains silently on the CPU instead.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    if name != "cpu" and (accelerator is None or accelerator.type != name):
        found = f"only {accelerator.type} and the CPU are" if accelerator else "only the CPU is"
        raise ValueError(f"training.device is {name!r}, but {found} available: write auto or cpu")
    return torch.device(name)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate of optimisation step 1, 2, ...: constant, then linear, 0 at the last one.

    In the first `warmup_steps`, of the constant ones, it rises linearly.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    decayed = max(step - config.constant_steps, 0)
    return config.lr * (1 - decayed / config.decay_steps if decayed else 1)


class Run:
    """The whole state of a training run: what a checkpoint holds.

    Args:
        experiment: what to train.
        device: where.
    """

    PROGRESS = ("step", "history", "sums", "summed", "best")

    def __init__(self, experiment: Experiment, device: torch.device):
        self.experiment = experiment
        self.config = experiment.training
        self.model = build_model(experiment.model, experiment.data.channels, self.config.seed)
        # Convolutions are faster this way, on a CPU as on a GPU.
        self.model.to(device, memory_format=torch.channels_last)
        if self.config.init_from:
            initialise(self.model, repository_root() / self.config.init_from)
        distributed.synchronise_batch_norm(self.model)
        self.loss, self.gradients = self.model.loss, self._gradients
        on_gpu = device.type == "cuda"
        torch.backends.cudnn.benchmark = on_gpu  # all steps have the same shapes
        if self.config.compile is True or (self.config.compile == "auto" and on_gpu):
            self.loss = torch.compile(self.model.loss)
            if on_gpu and distributed.world_size() == 1:  # messages stay out of a graph
                self.gradients = Captured(self._gradients, self.model)
        self.average = copy.deepcopy(self.model) if self.config.ema else None
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config.lr, fused=True)
        self.generator = torch.Generator(device).manual_seed(self.config.seed)
        self.device = device
        self.step = 0
        self.history: list[Row] = []  # the curves so far
        self.sums: dict[str, Tensor] = {}  # of the loss terms since the last row
        self.summed = 0  # steps that the sums are over
        self.best: dict[str, Any] | None = None  # if selected: psnr and weights of the best so far

    @property
    def result(self) -> nn.Module:
        """The model to validate and to keep: with `ema`, the moving average."""
        return self.model if self.average is None else self.average

    def update(self, x: Tensor) -> None:
        """Take one optimisation step on videos `(B, T, C, 64, 64)`, without waiting for it.

        Of several processes, each is given the same videos and takes its share of the work.
        """
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        draws = self.model.draw(*x.shape[:2], self.generator)
        loss = self.gradients(distributed.shard(x), distributed.shard(draws))
        distributed.average_gradients(self.model)
        self.optimizer.step()
        if self.average is not None:
            self._average_weights()
        for name, value in loss._asdict().items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.summed += 1

    def _gradients(self, x: Tensor, draws: NamedTuple) -> NamedTuple:
        """Leave the gradients of the loss in the parameters and return its terms."""
        self.optimizer.zero_grad()
        with autocast(self.config.precision, self.device):
            loss = self.loss(x, draws)
        loss.total.backward()
        return type(loss)(*(term.detach() for term in loss))

    def _average_weights(self) -> None:
        """Move the average by 1 - `ema` of the way, in the first steps by more.

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
            FloatingPointError: the loss is not finite.
        """
        row = {"step": self.step, "lr": learning_rate(self.config, self.step)}
        sums = distributed.mean(torch.stack(list(self.sums.values()))).tolist()
        row |= {name: value / self.summed for name, value in zip(self.sums, sums, strict=True)}
        if not math.isfinite(row["total"]):
            raise FloatingPointError(
                f"the loss is {row['total']} at step {self.step}: lower training.lr; the last "
                "checkpoint is kept"
            )
        self.sums, self.summed = {}, 0
        self.history.append(row)
        return row

    def validate(self, source: VideoSource) -> Row:
        """Append the validation PSNR to the curves; keep the best weights if they are selected."""
        at_once = 1 if self.device.type == "cpu" else GPU_VIDEOS_AT_ONCE
        value = validation_psnr(self.result, source, self.experiment, self.device, at_once)
        if self.config.select_best and (self.best is None or value > self.best["psnr"]):
            weights = {k: v.cpu().clone() for k, v in self.result.state_dict().items()}
            self.best = {"psnr": value, "weights": weights}
        row = {"step": self.step, "validation_psnr": value}
        self.history.append(row)
        return row

    def save(self, path: Path) -> None:
        """Write the checkpoint, atomically."""
        self.sums = {name: distributed.mean(value) for name, value in self.sums.items()}
        if distributed.rank() > 0:
            return
        state = {
            "experiment": json.dumps(to_entry(self.experiment)),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            **{name: getattr(self, name) for name in self.PROGRESS},
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> bool:
        """Take over the checkpoint at `path`, if there is one of the same data, model and training.

        Returns:
            Whether the run goes on from there; a checkpoint of other settings is left alone.
        """
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if not _same_training(json.loads(state["experiment"]), self.experiment):
            return False
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        for name in self.PROGRESS:
            setattr(self, name, state[name])
        return True


def _same_training(entry: dict, experiment: Experiment) -> bool:
    """Whether an entry of `params.yaml` asks for the same weights as an experiment."""
    try:
        before = from_entry(experiment.name, entry)
    except ConfigError:  # of another version of this program
        return False
    unbounded = [replace(e.training, minutes=None) for e in (before, experiment)]
    same_data = (before.data, before.model) == (experiment.data, experiment.model)
    return same_data and unbounded[0] == unbounded[1]


def initialise(model: nn.Module, path: Path) -> None:
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


def train(
    experiment: Experiment,
    videos: TrainingVideos,
    out: Path,
    log: Callable[[Row], None] = lambda row: None,
) -> nn.Module:
    """Train a model and write it to `out/model.safetensors`, its curves to `out/training.csv`.

    A run that was cut off leaves `out/checkpoint.pt`; called again with the same data,
    model and training settings it goes on from there, to the same weights (on a CPU, bit for bit).
    So does a run that reached its `minutes`; the model that it writes is the one so far, so that
    it can be evaluated.

    In a group of processes (`srvp.training.launch`), each calls this with videos of its own device, and the
    first one writes and logs.

    Args:
        experiment: what to train.
        videos: to train and to validate on, on the device that trains.
        out: folder of the results.
        log: called with every row of the curves, the earlier ones of a resumed run first.

    Returns:
        The trained model, in evaluation mode: the last weights, or the best ones in validation if
        `select_best` is set.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    config, checkpoint = experiment.training, Path(out) / CHECKPOINT_FILE
    distributed.check_batch(config.batch_size)
    log = log if distributed.rank() == 0 else lambda row: None
    run = Run(experiment, pick_device(config.device))
    run.resume(checkpoint)
    for row in run.history:
        log(row)
    _optimise(run, videos, checkpoint, log)
    if run.best is not None:
        run.result.load_state_dict(run.best["weights"])
    if distributed.rank() == 0:
        save_model(run.result, experiment, Path(out) / MODEL_FILE)
        with atomic_write(Path(out) / CURVES_FILE) as temporary:
            pd.DataFrame(run.history).to_csv(temporary, index=False, float_format="%.6g")
        if run.step == config.steps:
            checkpoint.unlink(missing_ok=True)
    return run.result.eval()


def _optimise(
    run: Run, videos: TrainingVideos, checkpoint: Path, log: Callable[[Row], None]
) -> None:
    config = run.config
    row_interval = max(1, config.steps // LOG_POINTS)
    out_of_time = Clock(config.minutes, run.device)
    batches = videos.train.batches(config.batch_size, config.frames, config.seed, first=run.step)
    run.model.train()
    # A bar that rarely refreshes: every refresh is a line in an executed notebook.
    hidden = distributed.rank() > 0
    with tqdm(
        total=config.steps, initial=run.step, unit="step", mininterval=5, disable=hidden
    ) as bar:
        while run.step < config.steps:
            run.update(next(batches))
            bar.update()
            last = run.step == config.steps
            if last or run.step % row_interval == 0:
                log(row := run.close_row())
                bar.set_postfix({"loss": f"{row['total']:.1f}"}, refresh=False)
            if last or run.step % config.validation_interval == 0:
                log(run.validate(videos.validation))
            if run.step % config.checkpoint_interval == 0:
                run.save(checkpoint)
            if not last and out_of_time(run.step):
                run.save(checkpoint)
                break
    if distributed.rank() == 0 and run.step < config.steps:
        print(
            f"training.minutes ({config.minutes:g}) are over at step {run.step} of {config.steps}: "
            "train again to go on from there"
        )


class Clock:
    """Says when the minutes of this call are over, at the same step in every process."""

    def __init__(self, minutes: float | None, device: torch.device):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.device = device

    def __call__(self, step: int) -> bool:
        if self.end is None or step % CLOCK_INTERVAL:
            return False
        return distributed.any_true(time.monotonic() > self.end, self.device)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context that a step runs in: bfloat16 where asked for, float32 otherwise.

    `auto` is bfloat16 where the hardware multiplies it faster than float32.
    """
    if precision == "auto":
        precision = "bfloat16" if _has_fast_bfloat16(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


@torch.no_grad()
def validation_psnr(
    model: nn.Module,
    source: VideoSource,
    experiment: Experiment,
    device: torch.device,
    at_once: int,
) -> float:
    """Return the mean PSNR in dB of the best of some samples, over the predicted frames.

    The videos, drawn and predicted `at_once` at a time, and the noise are the same at every
    validation of a run.
    """
    config, given_frames = experiment.training, experiment.evaluation.conditioning_frames
    generator = torch.Generator(device).manual_seed(config.seed)
    frames, samples = config.validation_frames, config.validation_samples
    scores = torch.zeros(config.validation_videos, device=device)
    model.eval()
    for i, part in enumerate(scores.split(at_once)):
        x = source.draw(len(part), frames, generator)
        noise = model.draw_noise(len(part) * samples, frames, generator)
        if i % distributed.world_size() != distributed.rank():
            continue
        with autocast(config.precision, device):
            given = model.condition(x[:, :given_frames])
            prediction = model.predict(given, frames - given_frames, noise).x.float()
        futures = prediction.unflatten(0, (len(part), samples))
        part.copy_(psnr(futures, x[:, None, given_frames:]).mean(dim=2).amax(dim=1))
    model.train()
    return distributed.mean(scores).mean().item() * distributed.world_size()


def save_model(
    model: nn.Module, experiment: Experiment, path: Path, matrices: torch.dtype = torch.float32
) -> None:
    """Write weights and the whole experiment into one safetensors file, atomically.

    Weights of more than one dimension are rounded to the type `matrices`.
    """
    # One entry: safetensors writes several in random order, and equal models would differ.
    metadata = {"experiment": json.dumps({experiment.name: to_entry(experiment)})}
    weights = {
        name: (tensor.to(matrices) if tensor.ndim > 1 else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata)


def load_model(path: Path, device: str = "cpu") -> tuple[nn.Module, Experiment]:
    """Return the model of a file that `save_model` wrote, in evaluation mode, and its experiment.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole model file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: train the model first (02_train, `dvc repro`)")
    try:
        with safe_open(path, "pt") as file:
            entries = json.loads(file.metadata()["experiment"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        experiment = from_entry(*next(iter(entries.items())))
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a model of this program ({error}): train it again"
        ) from None
    model = build_model(experiment.model, experiment.data.channels, seed=0)
    model.load_state_dict(weights)
    return model.to(pick_device(device)).eval(), experiment
