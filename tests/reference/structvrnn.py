"""StructVRNN in NumPy and plain loops, float64, written from a description of the authors' code.

It shares no code with `srvp` and keeps the authors' layout: images `(N, H, W, C)` in [-1/2, 1/2].
`w` holds a model's weights by name, as arrays, and `sizes` its configuration.
"""

import math

import numpy as np


def convolve(x, kernel, bias, stride=1):
    """Convolve with TensorFlow's padding "same"; the kernel is (out, in, height, width)."""
    size, k = x.shape[1], kernel.shape[-1]
    out = math.ceil(size / stride)
    missing = max((out - 1) * stride + k - size, 0)
    before, after = missing // 2, missing - missing // 2
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    y = np.zeros((len(x), out, out, len(kernel))) + bias
    for row in range(k):
        for column in range(k):
            end = stride * (out - 1) + 1
            seen = x[:, row : row + end : stride, column : column + end : stride]
            y += seen @ kernel[:, :, row, column].T
    return y


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def softplus(x):
    return np.logaddexp(0, x)


def dense(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def coordinate_channels(x):
    n, height, width, _ = x.shape
    xs = np.broadcast_to(np.linspace(-1, 1, width)[None, None, :, None], (n, height, width, 1))
    ys = np.broadcast_to(np.linspace(1, -1, height)[None, :, None, None], (n, height, width, 1))
    return np.concatenate([x, xs, ys], axis=-1)


def encode(w, name, sizes, x):
    """Nine convolutions at the default size: two after each that opens a resolution."""
    i = 0
    while True:
        for layer in range(1 + sizes["layers_per_scale"]):
            stride = 2 if layer == 0 and i else 1
            x = leaky(convolve(x, w[f"{name}.{i}.0.weight"], w[f"{name}.{i}.0.bias"], stride))
            i += 1
        if x.shape[1] == sizes["heatmap_width"]:
            return x


def enlarge(x):
    """Double the resolution, bilinearly, corners on corners."""
    n = x.shape[1]
    for axis in (1, 2):
        x = np.moveaxis(x, axis, 0)
        rows = []
        for i in range(2 * n):
            place = i * (n - 1) / (2 * n - 1)
            low = min(int(place), n - 2)
            rows.append(x[low] * (low + 1 - place) + x[low + 1] * (place - low))
        x = np.moveaxis(np.array(rows), 0, axis)
    return x


def heat_maps(w, sizes, x):
    features = encode(w, "detector", sizes, coordinate_channels(x))
    return softplus(convolve(features, w["heat_maps.weight"], w["heat_maps.bias"]))


def keypoints(maps):
    """Heat maps (N, W, W, K) to x, y and scale (N, K, 3)."""
    n, size, _, count = maps.shape
    result = np.zeros((n, count, 3))
    for i in range(n):
        means = [maps[i, :, :, k].sum() / size**2 for k in range(count)]
        for k in range(count):
            weights = maps[i, :, :, k] + 1e-6
            for row in range(size):
                for column in range(size):
                    share = weights[row, column] / weights.sum()
                    result[i, k, 0] += share * (-1 + 2 * column / (size - 1))
                    result[i, k, 1] += share * (1 - 2 * row / (size - 1))
            result[i, k, 2] = means[k] / (1e-6 + max(means))
    return result


def draw(points, sizes):
    """Keypoints (N, K, 3) to Gaussian maps (N, W, W, K)."""
    size = sizes["heatmap_width"]
    width = 2 * (sizes["keypoint_width"] / size) ** 2
    grid = np.linspace(-1, 1, size)
    maps = np.zeros((len(points), size, size, points.shape[1]))
    for i, frame in enumerate(points):
        for k, (x, y, scale) in enumerate(frame):
            across = np.exp(-((grid - x) ** 2) / width)
            up = np.exp(-((grid[::-1] - y) ** 2) / width)
            maps[i, :, :, k] = scale * np.outer(up, across)
    return maps


def paint(w, sizes, points, first, first_points):
    """Frames (N, H, H, C) from keypoints (N, K, 3) and the first frame of each, with its own."""
    x = np.concatenate(
        [draw(points, sizes), encode(w, "appearance", sizes, first), draw(first_points, sizes)],
        axis=-1,
    )
    name = "image_decoder"
    x = coordinate_channels(x)
    x = leaky(convolve(x, w[f"{name}.join.weight"], w[f"{name}.join.bias"]))
    i = 0
    while x.shape[1] < first.shape[1]:
        x = enlarge(x)
        for layer in range(i + 1, i + 1 + sizes["layers_per_scale"]):
            kernel, bias = (w[f"{name}.layers.{layer}.0.{part}"] for part in ("weight", "bias"))
            x = leaky(convolve(x, kernel, bias))
        i += 1 + sizes["layers_per_scale"]
    return first + convolve(x, w[f"{name}.layers.{i}.weight"], w[f"{name}.layers.{i}.bias"])


def vision(w, sizes, x):
    """All terms of the vision part, for videos (B, T, H, H, C), and what they are made of."""
    b, t = x.shape[:2]
    maps = heat_maps(w, sizes, x.reshape(b * t, *x.shape[2:]))
    points = keypoints(maps).reshape(b, t, -1, 3)
    squares = 0.0
    painted = np.zeros_like(x)
    for frame in range(t):
        painted[:, frame] = paint(w, sizes, points[:, frame], x[:, 0], points[:, 0])
        squares += ((x[:, frame] - painted[:, frame]) ** 2).sum()
    maps = maps.reshape(b, t, *maps.shape[1:])
    return {
        "maps": maps,
        "keypoints": points,
        "painted": painted,
        "image": 0.5 * squares / (b * t),
        "separation": separation(points[:, : sizes["conditioning_frames"]], sizes),
        # As the authors have it: a mean over videos and maps, summed over frames, divided by B.
        "sparsity": sum(maps[:, frame].mean() for frame in range(t)) / b,
        "kernels": sum((w[k] ** 2).sum() for k in w if w[k].ndim == 4 and "heat_maps" not in k),
    }


def separation(points, sizes):
    videos, frames, count, _ = points.shape
    total = 0.0
    for video in points[..., :2]:
        centred = [video[:, k] - video[:, k].mean(axis=0) for k in range(count)]
        for i in range(count):
            for j in range(count):
                distance = ((centred[i] - centred[j]) ** 2).sum() / frames
                total += math.exp(-distance / (2 * sizes["separation_width"] ** 2)) / videos
    return (total - count) / (count * (count - 1))


def belief(w, name, x):
    """Mean and standard deviation of the prior or posterior."""
    raw = dense(w, f"{name}.2", np.maximum(dense(w, f"{name}.0", x), 0))
    return raw[: len(raw) // 2], softplus(raw[len(raw) // 2 :]) + 1e-4


def decode(w, h, z):
    hidden = np.maximum(dense(w, "keypoint_decoder.0", np.concatenate([h, z])), 0)
    return np.tanh(dense(w, "keypoint_decoder.2", hidden))


def gru(w, x, h):
    n = len(h)
    w_z, w_r, w_h = (w["cell.input.weight"][i * n : (i + 1) * n] for i in range(3))
    b_z, b_r, b_h = (w["cell.input.bias"][i * n : (i + 1) * n] for i in range(3))
    u_z, u_r, u_h = (w["cell.recurrent.weight"][i * n : (i + 1) * n] for i in range(3))
    z = np.clip(0.2 * (w_z @ x + u_z @ h + b_z) + 0.5, 0, 1)
    r = np.clip(0.2 * (w_r @ x + u_r @ h + b_r) + 0.5, 0, 1)
    candidate = np.tanh(w_h @ x + u_h @ (r * h) + b_h)
    return z * h + (1 - z) * candidate


def dynamics(w, sizes, points, eps, see_true, frozen=None):
    """Both terms of the dynamics for keypoints (B, T, K, 3), and what they are made of.

    Args:
        eps: noise (B, T, N, Z).
        see_true: (B, T) bool.
        frozen: `stopped` of another call: beliefs through which no derivative is taken.
    """
    observed, (b, t) = sizes["conditioning_frames"], points.shape[:2]
    out = {name: [] for name in ("own", "z", "p_mean", "p_std", "q_mean", "q_std", "best")}
    stopped, squares, kl = {}, 0.0, 0.0
    for video in range(b):
        h = np.zeros(sizes["rnn_size"])
        for frame in range(t):
            k = points[video, frame].reshape(-1)
            mean_p, std_p = belief(w, "p_z", h)
            if frame < observed:
                mean, std = belief(w, "q_z", np.concatenate([h, k]))
                log_ratio = np.log(std_p / std)
                spread = (std**2 + (mean - mean_p) ** 2) / (2 * std_p**2)
                kl += (log_ratio + spread - 0.5).sum() / (b * min(t, observed))
            else:
                mean, std = stopped[video, frame] = (
                    (mean_p, std_p) if frozen is None else frozen[video, frame]
                )
            latents = [mean + std * noise for noise in eps[video, frame]]
            decoded = [decode(w, h, z) for z in latents]
            best = int(np.argmin([((own - k) ** 2).mean() for own in decoded]))
            own, z = decoded[best], latents[best]
            squares += ((own - k) ** 2).sum()
            h = gru(w, np.concatenate([k if see_true[video, frame] else own, z]), h)
            for name, value in zip(out, (own, z, mean_p, std_p, mean, std, best), strict=True):
                out[name].append(value)
    arrays = {name: np.array(values).reshape(b, t, -1) for name, values in out.items()}
    return {**arrays, "stopped": stopped, "coordinates": 0.5 * squares / (b * t), "kl": kl}


def imagine(w, sizes, points, eps):
    """Keypoints (T, 3 K) that the model makes at test time of those (P, K, 3) of one video."""
    h, own = np.zeros(sizes["rnn_size"]), []
    for frame, noise in enumerate(eps):
        if frame < len(points):
            mean, std = belief(w, "q_z", np.concatenate([h, points[frame].reshape(-1)]))
        else:
            mean, std = belief(w, "p_z", h)
        z = mean + std * noise
        own.append(decode(w, h, z))
        h = gru(w, np.concatenate([own[-1], z]), h)
    return np.array(own)


def predict(w, sizes, x, frames, eps):
    """Frames (S, frames, H, H, C) after those of one video (P, H, H, C), a sample per noise."""
    points = keypoints(heat_maps(w, sizes, x))
    futures = []
    for noise in eps:
        own = imagine(w, sizes, points, noise[: len(x) + frames])[len(x) :]
        own = own.reshape(frames, -1, 3)
        first, its_points = np.repeat(x[:1], frames, 0), np.repeat(points[:1], frames, 0)
        painted = paint(w, sizes, own, first, its_points)
        futures.append(np.clip(painted, -0.5, 0.5))
    return np.array(futures)
