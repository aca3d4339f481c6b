"""SV2P and SAVP a second time, written from a description of the public code and not from ours.

Everything is as TensorFlow has it: maps are `(batch, row, column, channel)`, weights have that
code's names and layouts, and convolutions are loops over their taps. In float64, with PyTorch only
for the gradients.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Variables(dict):
    """Weights by name, drawn when they are first asked for, so that kernels and masks vary."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int, std: float | None = None, mean: float = 0.0) -> Tensor:
        """Return the variable of that name; by default, products keep the size of their inputs."""
        if std is None:
            std = 0.1 if len(shape) == 1 else math.prod(shape[:-1]) ** -0.5
        if name not in self:
            noise = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
            # What float32 can hold, so that the model has the same weights.
            self[name] = (mean + std * noise).float().double().requires_grad_()
        assert self[name].shape == shape, name
        return self[name]

    def trained(self, beginning: str) -> dict[str, Tensor]:
        """Return those whose names begin so, without the vectors of spectral norm."""
        return {n: v for n, v in self.items() if n.startswith(beginning) and not n.endswith("/u")}


class Errors(NamedTuple):
    """How far a model may be from the reference."""

    frame: float  # of frames, masks, kernels and latents
    loss: float  # of a loss term, as a share
    gradient: float  # of a norm of gradients, as a share
    step: float  # of frames after a step of Adam


# In float64, both do the same. In float32, rounding shows; instance norm magnifies it.
ERRORS = {
    torch.float64: Errors(1e-9, 1e-9, 1e-6, 1e-6),
    torch.float32: Errors(1e-5, 1e-5, 1e-3, 1e-4),
}


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """Turn the real numbers in nested tuples of tensors into another type."""
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if batch is None:
        return None
    parts = [cast(part, dtype) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def channels_last(x: Tensor) -> Tensor:
    """From (..., C, H, W) to (..., H, W, C)."""
    return x.double().movedim(-3, -1)


def as_frames(x: Tensor) -> Tensor:
    """From (..., H, W, C) to (..., C, H, W)."""
    return x.detach().movedim(-1, -3)


def assert_close(ours: Tensor, theirs: Tensor, error: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.detach(), atol=error, rtol=0)


def assert_terms_equal(ours: NamedTuple, theirs: dict, error: float) -> None:
    for name, value in ours._asdict().items():
        expected = 0.0 if theirs.get(name) is None else float(theirs[name].detach())
        assert abs(float(value.detach()) - expected) <= error * abs(expected), name


def assert_gradients_equal(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], error: float
) -> None:
    """Compare the norm of all gradients; in float64, each of them.

    Those of biases before a norm are left out, which are 0 but for rounding.
    """
    norms = [
        torch.stack([g.double().norm() for g in each.values()]).norm() for each in (ours, theirs)
    ]
    assert abs(norms[0] / norms[1] - 1) < error
    for name, gradient in ours.items():
        if gradient.dtype == torch.float64 and theirs[name].norm() > 1e-12 * norms[1]:
            assert (gradient - theirs[name]).norm() < error * theirs[name].norm(), name


# Layers.


