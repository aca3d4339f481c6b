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


class _Table(dict[str, tuple[str, Layout]]):
    """Collects the weights of the generator.

    Args:
        weight, bias: how their code calls those of a layer.
    """

    def __init__(self, weight: str, bias: str):
        super().__init__()
        self.weight, self.bias = weight, bias

    def layer(self, ours: str, theirs: str, layout: Layout, bias: bool = True) -> None:
        self[f"{ours}.weight"] = (f"generator/{theirs}/{self.weight}", layout)
        if bias:
            self[f"{ours}.bias"] = (f"generator/{theirs}/{self.bias}", vector)

    def norm(self, ours: str, theirs: str) -> None:
        self[f"{ours}.weight"] = (f"generator/{theirs}/gamma", vector)
        self[f"{ours}.bias"] = (f"generator/{theirs}/beta", vector)


def sv2p_names(model: SV2P) -> Names:
    """Return the public name and layout of every weight of an SV2P."""
    table = _Table("weights", "biases")
    table.layer("predictor.e0", "scale1_conv1", convolution, bias=False)
    table.norm("predictor.e0_norm", "scale1_conv1/layer_norm1")
    for i, name in ((1, "conv2"), (2, "conv3"), (3, "conv4"), (4, "convt1"), (5, "convt2")):
        table.layer(f"predictor.e{i}", name, convolution)
    table.layer("predictor.e6", "convt3", convolution, bias=False)
    table.norm("predictor.e6_norm", "convt3/layer_norm9")
    for i in range(7):
        table.layer(f"predictor.lstms.{i}.gates", f"state{i + 1}/Gates", convolution)
        table.norm(f"predictor.norms.{i}", f"layer_norm{i + 2}")
    table.layer("predictor.masks", "convt7", pointwise)
    if model.config.transformation == "dna":
        table.layer("predictor.kernels", "convt4", pointwise)
    else:
        table.layer("predictor.scratch", "convt4", pointwise)
        table.layer("predictor.kernels", "cdna_params", dense)
    tower = [
        ("trunk.0", "trunk.1", "latent_conv1", "latent_norm1"),
        ("trunk.3", "trunk.4", "latent_conv2", "latent_norm2"),
        ("trunk.6", "trunk.7", "latent_conv3", "latent_norm3"),
        ("mean.0", "mean.1", "latent_mean", "latent_norm_mean"),
        ("log_variance.0", "log_variance.1", "latent_std", "latent_std_norm"),
    ]
    for layer, norm, their_layer, their_norm in tower:
        table.layer(f"tower.{layer}", their_layer, convolution, bias=False)
        table.norm(f"tower.{norm}", f"{their_layer}/{their_norm}")
    return table


def savp_names(model: SAVP) -> Names:
    """Return the public name and layout of every weight of a SAVP."""
    table = _Table("kernel", "bias")
    _add_cell(table, model)
    if model.encoder is not None:
        for i in range(1, 4):
            table.layer(f"encoder.convolutions.{i - 1}", f"encoder/layer_{i}/conv2d", convolution)
        for i in range(2, 4):
            table.norm(f"encoder.norms.{i - 2}", f"encoder/layer_{i}/InstanceNorm")
        table.layer("encoder.mean", "encoder/z_mu/dense", dense)
        table.layer("encoder.log_variance", "encoder/z_log_sigma_sq/dense", dense)
    return table | _discriminator_names(model)


def _add_cell(table: _Table, model: SAVP) -> None:
    cell = "rnn/savp_cell"
    layers = [("down", i, "conv_pool2d") for i in range(len(model.cell.down))]
    layers += [("up", i, "upsample_conv2d") for i in range(len(model.cell.up))]
    for number, (half, i, kind) in enumerate(layers):
        ours, module = f"cell.{half}.{i}", getattr(model.cell, half)[i]
        table.layer(f"{ours}.convolution", f"{cell}/h{number}/{kind}", convolution)
        table.norm(f"{ours}.norm", f"{cell}/h{number}/InstanceNorm")
        if module.lstm is not None:
            lstm = f"{cell}/lstm_h{number}/basic_conv2dlstm_cell"
            table.layer(f"{ours}.lstm.gates", lstm, convolution, bias=False)
            table.norm(f"{ours}.lstm.norm_gates", f"{lstm}/input_transform_forget_output")
            table.norm(f"{ours}.lstm.norm_cell", f"{lstm}/state")
    if model.cell.z_lstm is not None:
        table.layer("cell.z_lstm", f"{cell}/lstm_z/basic_lstm_cell", dense)
    table.layer("cell.masks", f"{cell}/masks/conv2d", convolution)
    heads = [("scratch", "scratch", "scratch_image"), ("mask_features", "masks", None)]
    if model.config.transformation == "cdna":
        table.layer("cell.motion", f"{cell}/cdna_kernels/dense", dense)
    elif model.config.transformation == "dna":
        heads.append(("motion", "dna_kernel", "dna_kernels"))
    else:
        heads.append(("motion", "flow", "flows"))
    for ours, hidden, output in heads:
        hidden = f"{cell}/h{len(layers)}_{hidden}"
        table.layer(f"cell.{ours}.0", f"{hidden}/conv2d", convolution)
        table.norm(f"cell.{ours}.1", f"{hidden}/InstanceNorm")
        if output is not None:
            table.layer(f"cell.{ours}.3", f"{cell}/{output}/conv2d", convolution)


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
