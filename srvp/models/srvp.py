"""SRVP: stochastic latent residual video prediction (Franceschi et al., ICML 2020).

The generative model (section 3.1 of the paper), for a video x_1, ..., x_T:

    y_1     ~ N(0, I)                               first state
    z_{t+1} ~ N(mu_theta(y_t), sigma_theta(y_t))    stochastic variable of a frame, the prior p
    y_{t+1} = y_t + dt f_theta(y_t, z_{t+1})        residual update: `euler_steps` of them a frame,
                                                    dt = 1 / euler_steps, all with the same z_{t+1}
                                                    (`transition` has the paper's ablations of it)
    x_t     ~ N(g_theta(y_t, w), nu)                frame; w is the content, the same at all times

and the approximate posterior (section 3.2), with encodings h_t of the frames:

    w            from any k frames, whatever their order
    q(y_1)       from h_1, ..., h_k
    q(z_t)       from h_1, ..., h_t, by an LSTM

    frame     1      2      3    ...    T
              h_1    h_2    h_3  ...   h_T       encodings
              y_1 -> y_2 -> y_3  ...-> y_T       states
                     z_2    z_3  ...   z_T       z_t moves the state from frame t - 1 to frame t

Shapes: B videos, T frames, C channels; x (B, T, C, 64, 64) in [0, 1]; h (B, T, nhx);
y (B, T, ny); z (B, T - 1, nz), z[:, 0] being the paper's z_2; w (B, nh_inf).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from srvp.config import ConfigError, Count, ModelConfig, Real, Whole, register_model
from srvp.models import networks
from srvp.models.fast.unroll import unroll_mlp


@dataclass(frozen=True)
class SRVPConfig(ModelConfig):
    """Sizes and objective of SRVP, in the paper's and the authors' symbols."""

    architecture: Literal["dcgan", "vgg"]
    skip_connections: bool
    nf: Count  # channels of the encoder's first stage
    nhx: Count  # size of a frame's encoding h
    ny: Count  # size of the state y
    nz: Whole  # size of the stochastic variable z; 0 for the deterministic ablation without z
    transition: Literal["residual", "mlp", "gru"]  # SRVP, or one of the paper's ablations
    inference_frames: Count  # k: frames that the content w and the first state are inferred from
    nh_inf: Count  # hidden units of the inference networks, and size of w
    nlayers_inf: Count  # linear maps of q(y_1)
    nh_res: Count  # hidden units of the prior of z and of the dynamics f
    nlayers_res: Count  # linear maps of either
    res_gain: Real  # gain of the orthogonal initialisation of f
    euler_steps: Count  # residual updates per frame in training: dt = 1 / euler_steps
    obs_scale: Real  # sqrt(nu): standard deviation of a pixel around its decoded mean
    beta_y: Real  # weight of KL(q(y_1) || p(y_1))
    beta_z: Real  # weight of KL(q(z) || p(z))
    l2_res: Real  # weight of the norm of the residuals

    def __post_init__(self) -> None:
        if self.transition != "residual" and self.euler_steps != 1:
            raise ConfigError(
                f"model.euler_steps is {self.euler_steps}, but a {self.transition} transition "
                "moves from frame to frame: write 1"
            )

    @property
    def frames_needed(self) -> int:
        return self.inference_frames

    @property
    def takes_euler_steps(self) -> bool:
        return self.transition == "residual"


class Noise(NamedTuple):
    """Standard normal noise: one draw for the first state, one per later frame for z."""

    y: Tensor  # (B, ny)
    z: Tensor  # (B, T - 1, nz)


class Draws(NamedTuple):
    """Every random choice of a training step: with them, the step is a function."""

    noise: Noise
    content_frames: Tensor  # (B, k) distinct frame indices that w is inferred from
    skip_frame: Tensor  # (B,) frame index that the skip connections come from


class Inference(NamedTuple):
    """What the given frames tell: parameters of the posterior, content and skip maps."""

    q_y: Normal  # (B, ny)
    q_z: Normal  # (B, T - 1, nz) for T given frames
    w: Tensor  # (B, nh_inf)
    skips: list[Tensor] | None  # maps (B, C', H', W'), deepest first


class Reconstruction(NamedTuple):
    """A video passed through the posterior: reconstruction and all that the ELBO needs."""

    x: Tensor  # (B, T, C, 64, 64) means of the frames
    y: Tensor  # (B, T, ny)
    q_y: Normal  # (B, ny)
    q_z: Normal  # (B, T - 1, nz)
    p_z: Normal  # (B, T - 1, nz)
    residuals: Tensor  # (B, (T - 1) * euler_steps, ny), each dt * f(y, z); empty in the ablations


class Prediction(NamedTuple):
    """Frames that follow the given ones, and their states."""

    x: Tensor  # (B, frames, C, 64, 64)
    y: Tensor  # (B, frames, ny)


class Loss(NamedTuple):
    """Terms of the negative ELBO, in nats per video: summed over time, pixels and dimensions."""

    total: Tensor  # nll + beta_y kl_y + beta_z kl_z + l2_res residual
    nll: Tensor  # -log p(x | y, w), constants included
    kl_y: Tensor  # KL(q(y_1) || N(0, I))
    kl_z: Tensor  # sum over t of KL(q(z_t) || p(z_t | y_{t-1}))
    residual: Tensor  # sum over updates of the Euclidean norm of dt * f(y, z)


def _dynamics(c: SRVPConfig) -> nn.Sequential:
    f = networks.mlp(c.ny + c.nz, c.nh_res, c.ny, c.nlayers_res)
    networks.init_orthogonal(f, c.res_gain)
    return f


class Transition(nn.Module):
    """From states to the next ones. `forward` is given the z of one frame, `unroll` of many."""

    # With this loop compiled by TorchInductor (torch 2.11) on a GPU, the mean loss of some 190
    # steps was NaN, or memory was read that is not there.
    @torch.compiler.disable
    def unroll(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """Unroll the states of frames 1, ..., T from y_1 `(B, ny)` and z `(B, T - 1, nz)`.

        Returns:
            States at whole times `(B, T, ny)` and residuals `(B, (T - 1) * euler_steps, ny)`.
        """
        states, residuals = [y], [y.new_empty(len(y), 0, y.shape[-1])]  # T may be 1
        for z_t in z.unbind(dim=1):
            steps, step_residuals = self(states[-1], z_t, euler_steps)
            states.append(steps[:, -1])
            residuals.append(step_residuals)
        return torch.stack(states, dim=1), torch.cat(residuals, dim=1)


class ResidualTransition(Transition):
    """y <- y + dt f(y, z), the Euler method for dy/dt = f: the transition of SRVP."""

    def __init__(self, c: SRVPConfig):
        super().__init__()
        self.f = _dynamics(c)

    def forward(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """Move states `(B, ny)` from one frame to the next, all steps with the same z `(B, nz)`.

        Returns:
            The states after every step and their residuals dt f(y, z), `(B, euler_steps, ny)`.
        """
        states, residuals = [], []
        for _ in range(euler_steps):
            residuals.append(self.f(torch.cat([y, z], dim=-1)) / euler_steps)
            y = y + residuals[-1]
            states.append(y)
        return torch.stack(states, dim=1), torch.stack(residuals, dim=1)

    def unroll(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """As `Transition.unroll`; on a GPU, which small products keep waiting, by `unroll_mlp`."""
        if not y.is_cuda or z.shape[1] == 0:
            return super().unroll(y, z, euler_steps)
        states, residuals = unroll_mlp(self.f, y, z, euler_steps)
        return torch.cat([y[:, None], states], dim=1), residuals


class MLPTransition(Transition):
    """y_{t+1} = f(y_t, z_{t+1}): the ablation without the identity of the residual update."""

    def __init__(self, c: SRVPConfig):
        super().__init__()
        self.f = _dynamics(c)

    def forward(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """As `ResidualTransition`, in one step and without residuals."""
        return _one_step(self.f(torch.cat([y, z], dim=-1)), euler_steps)


class GRUTransition(Transition):
    """y_{t+1} = GRU(y_t, z_{t+1}): the ablation with a gated cell, y its hidden state."""

    def __init__(self, c: SRVPConfig):
        super().__init__()
        self.cell = nn.GRUCell(c.nz, c.ny)

    def forward(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """As `ResidualTransition`, in one step and without residuals."""
        return _one_step(self.cell(z, y), euler_steps)


def _one_step(y: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
    if euler_steps != 1:
        raise ValueError(f"{euler_steps} Euler steps asked for: this transition knows frames only")
    return y[:, None], y.new_empty(len(y), 0, y.shape[-1])


TRANSITIONS = {"residual": ResidualTransition, "mlp": MLPTransition, "gru": GRUTransition}


@register_model("srvp", SRVPConfig)
class SRVP(nn.Module):
    """Stochastic latent residual video predictor.

    Args:
        config: sizes and objective.
        channels: of the frames, C.
    """

    def __init__(self, config: SRVPConfig, channels: int):
        super().__init__()
        c = self.config = config
        self.channels = channels
        self.encoder = networks.ENCODERS[c.architecture](channels, c.nf, c.nhx)
        self.decoder = networks.DECODERS[c.architecture](
            channels, c.nf, c.nh_inf + c.ny, c.skip_connections
        )
        self.w_frame = nn.Sequential(nn.Linear(c.nhx, c.nh_inf), nn.ReLU(inplace=True))
        self.w_video = nn.Sequential(nn.Linear(c.nh_inf, c.nh_inf), nn.Tanh())
        self.q_y = networks.mlp(c.inference_frames * c.nhx, c.nh_inf, 2 * c.ny, c.nlayers_inf)
        if c.nz:
            self.q_z_lstm = nn.LSTM(c.nhx, c.nh_inf, batch_first=True)
            self.q_z = nn.Linear(c.nh_inf, 2 * c.nz)
            self.p_z = networks.mlp(c.ny, c.nh_res, 2 * c.nz, c.nlayers_res)
        self.transition = TRANSITIONS[c.transition](c)
        networks.init_convolutions(self.encoder)
        networks.init_convolutions(self.decoder)  # the rest keeps PyTorch's initialisation

    def draw_noise(self, videos: int, frames: int, generator: torch.Generator) -> Noise:
        """Draw the noise of `videos` sequences of `frames` frames, given and predicted ones."""
        c, device = self.config, generator.device
        return Noise(
            y=torch.randn(videos, c.ny, generator=generator, device=device),
            z=torch.randn(videos, frames - 1, c.nz, generator=generator, device=device),
        )

    def draw(self, videos: int, frames: int, generator: torch.Generator) -> Draws:
        """Draw the randomness of a training step on `videos` sequences of `frames` frames."""
        device = generator.device
        order = torch.rand(videos, frames, generator=generator, device=device).argsort(dim=1)
        return Draws(
            noise=self.draw_noise(videos, frames, generator),
            content_frames=order[:, : self.config.inference_frames],
            skip_frame=torch.randint(frames, (videos,), generator=generator, device=device),
        )

    # Inference: from frames to the posterior.

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode every frame: h `(B, T, nhx)` and maps `(B, T, C', H', W')`, deepest first."""
        h, maps = self.encoder(x.flatten(0, 1))
        return h.unflatten(0, x.shape[:2]), [m.unflatten(0, x.shape[:2]) for m in maps]

    def infer(
        self, x: Tensor, content_frames: Tensor | None = None, skip_frame: Tensor | None = None
    ) -> Inference:
        """Infer content and posterior from frames `(B, T, C, 64, 64)`, T at least k.

        Args:
            x: the given frames.
            content_frames: `(B, k)` indices of the frames that w is inferred from; by default the
                last k, as the authors do outside training.
            skip_frame: `(B,)` index of the frame that skip connections come from; by default the
                last one.
        """
        k = self.config.inference_frames
        if x.shape[1] < k:
            raise ValueError(f"{x.shape[1]} frames given; the model needs {k} (inference_frames)")
        h, skips = self._encode(x, skip_frame)
        return Inference(
            q_y=_normal(self.q_y(h[:, :k].flatten(1))),
            q_z=self.infer_z(h),
            w=self.infer_content(h[:, -k:] if content_frames is None else _pick(h, content_frames)),
            skips=skips,
        )

    def infer_content(self, h: Tensor) -> Tensor:
        """Infer w `(B, nh_inf)` from encodings `(B, k, nhx)`, whatever their order."""
        return self.w_video(self.w_frame(h).sum(dim=1))

    def infer_z(self, h: Tensor) -> Normal:
        """q(z_t | x_1, ..., x_t) for t = 2, ..., T: from `(B, T, nhx)` to `(B, T - 1, nz)`."""
        if self.config.nz == 0:
            return _normal(h.new_empty(len(h), h.shape[1] - 1, 0))
        return _normal(self.q_z(self.q_z_lstm(h)[0][:, 1:]))

    def _encode(self, x: Tensor, skip_frame: Tensor | None) -> tuple[Tensor, list[Tensor] | None]:
        # Of the maps, none but those of the skips outlive this call: compiled code would keep all
        # of them, and their gradients, until the end of the step.
        h, maps = self.encode(x)
        if not self.config.skip_connections:
            return h, None
        if skip_frame is None:
            return h, [m[:, -1] for m in maps]
        return h, [_pick(m, skip_frame[:, None])[:, 0] for m in maps]

    # Generation: from states to frames.

    def prior(self, y: Tensor) -> Normal:
        """p(z_{t+1} | y_t): from `(..., ny)` to a distribution over `(..., nz)`."""
        if self.config.nz == 0:
            return _normal(y.new_empty(*y.shape[:-1], 0))
        return _normal(self.p_z(y))

    def rollout(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """Unroll the states of frames 1, ..., T from y_1 `(B, ny)` and z `(B, T - 1, nz)`.

        Returns:
            States at whole times `(B, T, ny)` and residuals `(B, (T - 1) * euler_steps, ny)`.
        """
        return self.transition.unroll(y, z, euler_steps)

    def generate(
        self, y: Tensor, noise_z: Tensor, euler_steps: int, every_step: bool = False
    ) -> Tensor:
        """Unroll states under the prior, from a frame's `(B, ny)`, without that frame.

        Args:
            y: states to start from.
            noise_z: standard normal `(B, frames, nz)`.
            euler_steps: steps per frame.
            every_step: also return the states between frames, `euler_steps` per frame.

        Returns:
            States `(B, frames, ny)`, or `(B, frames * euler_steps, ny)` with `every_step`.
        """
        states = []
        for noise in noise_z.unbind(dim=1):
            steps, _ = self.transition(y, networks.sample(self.prior(y), noise), euler_steps)
            y = steps[:, -1]
            states.append(steps if every_step else steps[:, -1:])
        return torch.cat(states, dim=1)

    def decode(self, w: Tensor, y: Tensor, skips: list[Tensor] | None) -> Tensor:
        """Decode states `(B, T, ny)` with content `(B, nh_inf)` into frames `(B, T, C, 64, 64)`.

        Skip maps `(B / S, C', H', W')` are those of S consecutive rows each.
        """
        w = w[:, None].expand(-1, y.shape[1], -1)
        vectors = torch.cat([w, y], dim=-1).flatten(0, 1)
        return self.decoder(vectors, skips).unflatten(0, y.shape[:2])

    # The two passes: reconstruct given frames, predict those that follow.

    def forward(self, x: Tensor, draws: Draws) -> Reconstruction:
        """Pass a video `(B, T, C, 64, 64)` through the posterior (training)."""
        q_y, q_z, w, skips = self.infer(x, draws.content_frames, draws.skip_frame)
        z = networks.sample(q_z, draws.noise.z)
        y, residuals = self.rollout(networks.sample(q_y, draws.noise.y), z, self.config.euler_steps)
        return Reconstruction(
            x=self.decode(w, y, skips),
            y=y,
            q_y=q_y,
            q_z=q_z,
            p_z=self.prior(y[:, :-1]),
            residuals=residuals,
        )

    def loss(self, x: Tensor, draws: Draws) -> Loss:
        """The negative ELBO of videos `(B, T, C, 64, 64)`, averaged over B (equation 9).

        Every term is a sum over frames, pixels and dimensions, divided by the number of videos
        once. The pixels' likelihood keeps its constant, so that the loss can be negative.
        """
        c, out, videos = self.config, self(x, draws), len(x)
        # Scales as tensors of the device: a number would be copied there, which waits for it.
        scale, one = x.new_full((), c.obs_scale), x.new_ones(())
        nll = -Normal(out.x.float(), scale, validate_args=False).log_prob(x).sum() / videos
        standard = Normal(torch.zeros_like(out.q_y.mean), one, validate_args=False)
        kl_y = kl_divergence(out.q_y, standard).sum() / videos
        kl_z = kl_divergence(out.q_z, out.p_z).sum() / videos
        residual = out.residuals.norm(dim=-1).sum() / videos
        total = nll + c.beta_y * kl_y + c.beta_z * kl_z + c.l2_res * residual
        return Loss(total, nll, kl_y, kl_z, residual)

    def condition(self, x: Tensor) -> Inference:
        """Take in the conditioning frames `(B, T, C, 64, 64)`, once for any number of samples."""
        return self.infer(x)

    def predict(
        self,
        given: Inference,
        frames: int,
        noise: Noise,
        euler_steps: int | None = None,
        every_step: bool = False,
    ) -> Prediction:
        """Sample futures: z from the posterior for the given frames, from the prior after them.

        Without z the future is certain: the first state is then the posterior's mean.

        Args:
            given: what `condition` returned for T frames of B videos.
            frames: how many to predict.
            noise: of S futures per video and T + frames frames, the futures of a video together:
                `draw_noise(B * S, T + frames, generator)`.
            euler_steps: steps per predicted frame, by default as in training; the given frames
                are always passed with the training's steps (the authors' protocol).
            every_step: also return what lies between frames: `euler_steps` frames for each.

        Returns:
            Predicted frames and states `(B * S, frames, ...)`.
        """
        given = _repeat(given, len(noise.y) // len(given.w))
        passed = given.q_z.mean.shape[1]
        z = networks.sample(given.q_z, noise.z[:, :passed])
        y_1 = networks.sample(given.q_y, noise.y) if self.config.nz else given.q_y.mean
        states, _ = self.rollout(y_1, z, self.config.euler_steps)
        steps = euler_steps or self.config.euler_steps
        future = noise.z[:, passed : passed + frames]
        y = self.generate(states[:, -1], future, steps, every_step)
        return Prediction(self.decode(given.w, y, given.skips), y)


def _normal(raw: Tensor) -> Normal:
    """Split the last axis into mean and raw scale; std = softplus(raw) + 1e-8."""
    mean, scale = raw.float().chunk(2, dim=-1)
    return Normal(mean, F.softplus(scale) + 1e-8, validate_args=False)


def _pick(sequence: Tensor, frames: Tensor) -> Tensor:
    """Take frames `(B, n)` of a sequence `(B, T, ...)`: `(B, n, ...)`."""
    return sequence[torch.arange(len(sequence), device=sequence.device)[:, None], frames]


def _repeat(given: Inference, samples: int) -> Inference:
    """Repeat every video's inference `samples` times, copies standing together.

    But for the skip maps, which all samples share.
    """
    if samples == 1:
        return given

    def repeat(x: Tensor) -> Tensor:
        return x.repeat_interleave(samples, dim=0)

    def repeat_normal(p: Normal) -> Normal:
        return Normal(repeat(p.mean), repeat(p.stddev), validate_args=False)

    return given._replace(
        q_y=repeat_normal(given.q_y), q_z=repeat_normal(given.q_z), w=repeat(given.w)
    )
