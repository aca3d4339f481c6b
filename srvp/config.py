"""Experiments: `params.yaml` as validated, frozen objects.

An experiment has four sections, which are also what the stages of the pipeline depend on: a change
of `evaluation` does not train again. A mistake in the file is one `ConfigError` that names the key.
"""

import difflib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

Count = Annotated[int, 1]  # a whole number, at least 1
Whole = Annotated[int, 0]  # a whole number, at least 0
Real = Annotated[float, 0.0]  # a number, at least 0
Precision = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A value of `params.yaml` that cannot be used, with its key and how to mend it."""


@dataclass(frozen=True)
class DataConfig:
    """What the videos are. Frames are 64x64."""

    dataset: Literal["smmnist", "dmmnist", "kth", "human36m", "bair", "videos"]
    channels: Literal[1, 3]
    test_videos: Count  # how many, the first of the published test set
    test_frames: Count  # conditioning and predicted frames together
    seed: Whole  # of the test set and of the split into training and validation
    frame_step: Count = 1  # distance of a clip's frames in the stored video
    frame_rate: Real | None = None  # own videos: frames a second to store; all if not given
    crop: Literal["center"] | tuple[Whole, ...] | None = None  # own videos: or a box in pixels


@dataclass(frozen=True)
class ModelConfig:
    """Base of the models' own configs: what every model has to tell."""

    @property
    def frames_needed(self) -> int:
        """Frames that the model must be given before it can predict."""
        return 1

    @property
    def takes_euler_steps(self) -> bool:
        """Whether the model can predict with any number of steps per frame, or with one alone."""
        return False


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation of a model."""

    frames: Count  # length of a training sequence
    batch_size: Count
    lr: Real
    constant_steps: Whole  # optimisation steps at `lr`
    decay_steps: Whole  # then steps over which the rate falls linearly to 0
    validation_interval: Count  # steps between validations
    validation_frames: Count  # length of a validation sequence, conditioning frames included
    validation_videos: Count  # sequences of the validation fold
    validation_samples: Count  # futures per sequence, of which the best counts
    select_best: bool  # keep the weights of the best validation rather than the last
    checkpoint_interval: Count  # steps between the checkpoints that a killed run resumes from
    seed: Whole
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "float32", "bfloat16"]
    minutes: Real | None = None  # then stop with a checkpoint, to go on when called again
    init_from: str | None = None  # model file with the weights to start from
    ema: Real = 0.0  # decay of a moving average of the weights, which is then the model; 0: none
    # By torch.compile (needs a C++ compiler), on a GPU into one CUDA graph; auto: only there.
    compile: Literal["auto", True, False] = False
    warmup_steps: Whole = 0  # over which the rate first rises linearly

    def __post_init__(self) -> None:
        if self.ema >= 1:
            raise ConfigError(f"training.ema is {self.ema}; expected a decay below 1")

    @property
    def steps(self) -> int:
        """Optimisation steps in all."""
        return self.constant_steps + self.decay_steps


@dataclass(frozen=True)
class EvaluationConfig:
    """The test protocol."""

    conditioning_frames: Count
    samples: Count  # futures per video, of which the best counts
    euler_steps: tuple[Count, ...]  # per predicted frame: the protocol's, then others to compare
    batch_size: Count  # videos at a time
    frames_at_once: Count  # predicted frames at a time: lower it if memory is short
    seed: Whole
    metrics: tuple[Literal["psnr", "ssim", "lpips", "fvd"], ...] = ("psnr", "ssim", "lpips", "fvd")
    fvd_precision: Precision = "float32"  # of I3D


@dataclass(frozen=True)
class Experiment:
    """An entry of `experiments` in `params.yaml`: all that a run depends on."""

    name: str
    data: DataConfig
    model: ModelConfig  # the config of the model that the entry names
    training: TrainingConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        for key in ("crop", "frame_rate"):
            if getattr(self.data, key) is not None and self.data.dataset != "videos":
                raise ConfigError(
                    f"data.{key} is for your own videos, but data.dataset is {self.data.dataset}, "
                    "whose preprocessing is published: remove it"
                )
        if isinstance(self.data.crop, tuple) and len(self.data.crop) != 4:
            raise ConfigError(
                f"data.crop is {list(self.data.crop)}; expected [left, upper, right, lower]"
            )
        given, needed = self.evaluation.conditioning_frames, self.model.frames_needed
        if given < needed:
            raise ConfigError(
                f"evaluation.conditioning_frames is {given}, but the model needs {needed} frames: "
                "raise it, or lower the model's"
            )
        if given >= self.data.test_frames:
            raise ConfigError(
                f"evaluation.conditioning_frames is {given}, which leaves none of the "
                f"{self.data.test_frames} test frames to predict: raise data.test_frames"
            )
        if self.training.frames <= needed:
            raise ConfigError(
                f"training.frames is {self.training.frames}: it must exceed the {needed} frames "
                "that the model needs"
            )
        if self.evaluation.euler_steps != (1,) and not self.model.takes_euler_steps:
            raise ConfigError(
                f"evaluation.euler_steps is {list(self.evaluation.euler_steps)}, but the model "
                "moves from frame to frame: write [1]"
            )

    @property
    def predicted_frames(self) -> int:
        """Frames to predict in a test video."""
        return self.data.test_frames - self.evaluation.conditioning_frames


class RegisteredModel(NamedTuple):
    """What stands behind a `model.name` of `params.yaml`."""

    config: type[ModelConfig]
    build: Callable[[Any, int], Any]  # from (config, channels) to a module


MODELS: dict[str, RegisteredModel] = {}


def register_model(name: str, config: type[ModelConfig]) -> Callable[[type], type]:
    """Class decorator: let experiments choose the model by `model: {name: ...}`."""

    def register(model: type) -> type:
        MODELS[name] = RegisteredModel(config, model)
        return model

    return register


def load_experiment(path: Path, name: str) -> Experiment:
    """Read and validate the entry `name` of `experiments` in a `params.yaml`.

    Raises:
        ConfigError: the experiment is unknown, or a key or value of it is wrong. The message is
            one line that names the file and the key and says what was expected.
    """
    experiments = _read(path)["experiments"]
    try:
        if name not in experiments:
            raise ConfigError(f"experiments has no {name!r}{_suggest(name, experiments)}")
        return from_entry(name, experiments[name])
    except ConfigError as error:
        raise ConfigError(f"{Path(path).name}: {error}") from None


def to_entry(experiment: Experiment) -> dict:
    """Return the experiment as its entry of `params.yaml`, of plain JSON types."""
    names = {entry.config: name for name, entry in MODELS.items()}
    entry = asdict(experiment)
    entry["model"] = {"name": names[type(experiment.model)], **entry["model"]}
    del entry["name"]
    return entry


def from_entry(name: str, entry: Any) -> Experiment:
    """Validate an entry of `experiments` and return it as an object.

    Raises:
        ConfigError: a key or value is wrong.
    """
    key = f"experiments.{name}"
    sections = {"data": DataConfig, "training": TrainingConfig, "evaluation": EvaluationConfig}
    _check_keys(entry, {*sections, "model"}, {*sections, "model"}, key)
    built = {s: _build(config, entry[s], f"{key}.{s}") for s, config in sections.items()}
    try:
        return Experiment(name, model=_build_model(entry["model"], f"{key}.model"), **built)
    except ConfigError as error:
        raise error if str(error).startswith(key) else ConfigError(f"{key}.{error}") from None


def _read(path: Path) -> dict:
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{Path(path).name} is not valid YAML: {line}") from None
    if not isinstance(content, dict) or not isinstance(content.get("experiments"), dict):
        raise ConfigError(f"{Path(path).name} needs a section `experiments`, a name per entry")
    return content


def _build_model(section: Any, key: str) -> ModelConfig:
    name = section.get("name") if isinstance(section, Mapping) else None
    if name not in MODELS:
        raise ConfigError(f"{key}.name is {name!r}; expected one of {sorted(MODELS)}")
    return _build(MODELS[name].config, {k: v for k, v in section.items() if k != "name"}, key)


def _build(config: type, section: Any, key: str) -> Any:
    """Make the dataclass `config` of a mapping, checking every key and value."""
    required = {f.name for f in fields(config) if f.default is MISSING}
    _check_keys(section, {f.name for f in fields(config)}, required, key)
    hints = get_type_hints(config, include_extras=True)
    return config(**{k: _check_value(v, hints[k], f"{key}.{k}") for k, v in section.items()})


def _check_keys(section: Any, known: set[str], required: set[str], key: str) -> None:
    if not isinstance(section, Mapping):
        raise ConfigError(f"{key} is {section!r}; expected keys {sorted(known)}")
    for unknown in section.keys() - known:
        raise ConfigError(f"{key}.{unknown} is not a known key{_suggest(unknown, known)}")
    for missing in sorted(required - section.keys()):
        raise ConfigError(f"{key}.{missing} is missing; add it")


def _check_value(value: Any, hint: Any, key: str) -> Any:
    """Return `value` as the type that `hint` asks for, or raise."""
    if get_origin(hint) is Literal:
        if value in get_args(hint) and type(value) in map(type, get_args(hint)):
            return value
        raise ConfigError(f"{key} is {value!r}; expected one of {list(get_args(hint))}")
    if get_origin(hint) in (Union, types.UnionType):
        return _check_union(value, get_args(hint), key)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise ConfigError(f"{key} is {value!r}; expected a list such as [1, 2]")
        return tuple(_check_value(v, get_args(hint)[0], f"{key}[{i}]") for i, v in enumerate(value))
    kind, minimum = (*get_args(hint), None)[:2] if get_origin(hint) is Annotated else (hint, None)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        hint = " (write 1.0e-3 rather than 1e-3)" if kind is float and "e" in str(value) else ""
        raise ConfigError(f"{key} is {value!r}; expected {_NAMES.get(kind, kind)}{hint}")
    if minimum is not None and not value >= minimum:
        raise ConfigError(f"{key} is {value!r}; expected at least {minimum}")
    return value


def _check_union(value: Any, hints: tuple, key: str) -> Any:
    errors = []
    for hint in hints:
        try:
            return _check_value(value, hint, key)
        except ConfigError as error:
            errors.append(str(error).split("expected ")[-1])
    raise ConfigError(f"{key} is {value!r}; expected {', or '.join(errors)}")


_NAMES = {
    type(None): "null",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of {sorted(known)}"
