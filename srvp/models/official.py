"""Checkpoints of the authors' code, in and out.

The authors keep a model as `model.pt`, a plain state dict, and `config.json` with its sizes. Both
are translated entry by entry, so that nothing is lost either way.
"""

import json
import pickle
from pathlib import Path

import torch
from torch import Tensor

from srvp.files import atomic_write, write_json
from srvp.models.interface import VideoShape
from srvp.models.srvp import SRVP, Config

# Keys of the authors' config.json, and ours. The frame size `nx` and the number of channels `nc`
# belong to the data here.
SIZES = {
    "nf": "nf",
    "nhx": "nhx",
    "ny": "ny",
    "nz": "nz",
    "skipco": "skip_connections",
    "nt_inf": "inference_frames",
    "nh_inf": "nh_inf",
    "nlayers_inf": "nlayers_inf",
    "nh_res": "nh_res",
    "nlayers_res": "nlayers_res",
    "archi": "architecture",
}

# Beginnings of our entries' names, and of theirs.
PREFIXES = {
    "encoder.stages": "encoder.conv",
    "encoder.head": "encoder.last_conv",
    "decoder.stem": "decoder.first_upconv",
    "decoder.stages": "decoder.conv",
    "w_frame": "w_proj",
    "w_video": "w_inf",
    "q_y": "q_y.module",
    "q_z_lstm": "inf_z",
    "q_z": "q_z",
    "p_z": "p_z.module",
    "transition.f": "dynamics.module",
}

# A public mirror of the weights that the authors published.
OFFICIAL_URL = "https://huggingface.co/nkiyohara/srvp-pretrained-model-mirror/resolve/main"
OFFICIAL = {
    "smmnist": "mmnist/stochastic",
    "dmmnist": "mmnist/deterministic",
    "kth": "kth",
    "human36m": "human",
    "bair": "bair",
}


def official_name(name: str) -> str:
    """Return the authors' name of an entry of our state dict."""
    prefix = max((p for p in PREFIXES if name.startswith(f"{p}.")), key=len)
    rest = name.removeprefix(f"{prefix}.")
    if prefix in ("q_y", "p_z", "transition.f"):
        # We count linear maps and activations, they count layers: (linear), (ReLU, linear), ...
        index, rest = rest.split(".", 1)
        layer = int(index) // 2
        rest = f"{layer}.{min(layer, 1)}.{rest}"
    return f"{PREFIXES[prefix]}.{rest}"


def model_config(config: dict, **settings: float) -> Config:
    """Translate the authors' configuration.

    Args:
        config: content of `config.json`. Besides the sizes it may tell `n_euler_steps`,
            `obs_scale`, `beta_y`, `beta_z`, `l2_res` and `res_gain`.
        settings: of `Config`, for what the configuration does not tell. By default
            `euler_steps` is 1 without skip connections and 2 with them, as in all published models,
            and the objective has the defaults of the authors' code.

    Raises:
        ValueError: sizes are missing, or frames are not 64x64.
    """
    missing = sorted({*SIZES, "nc", "nx"} - config.keys())
    if missing or config["nx"] != 64:
        problem = f"lacks {missing}" if missing else f"has nx = {config['nx']}; expected 64"
        raise ValueError(f"the official configuration {problem}")
    sizes = {ours: config[theirs] for theirs, ours in SIZES.items()}
    objective = {
        "euler_steps": config.get("n_euler_steps", 2 if config["skipco"] else 1),
        "obs_scale": 1.0,
        "beta_y": 1.0,
        "beta_z": 1.0,
        "l2_res": 1.0,
        "res_gain": 1.41,
    }
    objective |= {key: config[key] for key in objective if key in config}
    return Config(transition="residual", **sizes, **objective | settings)


def load(weights: Path | dict[str, Tensor], config: Path | dict, **settings: float) -> SRVP:
    """Build a model from a checkpoint of the authors' code, in evaluation mode.

    Args:
        weights: `model.pt`, or the state dict in it. Only tensors are read from a file.
        config: `config.json`, or its content.
        settings: see `model_config`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or entries are missing, unknown or of another shape.
    """
    if not isinstance(config, dict):
        config = _read_config(Path(config))
    if not isinstance(weights, dict):
        weights = _read_weights(Path(weights))
    weights = _unwrapped(weights)
    model = SRVP(model_config(config, **settings), VideoShape(config["nc"], config["nx"]))
    own = {official_name(name): (name, value) for name, value in model.state_dict().items()}
    problems = [f"{n} is missing" for n in own if n not in weights]
    problems += [f"{n} is unknown" for n in weights if n not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, (_, value) in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        raise ValueError(
            f"the checkpoint does not fit its configuration in {len(problems)} of {len(own)} "
            f"entries: {'; '.join(problems[:3])}{'; ...' if len(problems) > 3 else ''}"
        )
    model.load_state_dict({name: weights[theirs] for theirs, (name, _) in own.items()})
    return model.eval()


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no official configuration ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no official configuration: expected sizes by name")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        line = str(error).splitlines()[0] if str(error) else "it is empty"
        raise ValueError(f"{path} is no checkpoint of weights ({line})") from None
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds a {type(weights).__name__}, expected a state dict")
    return weights


def _unwrapped(weights: dict) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint that wraps it, without the prefix of DataParallel."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(weights.get(key), dict):
            weights = weights[key]
    weights = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def save(model: SRVP, folder: Path) -> None:
    """Write `model.pt` and `config.json` as the authors' code keeps them.

    Raises:
        ValueError: the model is an ablation, for which the authors' format has no place.
    """
    if model.config.transition != "residual" or model.config.nz == 0:
        raise ValueError("the official format holds only SRVP: no mlp or gru transition, and a z")
    config = {theirs: getattr(model.config, ours) for theirs, ours in SIZES.items()}
    weights = {official_name(n): t.cpu().contiguous() for n, t in model.state_dict().items()}
    with atomic_write(Path(folder) / "model.pt") as temporary:
        torch.save(weights, temporary)
    write_json(
        Path(folder) / "config.json", {"nx": model.shape.size, "nc": model.shape.channels, **config}
    )


def load_official(name: str, folder: Path) -> SRVP:
    """Load the authors' weights, fetched into `folder` if they are not there yet.

    Args:
        name: `smmnist`, `dmmnist`, `kth`, `human36m` or `bair`.
        folder: for the files, such as `.cache/official`.

    Raises:
        ValueError: another name.
        ConnectionError: the weights cannot be fetched; the message says where they lie.
    """
    if name not in OFFICIAL:
        raise ValueError(f"{name!r} has no official weights; expected one of {sorted(OFFICIAL)}")
    files = {file: Path(folder) / name / file for file in ("model.pt", "config.json")}
    for file, path in files.items():
        url = f"{OFFICIAL_URL}/{OFFICIAL[name]}/{file}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not path.exists():
                torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise ConnectionError(
                f"{url} cannot be fetched ({error}): get it elsewhere and put it at {path}"
            ) from None
    return load(files["model.pt"], files["config.json"])
