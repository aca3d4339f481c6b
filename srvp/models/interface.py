"""What every model offers: the contract that training, evaluation, figures and commands rely on.

A model is one file of `srvp.models`. `model: {name: svg, ...}` in `params.yaml` names the file; its
class `Config` takes the other keys, and `Config.build` makes the model. Nothing is registered.

    configuration   Config(ModelConfig): sizes and objective, frames needed, options of prediction
    training        draw_randomness -> loss, for each objective of the step, in order
    prediction      condition (once per clip) -> predict (for any number of samples)

Shapes: B clips, T frames, C channels, H = W pixels, A action values; S samples per clip.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from srvp.schema import ConfigError, check_value, suggest


def generator(seed: int, n: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the n-th random generator of a seed: of a training step, say, or of a test clip."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + n) % 2**64)


class Clips(NamedTuple):
    """A batch of video clips, with the actions that were taken in them, if the data have any."""

    frames: Tensor  # (B, T, C, H, W), float in [0, 1]
    actions: Tensor | None = None  # (B, at least T, A): the action at t leads from frame t to t + 1

    def until(self, n: int) -> "Clips":
        """Return the first n frames, with all actions: those to come are a plan that is known."""
        return Clips(self.frames[:, :n], self.actions)

    def after(self, n: int) -> Tensor:
        """Return the frames that follow the first n: `(B, T - n, C, H, W)`."""
        return self.frames[:, n:]


class Given(NamedTuple):
    """What a model keeps of the frames it was given."""

    count: int  # B
    frames: int  # T
    state: Any  # the model's own


class VideoShape(NamedTuple):
    """What a model has to know of its videos."""

    channels: int  # C: 1 (grey) or 3 (colour)
    size: int = 64  # H = W
    actions: int = 0  # A: action values per frame that the model is given; 0: it is given none


@dataclass(frozen=True)
class ModelConfig(ABC):
    """The keys of `model` in `params.yaml`, but for its name. Each model's `Config` extends it."""

    # What figures call the terms of the loss, with units; others are called by their name.
    terms: ClassVar[Mapping[str, str]] = {}
    takes_actions: ClassVar[bool] = False  # whether `data.actions` may be more than 0

    @abstractmethod
    def build(self, shape: VideoShape) -> "VideoModel":
        """Make the model, its weights drawn from PyTorch's global random state."""

    def check_training(self, frames: int) -> None:  # noqa: B027 (few models need it)
        """Make sure that the model can learn from sequences of `frames` frames.

        Raises:
            ConfigError: it cannot.
        """

    @property
    def frames_needed(self) -> int:
        """Frames that the model must be given before it can predict."""
        return 1

    @property
    def predict_options(self) -> Mapping[str, Any]:
        """Keyword arguments of `predict` that only this model has, with their type hints.

        All but `every_step` may be in an entry of `evaluation.predict`: `{euler_steps: 2}`.
        """
        return {}

    def describe_options(self, options: Mapping[str, Any]) -> str:
        """Name such an entry in tables: `euler_steps = 2`."""
        return ", ".join(f"{key} = {value}" for key, value in options.items())

    def option_names(self, name: str, predict: Sequence[Mapping[str, Any]]) -> list[str]:
        """Name all entries of `evaluation.predict` in tables: `quick`, `quick, euler_steps = 2`."""
        texts = map(self.describe_options, predict[1:])
        return [name, *(f"{name}, {text}" if text else name for text in texts)]


