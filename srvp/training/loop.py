"""Training: one loop for every model, resumed exactly where it was cut off."""

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from srvp.data import TrainingVideos
from srvp.devices import pick_device
from srvp.experiment import ConfigError, Experiment, TrainingConfig, from_entry
from srvp.files import atomic_write
from srvp.models.interface import VideoModel
from srvp.store import CURVES_FILE, MODEL_FILE, current_entry, save_model
from srvp.training import distributed
from srvp.training.ahead import made_ready
from srvp.training.run import Row, Run, rate_factor

CHECKPOINT_FILE = "checkpoint.pt"
REPLACED_FILE = "checkpoint.replaced.pt"  # the one before, until the new run is finished
LOG_POINTS = 400  # rows of loss terms in the curves of a run, at most
CLOCK_INTERVAL = 10  # steps between two looks at the clock of a run that is bounded by minutes
# Keys of `training` that may change when a run is resumed: they do not change the steps before.
FREE = {"constant_steps", "decay_steps", "minutes", "checkpoint_interval", "device"}


def train(
    experiment: Experiment,
    videos: TrainingVideos,
    out: Path,
    log: Callable[[Row], None] = lambda row: None,
) -> VideoModel:
    """Train a model and write it to `out/model.safetensors`, its curves to `out/training.csv`.

    The run leaves `out/checkpoint.pt`. If it was cut off, or stopped by `training.minutes`, the
    next call resumes it, to the same weights (on a CPU, bit for bit). A finished run is continued
    by more steps, if the learning rate of the steps that it took stays the same. After any other
    change of the data, the model or the training, or if nothing changed, a finished run begins
    anew, and says so. The old model stays until the new one is whole. The old checkpoint is set
    aside until the new run is finished, and resumed if its settings come back before.

    In a group of processes (`srvp.training.launch`), each calls this with videos of its own device,
    and the first one writes and logs.

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
        ValueError: the checkpoint is damaged, or a setting is impossible.
    """
    config, out = experiment.training, Path(out)
    experiment.check_training()
    distributed.check_batch(config.batch_size)
    first = distributed.rank() == 0
    log = log if first else lambda row: None
    run = Run(experiment, pick_device(config.device))
    _check_validation(videos, run)
    _resume(run, out / CHECKPOINT_FILE, say=tqdm.write if first else lambda text: None)
    for row in run.history:
        log(row)
    _optimise(run, videos, out / CHECKPOINT_FILE, log)
    run.save(out / CHECKPOINT_FILE)
    if run.best is not None:
        run.result.load_state_dict(run.best["weights"])
    if first:
        with atomic_write(out / CURVES_FILE) as temporary:
            pd.DataFrame(run.history).to_csv(temporary, index=False, float_format="%.6g")
        # Last: a model that is newer than the checkpoint says that everything is written.
        save_model(run.result, experiment, out / MODEL_FILE)
        if run.step == config.steps:
            (out / REPLACED_FILE).unlink(missing_ok=True)
    return run.result.eval()


def _check_validation(videos: TrainingVideos, run: Run) -> None:
    """Make sure that there are clips to validate on, long before the first validation.

    Raises:
        ValueError: no validation video is long enough.
    """
    frames = run.config.validation_frames
    try:
        videos.validation.draw(1, frames, torch.Generator(run.device))
    except ValueError as error:
        raise ValueError(f"training.validation_frames is {frames}, but {error}") from None


def _resume(run: Run, path: Path, say: Callable[[str], None]) -> None:
    """Restore the checkpoint at `path`, or the one set aside, if the run can go on from it."""
    where, aside = f"{path.parent.name}/{path.name}", path.with_name(REPLACED_FILE)
    state = read_checkpoint(path, run.device)
    obstacle = _obstacle(state, run.experiment)
    finished = obstacle is None and state["step"] == run.config.steps and _model_is_written(path)
    replaced = read_checkpoint(aside, run.device) if obstacle or finished else None
    returns = not finished and _obstacle(replaced, run.experiment) is None
    if returns and state is None:  # a finished run may be set aside because it is made anew
        returns = replaced["step"] < run.config.steps
    distributed.wait_for_all(run.device)
    if returns:
        other = "" if state is None else ", which is set aside until the run is finished"
        say(f"{REPLACED_FILE} is of these settings: it takes the place of {where}{other}")
        _swap(path, aside)
        state, obstacle = replaced, None
    if finished or (state is not None and obstacle):
        _begin_anew(path, state, replaced, obstacle or "the run is finished", say)
    elif state is not None:
        say(f"{where} is at step {state['step']}: training resumes there")
        run.restore(state)


