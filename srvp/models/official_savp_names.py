"""What the public code of SAVP and SV2P calls each weight, and how it lays it out."""

from collections.abc import Callable

from torch import Tensor

from srvp.models.savp import SAVP
from srvp.models.sv2p import SV2P

Layout = Callable[[Tensor], Tensor]  # from TensorFlow's layout to ours
Names = dict[str, tuple[str, Layout]]  # by our name: theirs, and the layout


def vector(w: Tensor) -> Tensor:
    """A bias, gain or vector u."""
    return w.flatten()


def dense(w: Tensor) -> Tensor:
    """From (inputs, outputs)."""
    return w.T


def convolution(w: Tensor) -> Tensor:
    """From (rows, columns, inputs, outputs), or transposed (rows, columns, outputs, inputs)."""
    return w.permute(3, 2, 0, 1)


def pointwise(w: Tensor) -> Tensor:
    """A transposed convolution of 1x1 (1, 1, outputs, inputs), as a convolution."""
    return w.permute(2, 3, 0, 1)


def volume(w: Tensor) -> Tensor:
    """From (times, rows, columns, inputs, outputs) to a matrix."""
    return w.permute(4, 3, 0, 1, 2).flatten(1)


def last_layer(channels: int, side: int) -> Layout:
    """From the inputs (times, rows, columns, channels) of a discriminator's last layer."""
    return lambda w: w.reshape(-1, side, side, channels).permute(3, 0, 1, 2).reshape(1, -1)


def sv2p_names(model: SV2P) -> Names:
    """Return the public name and layout of every weight of an SV2P."""
    names: Names = {}

    def layer(ours: str, theirs: str, layout: Layout, bias: bool = True) -> None:
        names[f"{ours}.weight"] = (f"generator/{theirs}/weights", layout)
        if bias:
            names[f"{ours}.bias"] = (f"generator/{theirs}/biases", vector)

    def norm(ours: str, theirs: str) -> None:
        names[f"{ours}.weight"] = (f"generator/{theirs}/gamma", vector)
        names[f"{ours}.bias"] = (f"generator/{theirs}/beta", vector)

    layer("predictor.e0", "scale1_conv1", convolution, bias=False)
    norm("predictor.e0_norm", "scale1_conv1/layer_norm1")
    for i, name in ((1, "conv2"), (2, "conv3"), (3, "conv4")):
        layer(f"predictor.e{i}", name, convolution)
    layer("predictor.e4", "convt1", convolution)
    layer("predictor.e5", "convt2", convolution)
    layer("predictor.e6", "convt3", convolution, bias=False)
    norm("predictor.e6_norm", "convt3/layer_norm9")
    for i in range(7):
        layer(f"predictor.lstms.{i}.gates", f"state{i + 1}/Gates", convolution)
        norm(f"predictor.norms.{i}", f"layer_norm{i + 2}")
    layer("predictor.masks", "convt7", pointwise)
    if model.config.transformation == "dna":
        layer("predictor.kernels", "convt4", pointwise)
    else:
        layer("predictor.scratch", "convt4", pointwise)
        layer("predictor.kernels", "cdna_params", dense)
    stages = [("trunk.0", "trunk.1", "latent_conv1/latent_norm1")]
    stages += [("trunk.3", "trunk.4", "latent_conv2/latent_norm2")]
    stages += [("trunk.6", "trunk.7", "latent_conv3/latent_norm3")]
    stages += [("mean.0", "mean.1", "latent_mean/latent_norm_mean")]
    stages += [("log_variance.0", "log_variance.1", "latent_std/latent_std_norm")]
    for product, normal, name in stages:
        layer(f"tower.{product}", name.split("/")[0], convolution, bias=False)
        norm(f"tower.{normal}", name)
    return names


