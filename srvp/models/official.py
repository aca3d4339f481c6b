"""Checkpoints of the authors' code, in and out.

The authors keep a model as `model.pt`, a plain state dict, and `config.json` with its sizes. Both
are translated entry by entry, so that nothing is lost either way.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from srvp.files import atomic_write, write_json
from srvp.models.srvp import SRVP, SRVPConfig

# Keys of the authors' config.json, and ours. `nx`, the frame size, is 64 throughout; `nc`, the
# number of channels, belongs to the data here.
CONFIG = {
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
PUBLISHED_URL = "https://huggingface.co/nkiyohara/srvp-pretrained-model-mirror/resolve/main"
PUBLISHED = {
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


def model_config(config: dict, **settings: float) -> SRVPConfig:
    """Translate the authors' configuration.

    Args:
        config: content of `config.json`. Besides the sizes it may tell `n_euler_steps`,
            `obs_scale`, `beta_y`, `beta_z`, `l2_res` and `res_gain`.
        settings: of `SRVPConfig`, for what the configuration does not tell. By default
            `euler_steps` is 1 without skip connections and 2 with them, as in all published models,
            and the objective has the defaults of the authors' code.

    Raises:
        ValueError: sizes are missing, or frames are not 64x64.
    """
    missing = sorted({*CONFIG, "nc", "nx"} - config.keys())
    if missing or config["nx"] != 64:
        problem = f"lacks {missing}" if missing else f"has nx = {config['nx']}; expected 64"
        raise ValueError(f"the authors' configuration {problem}")
    sizes = {ours: config[theirs] for theirs, ours in CONFIG.items()}
    objective = {
        "euler_steps": config.get("n_euler_steps", 2 if config["skipco"] else 1),
        "obs_scale": 1.0,
        "beta_y": 1.0,
        "beta_z": 1.0,
        "l2_res": 1.0,
        "res_gain": 1.41,
    }
    objective |= {key: config[key] for key in objective if key in config}
    return SRVPConfig(transition="residual", **sizes, **objective | settings)


def load(weights: Path | dict[str, Tensor], config: Path | dict, **settings: float) -> SRVP:
    """Build a model from a checkpoint of the authors' code, in evaluation mode.

    Args:
        weights: `model.pt`, or the state dict in it. Only tensors are read from a file.
        config: `config.json`, or its content.
        settings: see `model_config`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: entries are missing, unknown or of another shape: all are listed.
    """
    if not isinstance(config, dict):
        config = json.loads(Path(config).read_text())
    if not isinstance(weights, dict):
        weights = torch.load(weights, map_location="cpu", weights_only=True)
    model = SRVP(model_config(config, **settings), config["nc"])
    expected = {official_name(name): name for name in model.state_dict()}
    own = model.state_dict()
    problems = [f"{n} is missing" for n in expected if n not in weights]
    problems += [f"{n} is unknown" for n in weights if n not in expected]
    problems += [
        f"{theirs} is {tuple(weights[theirs].shape)}, expected {tuple(own[ours].shape)}"
        for theirs, ours in expected.items()
        if theirs in weights and weights[theirs].shape != own[ours].shape
    ]
    if problems:
        raise ValueError(f"the checkpoint does not fit its configuration: {'; '.join(problems)}")
    model.load_state_dict({ours: weights[theirs] for theirs, ours in expected.items()})
    return model.eval()


def save(model: SRVP, folder: Path) -> None:
    """Write `model.pt` and `config.json` as the authors' code keeps them.

    Raises:
        ValueError: the model is an ablation, for which the authors' format has no place.
    """
    if model.config.transition != "residual" or model.config.nz == 0:
        raise ValueError("the authors' format holds SRVP alone: no mlp or gru transition, and a z")
    config = {theirs: getattr(model.config, ours) for theirs, ours in CONFIG.items()}
    weights = {official_name(n): t.cpu().contiguous() for n, t in model.state_dict().items()}
    with atomic_write(Path(folder) / "model.pt") as temporary:
        torch.save(weights, temporary)
    write_json(Path(folder) / "config.json", {"nx": 64, "nc": model.channels, **config})


def load_published(name: str, folder: Path) -> SRVP:
    """Load the authors' published weights, fetched into `folder` if they are not there yet.

    Args:
        name: `smmnist`, `dmmnist`, `kth`, `human36m` or `bair`.
        folder: for the files, such as `.cache/official`.

    Raises:
        ValueError: another name.
        ConnectionError: the weights cannot be fetched; the message says where they lie.
    """
    if name not in PUBLISHED:
        raise ValueError(f"{name!r} is not published; expected one of {sorted(PUBLISHED)}")
    files = {file: Path(folder) / name / file for file in ("model.pt", "config.json")}
    for file, path in files.items():
        url = f"{PUBLISHED_URL}/{PUBLISHED[name]}/{file}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not path.exists():
                torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise ConnectionError(
                f"{url} cannot be fetched ({error}): get it elsewhere and put it at {path}"
            ) from None
    return load(files["model.pt"], files["config.json"])
