"""SRVP: stochastic latent residual video prediction (Franceschi et al., ICML 2020).

The generative model (section 3.1 of the paper), for a video x_1, ..., x_T:

    y_1     ~ N(0, I)                               first state
    z_{t+1} ~ N(mu_theta(y_t), sigma_theta(y_t))    stochastic variable of a frame, the prior p
    y_{t+1} = y_t + dt f_theta(y_t, z_{t+1})        residual update, `euler_steps` times per frame,
                                                    dt = 1 / euler_steps, each with the same z_{t+1}
    x_t     ~ N(g_theta(y_t, w), nu)                frame; w is the content, the same at all times

and the approximate posterior (section 3.2), with encodings h_t of the frames:

    w            from any k frames, whatever their order
    q(y_1)       from h_1, ..., h_k
    q(z_t)       from h_1, ..., h_t, by an LSTM

    frame     1      2      3    ...    T
              h_1    h_2    h_3  ...   h_T       encodings
              y_1 -> y_2 -> y_3  ...-> y_T       states
                     z_2    z_3  ...   z_T       z_t moves the state from frame t - 1 to frame t

Shapes: B clips, T frames, C channels; x (B, T, C, H, W) in [0, 1]; h (B, T, nhx);
y (B, T, ny); z (B, T - 1, nz), z[:, 0] being the paper's z_2; w (B, nh_inf).
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from srvp.models.ablations import GRUTransition, MLPTransition
from srvp.models.interface import Clips, ModelConfig, VideoModel, VideoShape
from srvp.models.parts import networks
from srvp.models.parts.fast import unroll
from srvp.schema import ConfigError, Count, Real, Whole

FRAMES_AT_ONCE = 512  # decoded together in prediction: each takes up to 1.3 MB on its way


@dataclass(frozen=True)
class Config(ModelConfig):
    """Sizes and objective, in the paper's and the authors' symbols."""

    terms = {  # noqa: RUF012 (a constant)
        "nll": "negative log-likelihood (nats)",
        "kl_y": "KL of the first state (nats)",
        "kl_z": "KL of z (nats)",
        "residual": "norm of the residuals",
    }
    architecture: Literal["dcgan", "vgg"]
    skip_connections: bool
    ny: Count  # size of the state y
    nz: Whole  # size of the stochastic variable z; 0 for the deterministic ablation without z
    inference_frames: Count  # k: frames that the content w and the first state are inferred from
    res_gain: Real  # gain of the orthogonal initialisation of f
    euler_steps: Count  # residual updates per frame in training: dt = 1 / euler_steps
    obs_scale: Real  # sqrt(nu): standard deviation of a pixel around its decoded mean
    beta_z: Real  # weight of KL(q(z) || p(z))
    transition: Literal["residual", "mlp", "gru"] = "residual"  # or one of the paper's ablations
    nf: Count = 64  # channels of the encoder's first stage
    nhx: Count = 128  # size of a frame's encoding h
    nh_inf: Count = 256  # hidden units of the inference networks, and size of w
    nlayers_inf: Count = 3  # linear maps of q(y_1)
    nh_res: Count = 512  # hidden units of the prior of z and of the dynamics f
    nlayers_res: Count = 4  # linear maps of either
    beta_y: Real = 1.0  # weight of KL(q(y_1) || p(y_1))
    l2_res: Real = 1.0  # weight of the norm of the residuals

    def __post_init__(self) -> None:
        if self.transition != "residual" and self.euler_steps != 1:
            problem = f"is {self.euler_steps}; expected 1 for the transition {self.transition}"
            raise ConfigError(f"euler_steps {problem}")

    def build(self, shape: VideoShape) -> "SRVP":
        return SRVP(self, shape)

    @property
    def frames_needed(self) -> int:
        return self.inference_frames

    @property
    def predict_options(self) -> dict[str, Any]:
        return {"euler_steps": Count, "every_step": bool} if self.transition == "residual" else {}

    def describe_options(self, options: dict[str, Any]) -> str:
        return f"dt = 1/{options['euler_steps']}" if "euler_steps" in options else ""


class Noise(NamedTuple):
    """Standard normal noise: one draw for the first state, one per later frame for z."""

    y: Tensor  # (B, ny)
    z: Tensor  # (B, T - 1, nz)


class Randomness(NamedTuple):
    """Every random choice of a training step."""

    noise: Noise
    content_frames: Tensor  # (B, k) distinct frame indices that w is inferred from
    skip_frame: Tensor  # (B,) frame index that the skip connections come from


class Inference(NamedTuple):
    """Result of inference: parameters of the posterior, content and skip maps."""

    q_y: Normal  # (B, ny)
    q_z: Normal  # (B, T - 1, nz) for T given frames
    w: Tensor  # (B, nh_inf)
    skips: list[Tensor] | None  # maps (B, C', H', W'), deepest first


class Reconstruction(NamedTuple):
    """A clip passed through the posterior: reconstruction and all that the ELBO needs."""

    x: Tensor  # (B, T, C, H, W) means of the frames
    y: Tensor  # (B, T, ny)
    q_y: Normal  # (B, ny)
    q_z: Normal  # (B, T - 1, nz)
    p_z: Normal  # (B, T - 1, nz)
    residuals: Tensor  # (B, (T - 1) * euler_steps, ny), each dt * f(y, z); empty in the ablations


class Prediction(NamedTuple):
    """Frames that follow the given ones, and their states."""

    x: Tensor  # (B, frames, C, H, W)
    y: Tensor  # (B, frames, ny)


class Loss(NamedTuple):
    """Terms of the negative ELBO, in nats per clip: summed over time, pixels and dimensions."""

    total: Tensor  # nll + beta_y kl_y + beta_z kl_z + l2_res residual
    nll: Tensor  # -log p(x | y, w), constants included
    kl_y: Tensor  # KL(q(y_1) || N(0, I))
    kl_z: Tensor  # sum over t of KL(q(z_t) || p(z_t | y_{t-1}))
    residual: Tensor  # sum over updates of the Euclidean norm of dt * f(y, z)


class ResidualTransition(MLPTransition):
    """y <- y + dt f(y, z), the Euler method for dy/dt = f: from states to the next ones."""

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


def build_transition(c: Config) -> nn.Module:
    """Build the residual transition, or the ablation that `transition` names."""
    if c.transition == "gru":
        return GRUTransition(c.ny, c.nz)
    f = networks.mlp(c.ny + c.nz, c.nh_res, c.ny, c.nlayers_res)
    networks.init_orthogonal(f, c.res_gain)
    return MLPTransition(f) if c.transition == "mlp" else ResidualTransition(f)


class SRVP(VideoModel):
    """Stochastic latent residual video predictor."""

    def __init__(self, config: Config, shape: VideoShape):
        super().__init__(config, shape)
        c = config
        self.encoder = networks.ENCODERS[c.architecture](shape, c.nf, c.nhx)
        decoder = networks.DECODERS[c.architecture]
        self.decoder = decoder(shape, c.nf, c.nh_inf + c.ny, c.skip_connections)
        self.w_frame = nn.Sequential(nn.Linear(c.nhx, c.nh_inf), nn.ReLU(inplace=True))
        self.w_video = nn.Sequential(nn.Linear(c.nh_inf, c.nh_inf), nn.Tanh())
        self.q_y = networks.mlp(c.inference_frames * c.nhx, c.nh_inf, 2 * c.ny, c.nlayers_inf)
        if c.nz:
            self.q_z_lstm = nn.LSTM(c.nhx, c.nh_inf, batch_first=True)
            self.q_z = nn.Linear(c.nh_inf, 2 * c.nz)
            self.p_z = networks.mlp(c.ny, c.nh_res, 2 * c.nz, c.nlayers_res)
        self.transition = build_transition(c)
        networks.init_convolutions(self.encoder)
        networks.init_convolutions(self.decoder)  # the rest keeps PyTorch's initialisation

    def draw_noise(self, count: int, frames: int, generator: torch.Generator) -> Noise:
        random, c = {"generator": generator, "device": generator.device}, self.config
        y = torch.randn(count, c.ny, **random)
        return Noise(y, torch.randn(count, frames - 1, c.nz, **random))

    def draw_randomness(
        self, count: int, frames: int, step: int, generator: torch.Generator
    ) -> Randomness:
        random = {"generator": generator, "device": generator.device}
        order = torch.rand(count, frames, **random).argsort(dim=1)
        noise = self.draw_noise(count, frames, generator)
        chosen = order[:, : self.config.inference_frames]
        return Randomness(noise, chosen, torch.randint(frames, (count,), **random))

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode every frame: h `(B, T, nhx)` and maps `(B, T, C', H', W')`, deepest first."""
        h, maps = self.encoder(x.flatten(0, 1))
        return h.unflatten(0, x.shape[:2]), [m.unflatten(0, x.shape[:2]) for m in maps]

    def infer(
        self,
        clips: Clips | Tensor,
        content_frames: Tensor | None = None,
        skip_frame: Tensor | None = None,
    ) -> Inference:
        """Infer content and posterior from at least k given frames.

        By number, `content_frames` `(B, k)` are the frames that w is inferred from, `skip_frame`
        `(B,)` the one that skip connections come from; by default the last k and the last.
        """
        k, x = self.config.inference_frames, self.check_shape(clips).frames
        h, skips = self._encode(x, skip_frame)
        # Autograd adds gradients of h up in this order: another would round otherwise.
        q_y, q_z = networks.softplus_normal(self.q_y(h[:, :k].flatten(1))), self.infer_z(h)
        seen = h[:, -k:] if content_frames is None else networks.pick(h, content_frames)
        return Inference(q_y, q_z, self.infer_content(seen), skips)

    def infer_content(self, h: Tensor) -> Tensor:
        """Infer w `(B, nh_inf)` from encodings `(B, k, nhx)`, whatever their order."""
        return self.w_video(self.w_frame(h).sum(dim=1))

    def infer_z(self, h: Tensor) -> Normal:
        """q(z_t | x_1, ..., x_t) for t = 2, ..., T: from `(B, T, nhx)` to `(B, T - 1, nz)`."""
        if self.config.nz == 0:
            return networks.softplus_normal(h.new_empty(len(h), h.shape[1] - 1, 0))
        return networks.softplus_normal(self.q_z(self.q_z_lstm(h)[0][:, 1:]))

    def _encode(self, x: Tensor, skip_frame: Tensor | None) -> tuple[Tensor, list[Tensor] | None]:
        # Only the maps of the skips outlive this call: compiled code would keep all of them, and
        # their gradients, until the end of the step.
        h, maps = self.encode(x)
        if not self.config.skip_connections:
            return h, None
        if skip_frame is None:
            return h, [m[:, -1] for m in maps]
        return h, [networks.pick(m, skip_frame[:, None])[:, 0] for m in maps]

    def prior(self, y: Tensor) -> Normal:
        """p(z_{t+1} | y_t): from `(..., ny)` to a distribution over `(..., nz)`."""
        if self.config.nz == 0:
            return networks.softplus_normal(y.new_empty(*y.shape[:-1], 0))
        return networks.softplus_normal(self.p_z(y))

    def rollout(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        """Unroll the states of frames 1, ..., T from y_1 `(B, ny)` and z `(B, T - 1, nz)`.

        Returns:
            States at whole times `(B, T, ny)` and residuals `(B, (T - 1) * euler_steps, ny)`.
        """
        if isinstance(self.transition, ResidualTransition) and unroll.pays(self.transition.f, y, z):
            # The same in fewer and larger products.
            states, residuals = unroll.unroll_mlp(self.transition.f, y, z, euler_steps)
            return torch.cat([y[:, None], states], dim=1), residuals
        return self._rollout(y, z, euler_steps)

    # With this loop compiled by TorchInductor (torch 2.11) on a GPU, the mean loss of some 190
    # steps was NaN, or memory was read that is not there.
    @torch.compiler.disable
    def _rollout(self, y: Tensor, z: Tensor, euler_steps: int) -> tuple[Tensor, Tensor]:
        states, residuals = [y], [y.new_empty(len(y), 0, y.shape[-1])]  # T may be 1
        for z_t in z.unbind(dim=1):
            steps, step_residuals = self.transition(states[-1], z_t, euler_steps)
            states.append(steps[:, -1])
            residuals.append(step_residuals)
        return torch.stack(states, dim=1), torch.cat(residuals, dim=1)

    def generate(
        self, y: Tensor, noise_z: Tensor, euler_steps: int, every_step: bool = False
    ) -> Tensor:
        """Unroll the states that follow y `(B, ny)` under the prior, with noise `(B, frames, nz)`.

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
        """Decode states `(B, T, ny)` with content `(B, nh_inf)` into frames `(B, T, C, H, W)`.

        Skip maps `(B / S, C', H', W')` are those of S consecutive rows each.
        """

        def decode(y: Tensor) -> Tensor:
            vectors = torch.cat([w[:, None].expand(-1, y.shape[1], -1), y], dim=-1).flatten(0, 1)
            return self.decoder(vectors, skips).unflatten(0, y.shape[:2])

        return networks.in_parts(decode, y, FRAMES_AT_ONCE)

    def forward(self, clips: Clips | Tensor, randomness: Randomness) -> Reconstruction:
        noise, content_frames, skip_frame = randomness
        q_y, q_z, w, skips = self.infer(clips, content_frames, skip_frame)
        z = networks.sample(q_z, noise.z)
        y, residuals = self.rollout(networks.sample(q_y, noise.y), z, self.config.euler_steps)
        x, p_z = self.decode(w, y, skips), self.prior(y[:, :-1])
        return Reconstruction(x, y, q_y, q_z, p_z, residuals)

    def _loss(self, clips: Clips, randomness: Randomness, objective: str) -> Loss:
        """The negative ELBO (equation 9); the pixels' likelihood keeps its constant."""
        c, x = self.config, clips.frames
        out = self(clips, randomness)
        # Scales as tensors of the device: a number would be copied there, which waits for it.
        scale, one = x.new_full((), c.obs_scale), x.new_ones(())
        nll = -Normal(out.x.float(), scale, validate_args=False).log_prob(x).sum() / len(x)
        standard = Normal(torch.zeros_like(out.q_y.mean), one, validate_args=False)
        kl_y = kl_divergence(out.q_y, standard).sum() / len(x)
        kl_z = kl_divergence(out.q_z, out.p_z).sum() / len(x)
        residual = out.residuals.norm(dim=-1).sum() / len(x)
        total = nll + c.beta_y * kl_y + c.beta_z * kl_z + c.l2_res * residual
        return Loss(total, nll, kl_y, kl_z, residual)

    _condition = infer

    def _predict(
        self,
        state: Inference,
        frames: int,
        noise: Noise,
        euler_steps: int | None = None,
        every_step: bool = False,
    ) -> Prediction:
        """Sample futures: z from the posterior for the given frames, from the prior after them.

        Without z the future is certain: the first state is then the posterior's mean. The given
        frames always take the training's Euler steps (the authors' protocol).

        `euler_steps` are the steps per predicted frame, by default as in training. With
        `every_step`, the frame after every step is returned, `euler_steps` for each whole time.
        """
        q_y, q_z, w, skips = state  # all samples of a clip share the skip maps
        samples, passed = len(noise.y) // len(w), q_z.mean.shape[1]
        z = networks.sample(networks.repeat_normal(q_z, samples), noise.z[:, :passed])
        q_y = networks.repeat_normal(q_y, samples)
        y_1 = networks.sample(q_y, noise.y) if self.config.nz else q_y.mean
        states, _ = self.rollout(y_1, z, self.config.euler_steps)
        future = noise.z[:, passed : passed + frames]
        y = self.generate(states[:, -1], future, euler_steps or self.config.euler_steps, every_step)
        return Prediction(self.decode(w.repeat_interleave(samples, dim=0), y, skips), y)