def convolve(x: Tensor, kernel: Tensor, stride: int | tuple = 1, pads: tuple = (0, 0)) -> Tensor:
    """Correlate (B, ..., C) with a kernel (..., C, O), after zeros before and after each axis."""
    axes = kernel.dim() - 2
    strides = (stride,) * axes if isinstance(stride, int) else stride
    sizes = [x.shape[1 + a] + sum(pads) for a in range(axes)]
    padded = x.new_zeros(len(x), *sizes, x.shape[-1])
    inner = tuple(slice(pads[0], pads[0] + x.shape[1 + a]) for a in range(axes))
    padded[(slice(None), *inner)] = x
    counts = [(sizes[a] - kernel.shape[a]) // strides[a] + 1 for a in range(axes)]
    out = 0
    for tap in torch.cartesian_prod(*(torch.arange(n) for n in kernel.shape[:axes])).tolist():
        window = tuple(
            slice(tap[a], tap[a] + strides[a] * (counts[a] - 1) + 1, strides[a])
            for a in range(axes)
        )
        out = out + padded[(slice(None), *window)] @ kernel[tuple(tap)]
    return out


def same(size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, of SAME padding."""
    return (size - stride) // 2, (size - stride) - (size - stride) // 2


def convolve_up(x: Tensor, kernel: Tensor) -> Tensor:
    """A transposed convolution with a stride of 2; the kernel is (rows, columns, O, C)."""
    size, (rows, columns) = kernel.shape[0], x.shape[1:3]
    out = x.new_zeros(len(x), 2 * rows + size - 2, 2 * columns + size - 2, kernel.shape[2])
    for i in range(size):
        for j in range(size):
            place = out[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
            place += x @ kernel[i, j].T
    return out


def norm(x: Tensor, gamma: Tensor, beta: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    mean = x.mean(dim=axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=axes, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * gamma + beta


def layer_norm(v: Variables, name: str, x: Tensor) -> Tensor:
    n = x.shape[-1]
    gamma, beta = v.draw(f"{name}/gamma", n, mean=1.0), v.draw(f"{name}/beta", n)
    return norm(x, gamma, beta, (1, 2, 3), 1e-12)


def instance_norm(v: Variables, name: str, x: Tensor) -> Tensor:
    n = x.shape[-1]
    gamma, beta = v.draw(f"{name}/gamma", n, mean=1.0), v.draw(f"{name}/beta", n)
    return norm(x, gamma, beta, (1, 2), 1.001e-5)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def gated(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """New cell and output gate."""
    i, j, f, o = gates.split(c.shape[-1], dim=-1)
    return c * sigmoid(f + 1) + sigmoid(i) * torch.tanh(j), sigmoid(o)


def tiled(vector: Tensor, x: Tensor) -> Tensor:
    return vector[:, None, None, :].repeat(1, x.shape[1], x.shape[2], 1)


def normalised(taps: Tensor, axes: tuple[int, ...]) -> Tensor:
    taps = torch.clamp(taps - 1e-12, min=0) + 1e-12
    return taps / taps.sum(dim=axes, keepdim=True)


def shifted(padded: Tensor, i: int, j: int) -> Tensor:
    return padded[:, i : i + padded.shape[1] - 4, j : j + padded.shape[2] - 4]


def moved(padded: Tensor, kernels: Tensor) -> list[Tensor]:
    """Images moved by kernels (B, 5, 5, K), or per pixel (B, H, W, 5, 5, K)."""
    images = []
    for k in range(kernels.shape[-1]):
        image = 0
        for i in range(5):
            for j in range(5):
                tap = kernels[..., i, j, k]
                image = image + shifted(padded, i, j) * tap.reshape(
                    (-1, 1, 1, 1) if tap.dim() == 1 else (*tap.shape, 1)
                )
        images.append(image)
    return images


def mirrored(x: Tensor) -> Tensor:
    """Two rows and columns more on each side, the edge repeated: b a | a b c."""
    for axis in (1, 2):
        n = x.shape[axis]
        order = [1, 0, *range(n), n - 1, n - 2]
        x = torch.stack([x.select(axis, i) for i in order], dim=axis)
    return x


# SV2P.


def sv2p_cell(v: Variables, x: Tensor, z: Tensor, action, state: dict, dna: bool, every: bool):
    """One step: the next frame, masks, kernels, and (in place) the states of the LSTMs."""

    def conv(name: str, x: Tensor, out: int, size: int, stride: int, bias: bool = True) -> Tensor:
        kernel = v.draw(f"generator/{name}/weights", size, size, x.shape[-1], out)
        y = convolve(x, kernel, stride, same(size, stride))
        return y + v.draw(f"generator/{name}/biases", out) if bias else y

    def up(name: str, x: Tensor, bias: bool = True) -> Tensor:
        n = x.shape[-1]
        y = convolve_up(x, v.draw(f"generator/{name}/weights", 3, 3, n, n))[:, :-1, :-1]
        return y + v.draw(f"generator/{name}/biases", n) if bias else y

    def head(name: str, x: Tensor, out: int) -> Tensor:
        kernel = v.draw(f"generator/{name}/weights", 1, 1, out, x.shape[-1])
        return x @ kernel[0, 0].T + v.draw(f"generator/{name}/biases", out)

    def lstm(number: int, x: Tensor, n: int) -> Tensor:
        zeros = x.new_zeros(*x.shape[:3], n)
        c, h = state.get(number, (zeros, zeros))
        gates = conv(f"state{number}/Gates", torch.cat([x, h], -1), 4 * n, 5, 1)
        c, o = gated(gates, c)
        state[number] = c, torch.tanh(c) * o
        return layer_norm(v, f"generator/layer_norm{number + 1}", state[number][1])

    e0 = conv("scale1_conv1", x, 32, 5, 2, bias=False)
    e0 = torch.relu(layer_norm(v, "generator/scale1_conv1/layer_norm1", e0))
    e1 = torch.relu(conv("conv2", lstm(2, lstm(1, e0, 32), 32), 32, 3, 2))
    e2 = torch.relu(conv("conv3", lstm(4, lstm(3, e1, 64), 64), 64, 3, 2))
    e2 = torch.cat([e2, *([] if action is None else [tiled(action, e2)]), z], -1)
    h5 = lstm(5, torch.relu(conv("conv4", e2, 64, 1, 1)), 128)
    h6 = lstm(6, torch.relu(up("convt1", h5)), 64)
    h7 = lstm(7, torch.relu(up("convt2", torch.cat([h6, e1], -1))), 32)
    e6 = up("convt3", torch.cat([h7, e0], -1), bias=False)
    e6 = layer_norm(v, "generator/convt3/layer_norm9", e6)
    padded = torch.zeros(len(x), x.shape[1] + 4, x.shape[2] + 4, x.shape[3], dtype=x.dtype)
    padded[:, 2:-2, 2:-2] = x
    if dna:
        kernels = head("convt4", e6, 25)
        kernels = normalised(kernels.reshape(*kernels.shape[:3], 5, 5, 1), (3, 4))
        images = [x, *moved(padded, kernels)]
    else:
        scratch = sigmoid(head("convt4", e6, x.shape[-1]))
        flat = h5.reshape(len(x), -1)
        weights = v.draw("generator/cdna_params/weights", flat.shape[1], 250)
        taps = flat @ weights + v.draw("generator/cdna_params/biases", 250)
        kernels = normalised(taps.reshape(-1, 5, 5, 10), (1, 2))
        images = [x, scratch, *moved(padded, kernels)]
    count = 2 if dna else 12 if every else 11
    masks = torch.softmax(head("convt7", e6, count), dim=-1)
    drawn = 0
    for m in range(count):
        drawn = drawn + masks[..., m : m + 1] * images[m]
    return drawn, masks, kernels


def sv2p_tower(v: Variables, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance from all frames (B, T, H, W, C)."""

    def conv(name: str, normal: str, x: Tensor, out: int, stride: int) -> Tensor:
        kernel = v.draw(f"generator/{name}/weights", 3, 3, x.shape[-1], out)
        y = convolve(x, kernel, stride, same(3, stride))
        return layer_norm(v, f"generator/{name}/{normal}", y)

    h = torch.cat([x[:, t] for t in range(x.shape[1])], -1)
    h = torch.relu(conv("latent_conv1", "latent_norm1", h, 32, 2))
    h = torch.relu(conv("latent_conv2", "latent_norm2", h, 64, 2))
    h = torch.relu(conv("latent_conv3", "latent_norm3", h, 64, 1))
    mean = conv("latent_mean", "latent_norm_mean", h, 1, 2)
    return mean, torch.relu(conv("latent_std", "latent_std_norm", h, 1, 2)) - 5


def sv2p(v: Variables, clips, noise, true_frames, *, from_posterior, kl_weight, dna, every=False):
    """Frames, masks and kernels per step, the posterior and the loss terms of a training step.

    `noise` is (B, 1, H / 8, W / 8), or (B, T - 1, 1, H / 8, W / 8) if z is time-variant.
    """
    x = channels_last(clips.frames)
    noise = channels_last(noise)
    mean, log_variance = sv2p_tower(v, x)
    state, drawn = {}, []
    for t in range(x.shape[1] - 1):
        z = noise[:, t] if noise.dim() == 5 else noise
        if from_posterior:
            z = mean + torch.exp(log_variance / 2) * z
        frame = x[:, t]
        if t:
            frame = torch.stack(
                [x[b, t] if true_frames[b, t] else drawn[-1][0][b] for b in range(len(x))]
            )
        action = None if clips.actions is None else clips.actions[:, t].double()
        drawn.append(sv2p_cell(v, frame, z, action, state, dna, every))
    frames = torch.stack([d[0] for d in drawn], 1)
    mse = ((frames - x[:, 1:]) ** 2).mean()
    kl = 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance).mean()
    return {
        "frames": frames,
        "masks": [d[1] for d in drawn],
        "kernels": [d[2] for d in drawn],
        "mean": mean,
        "log_variance": log_variance,
        "mse": mse,
        "kl": kl,
        "total": mse + kl_weight * kl,
    }


# SAVP.


def savp_encoder(v: Variables, pairs: Tensor, nef: int, nz: int) -> tuple[Tensor, Tensor]:
    h = pairs
    for i, width in enumerate((nef, 2 * nef, 4 * nef), 1):
        name = f"generator/encoder/layer_{i}"
        kernel = v.draw(f"{name}/conv2d/kernel", 4, 4, h.shape[-1], width)
        h = convolve(h, kernel, 2, (1, 1)) + v.draw(f"{name}/conv2d/bias", width)
        if i > 1:
            h = instance_norm(v, f"{name}/InstanceNorm", h)
        h = torch.where(h > 0, h, 0.2 * h)
    h = h.mean(dim=(1, 2))
    outputs = []
    for name in ("generator/encoder/z_mu/dense", "generator/encoder/z_log_sigma_sq/dense"):
        weights = v.draw(f"{name}/kernel", 4 * nef, nz)
        outputs.append(h @ weights + v.draw(f"{name}/bias", nz))
    return outputs[0], torch.clamp(outputs[1], -10, 10)


def savp_cell(v: Variables, x: Tensor, first: Tensor, z, action, state: dict, ngf: int, how: str):
    """One step of the generator at 64 (or 32) pixels."""
    root = "generator/rnn/savp_cell"
    y = []
    if z.shape[-1]:
        n = z.shape[-1]
        c, h = state.get("z", (torch.zeros_like(z), torch.zeros_like(z)))
        name = f"{root}/lstm_z/basic_lstm_cell"
        gates = torch.cat([z, h], -1) @ v.draw(f"{name}/kernel", 2 * n, 4 * n)
        c, o = gated(gates + v.draw(f"{name}/bias", 4 * n), c)
        state["z"] = c, torch.tanh(c) * o
        y = [state["z"][1]]
    if action is not None:
        y = [action, *y]
    y = torch.cat(y, -1) if y else x.new_zeros(len(x), 0)

    def with_y(h: Tensor) -> Tensor:
        return torch.cat([h, tiled(y, h)], -1)

    def conv(name: str, h: Tensor, out: int) -> Tensor:
        kernel = v.draw(f"{root}/{name}/conv2d/kernel", 3, 3, h.shape[-1], out)
        return convolve(h, kernel, 1, (1, 1)) + v.draw(f"{root}/{name}/conv2d/bias", out)

    def hidden(name: str, h: Tensor) -> Tensor:
        return torch.relu(instance_norm(v, f"{root}/{name}/InstanceNorm", conv(name, h, ngf)))

    def pooled(name: str, h: Tensor, size: int, out: int) -> Tensor:
        kernel = v.draw(f"{root}/{name}/conv_pool2d/kernel", size, size, h.shape[-1], out)
        h = convolve(h, kernel, 1, (size // 2, size // 2))
        h = (h[:, ::2, ::2] + h[:, 1::2, ::2] + h[:, ::2, 1::2] + h[:, 1::2, 1::2]) / 4
        h = h + v.draw(f"{root}/{name}/conv_pool2d/bias", out)
        return torch.relu(instance_norm(v, f"{root}/{name}/InstanceNorm", h))

    def upsampled(name: str, h: Tensor, out: int) -> Tensor:
        n = h.shape[-1]
        row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 4
        spread = (row[:, None] * row)[..., None, None] * torch.eye(n, dtype=torch.float64)
        kernel = v.draw(f"{root}/{name}/upsample_conv2d/kernel", 3, 3, n, out)
        h = convolve(convolve_up(h, spread), kernel)
        h = h + v.draw(f"{root}/{name}/upsample_conv2d/bias", out)
        return torch.relu(instance_norm(v, f"{root}/{name}/InstanceNorm", h))

    def lstm(number: int, h: Tensor) -> Tensor:
        n = h.shape[-1]
        zeros = torch.zeros_like(h)
        c, before = state.get(number, (zeros, zeros))
        name = f"{root}/lstm_h{number}/basic_conv2dlstm_cell"
        inputs = torch.cat([with_y(h), before], -1)
        gates = convolve(inputs, v.draw(f"{name}/kernel", 5, 5, inputs.shape[-1], 4 * n), 1, (2, 2))
        c, o = gated(instance_norm(v, f"{name}/input_transform_forget_output", gates), c)
        c = instance_norm(v, f"{name}/state", c)
        state[number] = c, torch.tanh(c) * o
        return state[number][1]

    levels = 3 if x.shape[1] == 64 else 2
    maps, h = [], torch.cat([x, first], -1)
    for i in range(levels):
        h = lstm(i, pooled(f"h{i}", with_y(h), 3 if i else 5, ngf * 2**i))
        maps.append(h)
    for i in range(levels):
        if i:
            h = torch.cat([h, maps[levels - 1 - i]], -1)
        last = i == levels - 1
        width = ngf if last else ngf * 2 ** (levels - 2 - i)
        h = upsampled(f"h{levels + i}", with_y(h), width)
        h = h if last else lstm(levels + i, h)
    moved_images, kernels = savp_move(v, x, maps[-1], h, hidden, conv, levels, how)
    scratch = sigmoid(conv("scratch_image", hidden(f"h{2 * levels}_scratch", h), x.shape[-1]))
    images = [*moved_images, x, first, scratch]
    masks = torch.cat([hidden(f"h{2 * levels}_masks", h), *images], -1)
    masks = torch.softmax(conv("masks", masks, 7), dim=-1)
    drawn = 0
    for m in range(7):
        drawn = drawn + masks[..., m : m + 1] * images[m]
    return drawn, masks, kernels


def savp_move(v: Variables, x: Tensor, smallest, largest, hidden, conv, levels: int, how: str):
    """The four moved images, and their kernels or flows."""
    identity = torch.zeros(5, 5, 1, dtype=torch.float64)
    identity[2, 2] = 1
    if how == "cdna":
        flat = smallest.reshape(len(x), -1)
        name = "generator/rnn/savp_cell/cdna_kernels/dense"
        taps = flat @ v.draw(f"{name}/kernel", flat.shape[1], 100) + v.draw(f"{name}/bias", 100)
        kernels = normalised(taps.reshape(-1, 5, 5, 4) + identity, (1, 2))
        return moved(mirrored(x), kernels), kernels
    if how == "dna":
        taps = conv("dna_kernels", hidden(f"h{2 * levels}_dna_kernel", largest), 100)
        kernels = normalised(taps.reshape(*x.shape[:3], 5, 5, 4) + identity, (3, 4))
        return moved(mirrored(x), kernels), kernels
    flows = conv("flows", hidden(f"h{2 * levels}_flow", largest), 8)
    flows = flows.reshape(*x.shape[:3], 2, 4)
    images = [
        torch.stack([interpolated(x[b], flows[b, ..., k]) for b in range(len(x))]) for k in range(4)
    ]
    return images, flows


def interpolated(x: Tensor, flow: Tensor) -> Tensor:
    """Pixels (H, W, C) at (row + flow_y, column + flow_x), clamped after weights were taken."""
    height, width = x.shape[:2]
    pixels = 0
    for i in (0, 1):
        for j in (0, 1):
            across, down = flow[..., 0], flow[..., 1]
            column_weight = abs(1 - j - (across - across.floor().detach()))
            row_weight = abs(1 - i - (down - down.floor().detach()))
            rows = torch.arange(height)[:, None] + down.floor().long() + i
            columns = torch.arange(width) + across.floor().long() + j
            corner = x[rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
            pixels = pixels + (row_weight * column_weight)[..., None] * corner
    return pixels


def savp_pass(v, clips, z, true_frames, ngf: int, how: str):
    """Frames (B, T - 1, H, W, C), masks and kernels of one pass."""
    x = channels_last(clips.frames)
    state, drawn = {}, []
    for t in range(x.shape[1] - 1):
        frame = x[:, t]
        if t:
            frame = torch.stack(
                [x[b, t] if true_frames[b, t] else drawn[-1][0][b] for b in range(len(x))]
            )
        action = None if clips.actions is None else clips.actions[:, t].double()
        drawn.append(savp_cell(v, frame, x[:, 0], z[:, t], action, state, ngf, how))
    return torch.stack([d[0] for d in drawn], 1), [d[1] for d in drawn], [d[2] for d in drawn]


def savp_generate(v, clips, r, *, given: int, nz: int, ngf: int, nef: int, how: str = "cdna"):
    """Both passes, and the posterior."""
    x = channels_last(clips.frames)
    means, log_variances = [], []
    for t in range(x.shape[1] - 1 if nz else 0):
        pair = [x[:, t], x[:, t + 1]]
        if clips.actions is not None:
            pair.append(tiled(clips.actions[:, t].double(), x[:, t]))
        mean, log_variance = savp_encoder(v, torch.cat(pair, -1), nef, nz)
        means.append(mean)
        log_variances.append(log_variance)
    if not nz:
        return {"prior": savp_pass(v, clips, r.prior.double(), r.true_frames[:, 1], ngf, how)}
    mean, log_variance = torch.stack(means, 1), torch.stack(log_variances, 1)
    z = mean + torch.exp(0.5 * log_variance) * r.posterior.double()
    prior = z.clone()
    for t in range(given - 1, z.shape[1]):
        prior[:, t] = r.prior[:, t].double()
    return {
        "mean": mean,
        "log_variance": log_variance,
        "posterior": savp_pass(v, clips, z, r.true_frames[:, 0], ngf, how),
        "prior": savp_pass(v, clips, prior, r.true_frames[:, 1], ngf, how),
    }


def discriminator(v: Variables, which: str, clips: Tensor, ndf: int) -> tuple[Tensor, list[Tensor]]:
    """Logits (B,) and the seven features of clips (B, L, H, W, C); `u` is left as it is."""
    root = {"posterior": "discriminator/encoder/video", "prior": "discriminator/video"}[which]

    def spectral(name: str, *shape: int) -> Tensor:
        weight = v.draw(f"{name}/kernel", *shape)
        u = v.draw(f"{name}/u", 1, shape[-1], std=1.0).detach()
        matrix = weight.reshape(-1, shape[-1])
        row = u @ matrix.T
        row = row / (row.norm() + 1e-12)
        column = row @ matrix
        column = column / (column.norm() + 1e-12)
        return weight / (row @ matrix @ column.T)

    layers = (
        ("sn_conv0_0", 3, 1, (1, 1, 1)),
        ("sn_conv0_1", 4, 2, (1, 2, 2)),
        ("sn_conv1_0", 3, 2, (1, 1, 1)),
        ("sn_conv1_1", 4, 4, (1, 2, 2)),
        ("sn_conv2_0", 3, 4, (1, 1, 1)),
        ("sn_conv2_1", 4, 8, (2, 2, 2)),
        ("sn_conv3_0", 3, 8, (1, 1, 1)),
    )
    h, features = clips, []
    for layer, size, width, stride in layers:
        name = f"{root}/{layer}/conv3d"
        kernel = spectral(name, size, size, size, h.shape[-1], width * ndf)
        h = convolve(h, kernel, stride, (1, 1)) + v.draw(f"{name}/bias", width * ndf)
        h = torch.where(h > 0, h, 0.1 * h)
        features.append(h)
    flat, name = h.reshape(len(h), -1), f"{root}/sn_fc4/dense"
    logits = flat @ spectral(name, flat.shape[1], 1) + v.draw(f"{name}/bias", 1)
    return logits[:, 0], features


def windows(x: Tensor, starts: Tensor, length: int) -> Tensor:
    return torch.stack([x[b, s : s + length] for b, s in enumerate(starts.tolist())])


def cosine_distance(fake: list[Tensor], true: list[Tensor]) -> Tensor:
    total = 0
    for a, b in zip(fake, true, strict=True):
        a = a / (a.norm(dim=-1, keepdim=True) + 1e-10)
        b = b.detach() / (b.detach().norm(dim=-1, keepdim=True) + 1e-10)
        total = total + 0.5 * ((a - b) ** 2).sum(-1).mean()
    return total


def savp_discriminator_loss(v, clips, r, out, *, weights: dict, length: int, ndf: int):
    """The discriminators' terms."""
    true, terms, total = channels_last(clips.frames)[:, 1:], {}, 0
    for axis, name in enumerate(("posterior", "prior")):
        if not weights[name]:
            continue
        starts = r.windows[:, 0, axis]
        on_true, _ = discriminator(v, name, windows(true, starts[:, 0], length), ndf)
        fake = windows(out[name][0].detach(), starts[:, 1], length)
        on_fake, _ = discriminator(v, name, fake, ndf)
        terms[name] = ((on_true - 1) ** 2).mean() + (on_fake**2).mean()
        total = total + weights[name] * terms[name]
    return {"total": total, "gan": terms.get("prior"), "vae_gan": terms.get("posterior")}


def savp_generator_loss(v, clips, r, out, *, c, ndf: int):
    """The generator's terms; `c` holds the weights."""
    true = channels_last(clips.frames)[:, 1:]
    x = out["posterior" if c.nz else "prior"][0]
    terms = {"l1": (x - true).abs().mean(), "l2": ((x - true) ** 2).mean()}
    total = c.l1_weight * terms["l1"] + c.l2_weight * terms["l2"]
    if c.nz:
        mean, lv = out["mean"], out["log_variance"]
        terms["kl"] = 0.5 * (mean**2 + torch.exp(lv) - 1 - lv).sum(-1).mean()
        total = total + r.kl_weight.double() * terms["kl"]
    keys = {"posterior": "vae_gan", "prior": "gan"}
    for axis, name in enumerate(("posterior", "prior")):
        weight, features = c.gan_weights[name], c.features_weights[name]
        if not weight:
            continue
        starts = r.windows[:, 1, axis]
        fake = windows(out[name][0], starts[:, 1], c.clip_length)
        on_fake, fake_features = discriminator(v, name, fake, ndf)
        terms[keys[name]] = ((on_fake - 1) ** 2).mean()
        total = total + weight * terms[keys[name]]
        if features:
            real = windows(true, starts[:, 0], c.clip_length)
            _, real_features = discriminator(v, name, real, ndf)
            terms[f"{keys[name]}_features"] = cosine_distance(fake_features, real_features)
            total = total + features * terms[f"{keys[name]}_features"]
    return {"total": total, **terms}


def adam_step(variables: dict[str, Tensor], gradients, lr: float, betas: tuple[float, float]):
    """The first step of Adam, in place.

    TensorFlow adds epsilon before the bias is corrected, which shows in the first steps and where
    gradients are tiny; here the paper's order.
    """
    for variable, gradient in zip(variables.values(), gradients, strict=True):
        m, s = (1 - betas[0]) * gradient, (1 - betas[1]) * gradient**2
        m, s = m / (1 - betas[0]), s / (1 - betas[1])
        variable.data -= lr * m / (torch.sqrt(s) + 1e-8)