def _obstacle(state: dict[str, Any] | None, experiment: Experiment) -> str | None:
    if state is None:
        return "there is no checkpoint"
    return obstacle_to_resuming(json.loads(state["experiment"]), state["step"], experiment)


def _model_is_written(checkpoint: Path) -> bool:
    """Tell whether the model was written after the checkpoint; an older one is of another run."""
    model = checkpoint.with_name(MODEL_FILE)
    return model.exists() and model.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def _swap(path: Path, aside: Path) -> None:
    """Let two checkpoints, of which the first may be missing, change places; a kill loses none."""
    if distributed.rank() > 0:
        return
    between = path.with_suffix(".swapped.pt")
    aside.touch()  # newer than any model: its own is written anew
    if path.exists():
        path.replace(between)
    aside.replace(path)
    if between.exists():
        between.replace(aside)


def _begin_anew(
    path: Path, state: dict, replaced: dict | None, obstacle: str, say: Callable[[str], None]
) -> None:
    """Set a checkpoint aside, unless one with more steps is: then the new run overwrites it."""
    fate = f"the old checkpoint is now {REPLACED_FILE} until then"
    keeps = replaced is not None and replaced["step"] > state["step"]
    if keeps:
        fate = f"{REPLACED_FILE}, at step {replaced['step']}, too; this checkpoint is overwritten"
    elif replaced is not None:
        fate += f", in the place of one at step {replaced['step']}"
    say(
        f"{path.parent.name}/{path.name} is at step {state['step']}, but {obstacle}: training "
        f"begins at step 1; the old model stays until the new one is whole, {fate}"
    )
    if not keeps and distributed.rank() == 0:
        path.replace(path.with_name(REPLACED_FILE))


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Return the content of a checkpoint, or None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        line = (str(error).splitlines() or ["it is empty"])[0]
        raise ValueError(f"{path} is damaged ({line}): remove it to begin at step 1") from None


def obstacle_to_resuming(entry: dict, step: int, experiment: Experiment) -> str | None:
    """Return why a run cannot go on with an experiment, or None if it can.

    Args:
        entry: the experiment that the run was made with, as its entry of `params.yaml`.
        step: steps that the run has taken.
        experiment: to go on with.
    """
    try:
        before = from_entry(experiment.name, current_entry(entry))
    except ConfigError as error:
        return f"it is of another version of this program ({error})"
    for section in ("data", "model", "training"):
        old, new = getattr(before, section), getattr(experiment, section)
        if type(old) is not type(new):
            return f"its {section} is {type(old).__module__}, now {type(new).__module__}"
        for key in (f.name for f in fields(new)):
            if getattr(old, key) != getattr(new, key) and not (
                section == "training" and key in FREE
            ):
                return f"its {section}.{key} is {getattr(old, key)}, now {getattr(new, key)}"
    if step > experiment.training.steps:
        return f"only {experiment.training.steps} steps are asked for"
    if _rates(before.training, step) != _rates(experiment.training, step):
        return "the steps that it took would now have other learning rates"
    return None


def _rates(config: TrainingConfig, steps: int) -> list[float]:
    return [rate_factor(config, step) for step in range(1, steps + 1)]


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
    bar = tqdm(total=config.steps, initial=run.step, unit="step", mininterval=5, disable=hidden)
    with bar, made_ready(batches, run.model, run.device) as ready:
        while run.step < config.steps:
            run.update(next(ready))
            bar.update()
            last = run.step == config.steps
            if last or run.step % row_interval == 0:
                log(row := run.close_row())
                shown = next(value for name, value in row.items() if name.endswith("total"))
                bar.set_postfix({"loss": f"{shown:.4g}"}, refresh=False)
            if last or run.step % config.validation_interval == 0:
                log(run.validate(videos.validation))
            if not last and run.step % config.checkpoint_interval == 0:
                run.save(checkpoint)
            if not last and out_of_time(run.step):
                break
    if distributed.rank() == 0 and run.step < config.steps:
        print(
            f"training.minutes ({config.minutes:g}) are over at step {run.step} of {config.steps}: "
            "the next training resumes there"
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
