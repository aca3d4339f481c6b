"""KVAE once more, in NumPy and float64, a video and a frame at a time: what `srvp.models.kvae` is
compared with.

It was written from a description of the authors' code, with textbook formulas: matrices are
inverted, and densities are those of the definition. Weights have TensorFlow's layout: kernels
(rows, columns, inputs, outputs), matrices (inputs, outputs). A map is flattened by row, column and
channel.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def convolve(x, kernel, bias, stride):
    """A 3x3 convolution of `(H, W, C)` with TensorFlow's padding "same", H and W being even."""
    height, width, _ = x.shape
    before = 1 if stride == 1 else 0
    padded = np.pad(x, ((before, 1), (before, 1), (0, 0)))
    out = np.zeros((height // stride, width // stride, kernel.shape[3]))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            patch = padded[i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[i, j] = np.tensordot(patch, kernel, 3) + bias
    return out


def depth_to_space(x):
    """From (H, W, 4 C) to (2 H, 2 W, C): channel 4 c + 2 i + j becomes c at offset i, j."""
    height, width, channels = x.shape
    out = np.zeros((2 * height, 2 * width, channels // 4))
    for c in range(channels // 4):
        for i in range(2):
            for j in range(2):
                out[i::2, j::2, c] = x[:, :, 4 * c + 2 * i + j]
    return out


def encode(w, x, r):
    """Mean and variance of the code of a frame (H, W, C)."""
    for kernel, bias in w["encoder"]:
        x = relu(convolve(x, kernel, bias, stride=2))
    x = x.reshape(-1)
    return x @ w["mean"][0] + w["mean"][1], r * sigmoid(x @ w["var"][0] + w["var"][1])


def decode(w, a):
    """Probabilities (H, W, C) of the pixels."""
    kernel, bias = w["dense"]
    x = (a @ kernel + bias).reshape(4, 4, -1)
    for kernel, bias in w["decoder"]:
        x = depth_to_space(relu(convolve(x, kernel, bias, stride=1)))
    kernel, bias = w["last"]
    return sigmoid(x @ kernel + bias)


def mixing(w, a, state):
    """Weights of the matrices after a code, and the state of the LSTM."""
    hidden, cell = state
    kernel, bias = w["lstm"]
    i, j, f, o = np.split(np.concatenate([a, hidden]) @ kernel + bias, 4)
    cell = cell * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
    hidden = np.tanh(cell) * sigmoid(o)
    logits = hidden @ w["alpha"][0] + w["alpha"][1]
    return np.exp(logits) / np.exp(logits).sum(), (hidden, cell)


def run_filter(w, a, observed, actions, r, q, v0):
    """Filter codes (T, M): a dict of lists over time."""
    D, M = w["A"].shape[1], len(w["a_0"])
    hidden = w["alpha"][0].shape[0]
    alpha, state = mixing(w, w["a_0"], (np.zeros(hidden), np.zeros(hidden)))
    mu, S = np.zeros(D), v0 * np.eye(D)
    out = {k: [] for k in ("mean", "cov", "mean_before", "cov_before", "A", "C", "drift", "alpha")}
    for t in range(len(a)):
        C = np.tensordot(alpha, w["C"], 1)
        expected = C @ mu
        G = C @ S @ C.T + r * np.eye(M)
        gain = observed[t] * S @ C.T @ np.linalg.inv(G)
        code = a[t] if observed[t] else expected
        mean = mu + gain @ (code - expected)
        left = np.eye(D) - gain @ C
        cov = left @ S @ left.T + r * gain @ gain.T
        next_alpha, state = mixing(w, code, state)
        A = np.tensordot(next_alpha, w["A"], 1)
        drift = np.tensordot(next_alpha, w["B"], 1) @ actions[t]
        for key, value in zip(out, (mean, cov, mu, S, A, C, drift, alpha), strict=True):
            out[key].append(value)
        mu, S, alpha = A @ mean + drift, A @ cov @ A.T + q * np.eye(D), next_alpha
    return out


def run_smoother(known):
    """Means and covariances after all codes: lists over time."""
    means, covs = [known["mean"][-1]], [known["cov"][-1]]
    for t in reversed(range(len(known["mean"]) - 1)):
        before = known["cov_before"][t + 1]
        J = known["cov"][t] @ known["A"][t].T @ np.linalg.inv(before)
        means.insert(0, known["mean"][t] + J @ (means[0] - known["mean_before"][t + 1]))
        covs.insert(0, known["cov"][t] + J @ (covs[0] - before) @ J.T)
    return means, covs


def log_density(x, mean, cov):
    """Of a multivariate normal distribution."""
    difference = x - mean
    _, log_determinant = np.linalg.slogdet(2 * np.pi * cov)
    return -0.5 * (difference @ np.linalg.inv(cov) @ difference + log_determinant)


def terms(w, x, observed, actions, eps_a, eps_z, r, q, v0):
    """The sums of each term of the objective over a video (T, H, W, C), and what led there."""
    sums = dict.fromkeys(("log_p_x", "log_q_a", "log_p_a", "log_p_z_0", "log_p_z", "log_q_z"), 0.0)
    codes = [encode(w, frame, r) for frame in x]
    a = [m + np.sqrt(v) * e if seen else np.zeros_like(m)
         for (m, v), e, seen in zip(codes, eps_a, observed, strict=True)]  # fmt: skip
    known = run_filter(w, a, observed, actions, r, q, v0)
    means, covs = run_smoother(known)
    z = [m + np.linalg.cholesky(S) @ e for m, S, e in zip(means, covs, eps_z, strict=True)]
    D, M = len(z[0]), len(a[0])
    for t in range(len(x)):
        if observed[t]:
            p = np.clip(decode(w, a[t]), 1e-6, 1 - 1e-6)
            sums["log_p_x"] += (x[t] * np.log(p) + (1 - x[t]) * np.log(1 - p)).sum()
            sums["log_q_a"] += log_density(a[t], codes[t][0], np.diag(codes[t][1]))
            sums["log_p_a"] += log_density(a[t], known["C"][t] @ z[t], r * np.eye(M))
        if t > 0:
            ahead = known["A"][t - 1] @ z[t - 1] + known["drift"][t - 1]
            sums["log_p_z"] += log_density(z[t], ahead, q * np.eye(D))
        sums["log_q_z"] += log_density(z[t], means[t], covs[t])
    sums["log_p_z_0"] = log_density(z[0], np.zeros(D), v0 * np.eye(D))
    return sums, {"codes": codes, "a": a, "known": known, "smoothed": (means, covs)}


def losses(w, x, observed, actions, eps_a, eps_z, r, q, v0, weight):
    """Each term over a batch, per observed frame, bound and loss; and what led there."""
    each = [terms(w, *video, r, q, v0)
            for video in zip(x, observed, actions, eps_a, eps_z, strict=True)]  # fmt: skip
    total = {k: sum(s[k] for s, _ in each) / observed.sum() for k in each[0][0]}
    states = total["log_p_a"] + total["log_p_z_0"] + total["log_p_z"] - total["log_q_z"]
    total["elbo"] = total["log_p_x"] + states - total["log_q_a"]
    total["total"] = -(weight * total["log_p_x"] + states - total["log_q_a"])
    return total, [inside for _, inside in each]