class VideoModel(nn.Module, ABC):
    """A stochastic video predictor.

    Randomness is an argument of every method, so that each is a function. A model with several
    optimizers, such as a GAN, or with phases of training overrides `parameter_groups` and
    `objectives`.

    Attributes:
        config: the model's `Config`.
        shape: of its videos.
    """

    def __init__(self, config: ModelConfig, shape: VideoShape):
        super().__init__()
        self.config = config
        self.shape = shape

    # Training.

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by the name of the optimizer that moves them.

        `training.optimizers` may give each its own learning rate and betas.
        """
        return {"model": list(self.parameters())}

    def objectives(self, step: int) -> dict[str, tuple[str, ...]]:
        """Return what to minimise at a training step (from 1), in order.

        The loop computes the loss of an objective after the groups of the ones before have moved.

        Returns:
            By name of the objective, the groups of parameters that it moves. Others stay as they
            are, and so do their optimizers.
        """
        return {"loss": ("model",)}

    @abstractmethod
    def draw_noise(self, count: int, frames: int, generator: torch.Generator) -> NamedTuple:
        """Draw the standard normal noise of `count` sequences of `frames` frames.

        Given frames count, too. Every field is a tensor with a row per sequence, `(count, ...)`, on
        the generator's device.
        """

    def draw_randomness(
        self, count: int, frames: int, step: int, generator: torch.Generator
    ) -> NamedTuple:
        """Draw everything random in a training step (from 1), by default the noise.

        Fields are tensors on the generator's device: `(count, ...)`, a row per sequence, or
        `()`, a number that changes with the step, such as an annealed weight.
        """
        return self.draw_noise(count, frames, generator)

    def prepare(self, clips: Clips) -> NamedTuple:
        """Compute, before the step, what a loss needs of the clips alone: no weight changes it.

        Returns:
            What `loss` is given: the fields of `clips`, and the model's own.
        """
        return clips

    def loss(
        self, clips: Clips | Tensor, randomness: NamedTuple, objective: str = "loss"
    ) -> NamedTuple:
        """Return the terms of an objective: scalar tensors, `total` (to minimise) first.

        Args:
            clips: to learn from; a tensor `(B, T, C, H, W)` stands for clips without actions.
            randomness: what `draw_randomness(B, T, step, generator)` returned.
            objective: one of those that `objectives` names.

        Raises:
            ValueError: the clips are not what the model was built for.
        """
        return self._loss(self.check_shape(clips), randomness, objective)

    @abstractmethod
    def _loss(self, clips: Clips, randomness: NamedTuple, objective: str) -> NamedTuple:
        """`loss`, of clips that were checked."""

    # Prediction.

    def condition(self, clips: Clips | Tensor) -> Given:
        """Take in the given frames, once for any number of samples.

        Args:
            clips: given frames; a tensor `(B, T, C, H, W)` stands for clips without actions. With
                actions, those of the frames to predict are in them as well.

        Raises:
            ValueError: they are not what the model was built for.
        """
        clips = self.check_clips(clips)
        return Given(*clips.frames.shape[:2], self._condition(clips))

    def predict(self, given: Given, frames: int, noise: NamedTuple, **options: Any) -> NamedTuple:
        """Sample futures.

        Args:
            given: what `condition` returned for T frames of B clips.
            frames: how many to predict, at least 1.
            noise: of S futures per clip and at least T + frames frames, the futures of a clip
                together: `draw_noise(B * S, T + frames, generator)`.
            options: those of `config.predict_options`.

        Returns:
            `x` first: predicted frames `(B * S, frames, C, H, W)`, the futures of a clip together.

        Raises:
            ValueError: the noise does not fit, or the model has no such option.
        """
        self.check_noise(noise, given, frames)
        check_options(self.config, options)
        return self._predict(given.state, frames, noise, **options)

    @torch.inference_mode()
    def futures(
        self,
        clips: Clips | Tensor,
        frames: int,
        noise: Sequence[NamedTuple],
        at_once: int,
        **options: Any,
    ) -> Iterator[Tensor]:
        """Sample many futures, in chunks that bound the memory.

        Args:
            clips: given frames, as for `condition`.
            frames: how many to predict, F.
            noise: for each clip that of its S futures: `draw_noise(S, T + F, generator)`.
            at_once: frames to predict at a time, but at least one future of each clip.
            options: those of `config.predict_options`.

        Yields:
            Predicted frames `(B, s, F, C, H, W)`, float32, without gradients, for some of the S
            futures at a time.

        Raises:
            ValueError: as `condition` and `predict`, or not every clip has noise of S futures.
        """
        given = self.condition(clips)
        counts = [len(of_clip[0]) for of_clip in noise]
        if len(counts) != given.count or len(set(counts)) > 1:
            raise ValueError(
                f"the noise is of {counts} futures, expected as many for each of the "
                f"{given.count} clips: draw_noise(futures, frames, generator) for each clip"
            )
        chunk = max(1, at_once // (given.count * frames))
        device = next(self.parameters()).device
        for first in range(0, counts[0], chunk):
            parts = [[field[first : first + chunk] for field in clip] for clip in noise]
            joined = (torch.cat(fields).to(device) for fields in zip(*parts, strict=True))
            x = self.predict(given, frames, type(noise[0])(*joined), **options).x
            yield x.float().unflatten(0, (given.count, -1))
            del x  # before the next are sampled

    @abstractmethod
    def _condition(self, clips: Clips) -> Any:
        """Return what `predict` needs of clips that were checked."""

    @abstractmethod
    def _predict(self, state: Any, frames: int, noise: NamedTuple, **options: Any) -> NamedTuple:
        """`predict` from what `_condition` returned; the arguments were checked."""

    # Checks, shared by all models.

    def check_clips(self, clips: Clips | Tensor) -> Clips:
        """Return clips that the model can take: of the right shape, and in [0, 1].

        Raises:
            ValueError: they are not.
        """
        clips = self.check_shape(clips)
        x = clips.frames
        if not x.is_floating_point() or (x.numel() and not (x.min() >= 0 and x.max() <= 1)):
            raise ValueError(
                f"the frames are {x.dtype} from {x.min():g} to {x.max():g}, expected floating "
                "point in [0, 1]: divide 8-bit frames by 255"
            )
        return clips

    def check_shape(self, clips: Clips | Tensor) -> Clips:
        """Return clips of the right shape, without a look at their values, which may be on a GPU.

        Raises:
            ValueError: the shape is wrong, frames are too few, or actions are missing.
        """
        clips = Clips(clips) if isinstance(clips, Tensor) else clips
        x, (channels, size, actions) = clips.frames, self.shape
        if x.dim() != 5 or x.shape[2:] != (channels, size, size):
            raise ValueError(
                f"the frames have shape {tuple(x.shape)}, expected (clips, frames, {channels}, "
                f"{size}, {size}): resize them, or turn them grey or coloured, first"
            )
        if x.shape[1] < self.config.frames_needed:
            raise ValueError(
                f"{x.shape[1]} frames were given, but the model needs {self.config.frames_needed}"
            )
        if actions and (clips.actions is None or clips.actions.shape[2:] != (actions,)):
            found = "none" if clips.actions is None else f"shape {tuple(clips.actions.shape)}"
            raise ValueError(
                f"the model needs actions (clips, frames, {actions}), but there are {found}"
            )
        return clips

    def check_noise(self, noise: NamedTuple, given: Given, frames: int) -> None:
        """Make sure that noise is enough for `frames` frames after the given ones.

        Raises:
            ValueError: it is not.
        """
        if frames < 1:
            raise ValueError(f"{frames} frames were asked for: expected at least 1")
        total, rows = given.frames + frames, len(noise[0])
        # The axis of frames is the one that grows with them; all others have to be equal.
        shortest, longer = (self.draw_noise(0, n, torch.Generator()) for n in (total, total + 1))
        for name, value, least, more in zip(noise._fields, noise, shortest, longer, strict=True):
            sizes = zip(value.shape[1:], least.shape[1:], more.shape[1:], strict=True)
            if len(value) != rows or any(n != a and not n >= a < b for n, a, b in sizes):
                raise ValueError(
                    f"the noise {name} has shape {tuple(value.shape)}, expected (futures, "
                    f"{', '.join(map(str, least.shape[1:]))}) for {given.frames} given and "
                    f"{frames} predicted frames: draw_noise(futures, {total}, generator)"
                )
        if rows == 0 or rows % given.count:
            raise ValueError(
                f"the noise is of {rows} futures, expected a multiple of the {given.count} clips"
            )


def check_options(config: ModelConfig, options: Mapping[str, Any], key: str = "options") -> None:
    """Make sure that a model has the options of prediction that it is given.

    Args:
        config: the model's.
        options: by name.
        key: what messages call them.

    Raises:
        ConfigError: it has not, or a value is of the wrong type.
    """
    for name, value in options.items():
        if name not in config.predict_options:
            known = suggest(name, config.predict_options)
            raise ConfigError(f"{key}.{name} is not a known key{known}")
        check_value(value, config.predict_options[name], f"{key}.{name}")
