"""Checkpoints of the public code of SAVP and SV2P (github.com/alexlee-gk/video_prediction).

The published archives hold a TensorFlow checkpoint and `model_hparams.json`. Both are read without
TensorFlow. The archives are of April 2018: names that changed since then are translated.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from srvp.models import savp, sv2p
from srvp.models.interface import VideoModel, VideoShape
from srvp.models.official_savp_names import Names, savp_names, sv2p_names
from srvp.models.tf_bundle import read_checkpoint

# Names of April 2018, and those of the last commit.
RENAMED = (
    ("/dna_cell/", "/savp_cell/"),
    ("^discriminator_encoder/video_sn_", "discriminator/encoder/video/sn_"),
    ("^discriminator/video_sn_", "discriminator/video/sn_"),
    ("^generator/encoder/latent_", "generator/latent_"),
)
# What is no weight of a model: the optimizers' memory, and a robot arm's state.
IGNORED = re.compile(r"(^|/)(Adam(_\d+)?|beta\d_power|global_step)$|(^|/)state_pred/")

# Keys of model_hparams.json, and ours; their values where the file leaves them out.
SHARED_KEYS = {"context_frames": "conditioning_frames", "schedule_sampling_k": "sampling_k"}
SV2P_KEYS = {
    "transformation": "transformation",
    "multi_latent": "time_variant",
    "sequence_length": "posterior_frames",
    "kl_weight": "beta",
    "num_iterations_1st_stage": "prior_steps",
    **SHARED_KEYS,
}
SV2P_DEFAULTS = {
    "transformation": "cdna",
    "multi_latent": False,
    "schedule_sampling_k": 900.0,
    "num_iterations_1st_stage": 100000,
    "kl_weight": 0.08,
    "kl_anneal_steps": (200000, 220000),
}
SAVP_KEYS = {
    **{key: key for key in ("nz", "ngf", "nef", "ndf", "transformation", "clip_length")},
    **{key: key for key in ("l1_weight", "l2_weight", "kl_weight")},
    "video_sn_gan_weight": "gan_weight",
    "video_sn_vae_gan_weight": "vae_gan_weight",
    "gan_feature_cdist_weight": "gan_features_weight",
    "vae_gan_feature_cdist_weight": "vae_gan_features_weight",
    **SHARED_KEYS,
}
SAVP_DEFAULTS = {
    "nz": 8,
    "ngf": 32,
    "nef": 64,
    "ndf": 32,
    "transformation": "cdna",
    "clip_length": 10,
    "l1_weight": 1.0,
    "l2_weight": 0.0,
    "kl_weight": 0.0,
    "video_sn_gan_weight": 0.0,
    "video_sn_vae_gan_weight": 0.0,
    "gan_feature_cdist_weight": 0.0,
    "vae_gan_feature_cdist_weight": 0.0,
    "schedule_sampling_k": 900.0,
    "kl_anneal_steps": (50000, 100000),
}
# Settings that our models do not have, and the only value that they may take.
FIXED = {
    "use_e_rnn": False,
    "learn_prior": False,
    "use_rnn_z": True,
    "use_same_discriminator": False,
    "last_frames": 1,
    "num_transformed_images": 4,
    "context_images_background": False,
    "last_image_background": False,
    "last_context_image_background": False,
    "norm_layer": "instance",
    "where_add": "all",
    "rnn": "lstm",
    "conv_rnn": "lstm",
    "latent_channels": 1,
    "stochastic_model": True,
}


def load(folder: Path, size: int | None = None, **settings: object) -> VideoModel:
    """Build a model from a checkpoint of the public code, in evaluation mode.

    Args:
        folder: of the checkpoint and of `model_hparams.json`.
        size: of the frames in pixels, if the weights do not tell it (SV2P with DNA).
        settings: of our `Config`, for what that file does not tell or for what is to be changed.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the checkpoint is damaged or holds another model.
    """
    hparams = Path(folder) / "model_hparams.json"
    if not hparams.is_file():
        raise FileNotFoundError(f"{hparams} is missing: it belongs to the checkpoint")
    variables = read_checkpoint(folder, lambda name: IGNORED.search(name) is None)
    return from_variables(variables, json.loads(hparams.read_text()), size, **settings)


def from_variables(
    variables: Mapping[str, np.ndarray],
    hparams: Mapping[str, object],
    size: int | None = None,
    **settings: object,
) -> VideoModel:
    """Build a model from the variables of a checkpoint by name. See `load`."""
    old = any("/dna_cell/" in name for name in variables)
    variables = {_current_name(name): value for name, value in variables.items()}
    for key, value in FIXED.items():
        if hparams.get(key, value) != value:
            raise ValueError(f"model_hparams.json has {key} = {hparams[key]}; only {value} is read")
    if "generator/scale1_conv1/weights" in variables:
        model = _build_sv2p(variables, hparams, size or 64, settings)
        names = sv2p_names(model)
    else:
        model = _build_savp(variables, hparams, {"shared_windows": old, **settings})
        names = savp_names(model)
    _take_over(model, variables, names)
    return model.eval()


def _current_name(name: str) -> str:
    for old, new in RENAMED:
        name = re.sub(old, new, name)
    return name


def _build_sv2p(variables: Mapping, hparams: Mapping, size: int, settings: Mapping) -> sv2p.SV2P:
    values = SV2P_DEFAULTS | hparams
    start, end = values["kl_anneal_steps"]
    ours = {ours: values[key] for key, ours in SV2P_KEYS.items() if key in values}
    channels, nf = variables["generator/scale1_conv1/weights"].shape[2:]
    config = sv2p.Config(**{**ours, "nf": nf, "kl_start": start, "kl_end": end, **settings})
    actions = variables["generator/conv4/weights"].shape[2] - 2 * nf - 1
    if "generator/cdna_params/weights" in variables:
        size = 8 * math.isqrt(variables["generator/cdna_params/weights"].shape[0] // (4 * nf))
    return config.build(VideoShape(channels, size, actions))


def _build_savp(variables: Mapping, hparams: Mapping, settings: Mapping) -> savp.SAVP:
    values = SAVP_DEFAULTS | hparams
    start, end = values["kl_anneal_steps"]
    ours = {ours: values[key] for key, ours in SAVP_KEYS.items() if key in values}
    config = savp.Config(**{**ours, "kl_start": start, "kl_end": end, **settings})
    cell = "generator/rnn/savp_cell"
    first = f"{cell}/h0/conv_pool2d/kernel"
    if first not in variables:
        raise ValueError("the checkpoint is neither of SAVP nor of SV2P: it has no " + first)
    channels = variables[f"{cell}/scratch_image/conv2d/kernel"].shape[3]
    actions = variables[first].shape[2] - 2 * channels - config.nz
    layers = sum(f"{cell}/h{i}/conv_pool2d/kernel" in variables for i in range(8))
    return config.build(VideoShape(channels, {2: 32, 3: 64, 4: 128, 5: 256}[layers], actions))


def _take_over(model: VideoModel, variables: Mapping[str, np.ndarray], names: Names) -> None:
    own = model.state_dict()
    assert names.keys() == own.keys()
    theirs = {name for name, _ in names.values()}
    if not any(name.startswith("discriminator/") for name in theirs):
        variables = {n: v for n, v in variables.items() if not n.startswith("discriminator/")}
    problems = [f"{n} is missing" for n in sorted(theirs - variables.keys())]
    problems += [f"{n} is unknown" for n in sorted(variables.keys() - theirs)]
    weights = {}
    for name, (their_name, layout) in names.items():
        if their_name in variables:
            weight = layout(torch.from_numpy(np.array(variables[their_name])))
            if weight.shape != own[name].shape:
                expected = f"expected one of ours of {tuple(own[name].shape)}"
                problems.append(f"{their_name} gives {tuple(weight.shape)}, {expected}")
            weights[name] = weight
    if problems:
        shown = "; ".join(problems[:3])
        raise ValueError(f"the checkpoint does not fit its settings in {len(problems)}: {shown}")
    model.load_state_dict(weights)
