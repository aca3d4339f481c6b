"""Models as files: one file holds the weights and the whole experiment. And the pretrained models.

`pretrained/` has a folder for each pretrained model: `README.md`, its card; `model.safetensors`,
which DVC tracks, and `training.csv`, both from `publish`; and the scores of the full protocol.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from srvp.devices import pick_device
from srvp.experiment import Experiment, from_entry, to_entry
from srvp.files import atomic_write, project_root
from srvp.models.interface import ModelConfig, VideoModel, VideoShape

MODEL_FILE = "model.safetensors"
CURVES_FILE = "training.csv"
CARD_FILE = "README.md"
SCALE = ":scale"  # ends the name of a scale in a model file


def build_model(config: ModelConfig, shape: VideoShape, seed: int) -> VideoModel:
    """Build a model, its weights drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config.build(shape)


def save_model(
    model: VideoModel, experiment: Experiment, path: Path, in_bytes: bool = False
) -> None:
    """Write weights and the whole experiment into one safetensors file, atomically.

    With `in_bytes`, weights of more than one dimension are stored as int8 and a scale per channel.
    """
    # One entry: safetensors writes several in random order, and equal models would differ.
    metadata = {"experiment": json.dumps({experiment.name: to_entry(experiment)})}
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if in_bytes:
        transposed = {
            f"{name}.weight"
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.ConvTranspose2d)
        }
        for name in [name for name, tensor in weights.items() if tensor.ndim > 1]:
            rounded = to_bytes(weights[name], channels=1 if name in transposed else 0)
            weights[name], weights[name + SCALE] = rounded
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata)


def to_bytes(matrix: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a tensor to int8 times a scale for each index of the axis `channels`."""
    others = [axis for axis in range(matrix.ndim) if axis != channels]
    scale = matrix.abs().amax(dim=others, keepdim=True).clamp(min=1e-30) / 127
    return (matrix / scale).round().to(torch.int8), scale


def load_model(path: Path, device: str = "cpu") -> tuple[VideoModel, Experiment]:
    """Return the model of a file that `save_model` wrote, in evaluation mode, and its experiment.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole model file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is missing: train the model first (`python -m srvp train`), or fetch a "
            "pretrained one by `dvc pull`"
        )
    try:
        with safe_open(path, "pt") as file:
            entries = json.loads(file.metadata()["experiment"])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        weights = {
            name: tensor * stored[name + SCALE] if name + SCALE in stored else tensor
            for name, tensor in stored.items()
            if not name.endswith(SCALE)
        }
        name, entry = next(iter(entries.items()))
        experiment = from_entry(name, current_entry(entry))
        model = build_model(experiment.model, experiment.shape, seed=0)
        model.load_state_dict(weights)
    except (SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is not a model of this program ({line}): train it again"
        ) from None
    return model.to(pick_device(device)).eval(), experiment


def current_entry(entry: dict) -> dict:
    """Return the entry of an experiment in today's form, if it was written in an earlier one.

    In version 0.1.0, SVG had a name per prior, and the Euler steps of prediction were keys of the
    protocol. Later, the protocol named the precision of I3D alone.
    """
    model, evaluation = dict(entry["model"]), dict(entry["evaluation"])
    if model["name"] in ("svg_lp", "svg_fp"):
        prior = "learned" if model["name"] == "svg_lp" else "fixed"
        model |= {"name": "svg", "prior": prior}
    steps = evaluation.pop("euler_steps", None)
    if steps is not None:
        trained = model.get("euler_steps", 1)
        options = [{"euler_steps": n} for n in steps]
        evaluation["predict"] = [{} if steps[0] == trained else options[0], *options[1:]]
    if "fvd_precision" in evaluation:
        evaluation["precision"] = evaluation.pop("fvd_precision")
    return {**entry, "model": model, "evaluation": evaluation}


# The pretrained models.


def pretrained_folders() -> list[Path]:
    """Return the folders of all pretrained models: those in `pretrained/` that have a card."""
    return sorted(card.parent for card in (project_root() / "pretrained").glob(f"*/{CARD_FILE}"))


def pretrained_results() -> list[Path]:
    """Return the folders of the pretrained models that have been scored."""
    return [folder for folder in pretrained_folders() if (folder / "metrics.json").is_file()]


def pretrained_file(name: str) -> Path:
    """Return the file of a pretrained model.

    Args:
        name: of its folder in `pretrained/`, such as `smmnist_gpu`.

    Raises:
        ValueError: there is no pretrained model of that name.
        FileNotFoundError: its weights have not been fetched.
    """
    folders = {folder.name: folder for folder in pretrained_folders()}
    if name not in folders:
        root = project_root()
        raise ValueError(f"{root / 'pretrained'} has no model {name!r}: there are {list(folders)}")
    path = folders[name] / MODEL_FILE
    if not path.is_file():
        root = project_root()
        where = path.relative_to(root)
        raise FileNotFoundError(f"{path} is missing: fetch it by `dvc pull {where}` in {root}")
    return path


def load_pretrained(name: str, device: str = "cpu") -> tuple[VideoModel, Experiment]:
    """Return a pretrained model, in evaluation mode, and the experiment that made it.

    Args:
        name: of its folder in `pretrained/`, such as `smmnist_gpu`.
        device: `cpu`, `cuda`, `mps`, or `auto` for an accelerator if there is one.

    Raises:
        ValueError: there is no pretrained model of that name.
        FileNotFoundError: its weights have not been fetched.
    """
    return load_model(pretrained_file(name), device)


def publish(run: Path, folder: Path) -> Path:
    """Copy the model and the curves of a run to a folder of `pretrained/`; return the model's file.

    Matrices are rounded to 8 bits with a scale per channel, a quarter of the size; vectors, such as
    the statistics of batch norm, keep 32. Loading makes them float32 again. Still to do by hand:
    the card, and `dvc add` and `dvc push` of the weights.

    Args:
        run: folder of the run.
        folder: of the pretrained model.

    Raises:
        FileNotFoundError: the run has no model, or no curves.
        ValueError: a weight is no number.
    """
    curves = run / CURVES_FILE
    if not curves.is_file():
        raise FileNotFoundError(f"{curves} is missing: train the model first")
    model, experiment = load_model(run / MODEL_FILE)
    broken = [name for name, weight in model.state_dict().items() if not weight.isfinite().all()]
    if broken:
        raise ValueError(f"{run / MODEL_FILE} has weights that are no numbers: {broken[0]}")
    save_model(model, experiment, folder / MODEL_FILE, in_bytes=True)
    with atomic_write(folder / CURVES_FILE) as temporary:
        shutil.copy(curves, temporary)
    return folder / MODEL_FILE