def savp_names(model: SAVP) -> Names:
    """Return the public name and layout of every weight of a SAVP."""
    names: Names = {}

    def layer(ours: str, theirs: str, layout: Layout, bias: bool = True) -> None:
        names[f"{ours}.weight"] = (f"generator/{theirs}/kernel", layout)
        if bias:
            names[f"{ours}.bias"] = (f"generator/{theirs}/bias", vector)

    def norm(ours: str, theirs: str) -> None:
        names[f"{ours}.weight"] = (f"generator/{theirs}/gamma", vector)
        names[f"{ours}.bias"] = (f"generator/{theirs}/beta", vector)

    def head(ours: str, hidden: str, output: str) -> None:
        layer(f"cell.{ours}.0", f"{cell}/{hidden}/conv2d", convolution)
        norm(f"cell.{ours}.1", f"{cell}/{hidden}/InstanceNorm")
        if output:
            layer(f"cell.{ours}.3", f"{cell}/{output}/conv2d", convolution)

    cell = "rnn/savp_cell"
    layers = [("down", i, "conv_pool2d") for i in range(len(model.cell.down))]
    layers += [("up", i, "upsample_conv2d") for i in range(len(model.cell.up))]
    for number, (half, i, kind) in enumerate(layers):
        ours, module = f"cell.{half}.{i}", getattr(model.cell, half)[i]
        layer(f"{ours}.convolution", f"{cell}/h{number}/{kind}", convolution)
        norm(f"{ours}.norm", f"{cell}/h{number}/InstanceNorm")
        if module.lstm is not None:
            lstm = f"{cell}/lstm_h{number}/basic_conv2dlstm_cell"
            layer(f"{ours}.lstm.gates", lstm, convolution, bias=False)
            norm(f"{ours}.lstm.norm_gates", f"{lstm}/input_transform_forget_output")
            norm(f"{ours}.lstm.norm_cell", f"{lstm}/state")
    last = f"h{len(layers)}"
    head("scratch", f"{last}_scratch", "scratch_image")
    head("mask_features", f"{last}_masks", "")
    layer("cell.masks", f"{cell}/masks/conv2d", convolution)
    if model.config.transformation == "cdna":
        layer("cell.motion", f"{cell}/cdna_kernels/dense", dense)
    elif model.config.transformation == "dna":
        head("motion", f"{last}_dna_kernel", "dna_kernels")
    else:
        head("motion", f"{last}_flow", "flows")
    if model.encoder is not None:
        layer("cell.z_lstm", f"{cell}/lstm_z/basic_lstm_cell", dense)
        for i in range(3):
            layer(f"encoder.convolutions.{i}", f"encoder/layer_{i + 1}/conv2d", convolution)
        for i in range(2):
            norm(f"encoder.norms.{i}", f"encoder/layer_{i + 2}/InstanceNorm")
        layer("encoder.mean", "encoder/z_mu/dense", dense)
        layer("encoder.log_variance", "encoder/z_log_sigma_sq/dense", dense)
    return names | _discriminator_names(model)


def _discriminator_names(model: SAVP) -> Names:
    names: Names = {}
    folders = {"posterior": "discriminator/encoder/video", "prior": "discriminator/video"}
    for name, judge in model.discriminators.items():
        stages = [f"sn_conv{i // 2}_{i % 2}/conv3d" for i in range(len(judge.LAYERS))]
        side = model.shape.size // 8
        layouts = [*[volume] * len(stages), last_layer(8 * model.config.ndf, side)]
        for i, (stage, layout) in enumerate(zip([*stages, "sn_fc4/dense"], layouts, strict=True)):
            ours, theirs = f"discriminators.{name}.weights.{i}", f"{folders[name]}/{stage}"
            names[f"{ours}.matrix"] = (f"{theirs}/kernel", layout)
            names[f"{ours}.bias"] = (f"{theirs}/bias", vector)
            names[f"{ours}.u"] = names[f"{ours}.next_u"] = (f"{theirs}/u", vector)
    return names
