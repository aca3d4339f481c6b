"""Experiments: `params.yaml` as validated, frozen objects.

An experiment has four sections, which are also what the stages of the pipeline depend on: a change
of `evaluation` does not train again. A mistake in the file is one `ConfigError` that names the key.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from srvp import models
from srvp.data.config import DataConfig
from srvp.metrics.table import METRICS
from srvp.models.interface import ModelConfig, VideoShape, check_options
from srvp.schema import ConfigError, Count, Real, Whole, build, check_keys, suggest

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class OptimizerConfig:
    """What differs for one of a model's parameter groups (`VideoModel.parameter_groups`)."""

    lr: Real | None = None
    betas: tuple[Real, ...] | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation of a model."""

    frames: Count  # length of a training sequence
    batch_size: Count
    constant_steps: Whole  # optimisation steps at `lr`
    decay_steps: Whole  # then steps over which the rate falls to `final_lr`
    validation_frames: Count  # length of a validation sequence, given frames included
    lr: Real = 3.0e-4
    validation_interval: Count = 20000  # steps between validations
    validation_videos: Count = 400  # sequences of the validation fold
    validation_samples: Count = 100  # futures per sequence, of which the best counts
    select_best: bool = False  # keep the weights of the best validation rather than the last
    checkpoint_interval: Count = (
        2000  # steps between the checkpoints that a killed run resumes from
    )
    seed: Whole = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Precision = "auto"
    minutes: Real | None = None  # then stop with a checkpoint, to be resumed by the next call
    init_from: str | None = None  # model file with the weights to start from
    ema: Real = 0.0  # decay of a moving average of the weights, which is then the model; 0: none
    # By torch.compile (needs a C++ compiler), on a GPU into one CUDA graph; auto: only there.
    compile: Literal["auto", True, False] = False
    warmup_steps: Whole = 0  # over which the rate first rises linearly
    decay: Literal["linear", "cosine", "exponential"] = "linear"  # how the rate falls
    decay_interval: Count = 1  # steps between two changes of the falling rate
    final_lr: Real = 0.0  # rate at the last step, as a share of `lr`
    betas: tuple[Real, ...] = (0.9, 0.999)  # of Adam
    clip_norm: Real | None = None  # largest norm of the gradients of an objective
    clip_each: bool = False  # or, with this, of each parameter's gradient
    optimizers: Mapping[str, OptimizerConfig] = field(default_factory=dict)  # by parameter group

    def __post_init__(self) -> None:
        if self.ema >= 1:
            raise ConfigError(f"ema is {self.ema}; expected a decay below 1")
        if self.decay == "exponential" and self.decay_steps and not self.final_lr:
            raise ConfigError("final_lr is 0, which an exponential decay never reaches: raise it")
        for betas in (self.betas, *(o.betas for o in self.optimizers.values())):
            if betas is not None and (len(betas) != 2 or max(betas) >= 1):
                raise ConfigError(f"betas are {list(betas)}; expected two numbers below 1")

    @property
    def steps(self) -> int:
        """Optimisation steps in all."""
        return self.constant_steps + self.decay_steps


@dataclass(frozen=True)
class EvaluationConfig:
    """The test protocol."""

    conditioning_frames: Count  # given frames
    samples: Count = 100  # futures per clip, of which the best counts
    batch_size: Count = 16  # clips at a time
    frames_at_once: Count = 4096  # predicted frames at a time: lower it if memory is short
    seed: Whole = 1
    metrics: tuple[str, ...] = tuple(METRICS)  # rows of `srvp.metrics.table.METRICS`
    # Options of `model.predict`, one evaluation each; the first is the protocol's.
    predict: tuple[Mapping[str, Any], ...] = ({},)
    precision: Precision = "auto"  # of the decoders of SRVP and SVG, and of I3D

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in METRICS:
                raise ConfigError(f"metrics has {metric!r}{suggest(metric, METRICS)}")


@dataclass(frozen=True)
class Experiment:
    """An entry of `experiments` in `params.yaml`: all that a run depends on."""

    name: str
    data: DataConfig
    model: ModelConfig  # of the model that the entry names
    training: TrainingConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        data, given = self.data, self.evaluation.conditioning_frames
        needed = self.model.frames_needed
        if given < needed:
            raise ConfigError(
                f"evaluation.conditioning_frames is {given}, but the model needs {needed} frames: "
                "raise it, or lower the model's"
            )
        if given >= data.test_frames:
            raise ConfigError(
                f"evaluation.conditioning_frames is {given}, which leaves none of the "
                f"{data.test_frames} test frames to predict: raise data.test_frames"
            )
        if data.actions and not self.model.takes_actions:
            raise ConfigError(
                f"data.actions is {data.actions}, but the model takes no actions: write 0, or "
                "choose another model"
            )
        self._check_metrics()
        self._check_predict()

    def _check_metrics(self) -> None:
        data = self.data
        for metric in self.evaluation.metrics:
            row = METRICS[metric]
            fewest = {"test_videos": row.videos, "test_frames": row.frames, "size": row.size}
            for key, least in fewest.items():
                if getattr(data, key) < least:
                    raise ConfigError(
                        f"data.{key} is {getattr(data, key)}, but {metric} in evaluation.metrics "
                        f"needs at least {least}: raise it, or leave {metric} out"
                    )

    def _check_predict(self) -> None:
        for i, options in enumerate(self.evaluation.predict):
            check_options(self.model, options, f"evaluation.predict[{i}]")
            if "every_step" in options:
                raise ConfigError(
                    f"evaluation.predict[{i}].every_step would return more frames than are "
                    "scored: leave it out (it is for calls of `predict`)"
                )
        names = self.option_names
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ConfigError(
                    f"evaluation.predict[{i}] would have the name of predict[{names.index(name)}] "
                    f"in tables, {name!r}: leave it out, or write out what differs"
                )

    def check_training(self) -> None:
        """Make sure that the model can be trained as the experiment says.

        That is no condition of scoring a model that was trained elsewhere.

        Raises:
            ConfigError: it cannot.
        """
        training, needed = self.training, self.model.frames_needed
        given = self.evaluation.conditioning_frames
        if training.frames <= needed:
            raise ConfigError(
                f"training.frames is {training.frames}: it must exceed the {needed} frames that "
                "the model needs"
            )
        self.model.check_training(training.frames)
        if training.validation_frames <= given:
            raise ConfigError(
                f"training.validation_frames is {training.validation_frames}, which leaves none to "
                f"predict after evaluation.conditioning_frames, {given}: raise it"
            )

    @property
    def shape(self) -> VideoShape:
        """What the model has to know of the videos."""
        return VideoShape(self.data.channels, self.data.size, self.data.actions)

    @property
    def predicted_frames(self) -> int:
        """Frames to predict in a test clip."""
        return self.data.test_frames - self.evaluation.conditioning_frames

    def with_model_of(self, trained: "Experiment") -> "Experiment":
        """Return this data and protocol with the model of another experiment, under its name.

        Entries of `evaluation.predict` whose options that model lacks are left out.

        Raises:
            ConfigError: the model is for other frames, or needs more of them.
        """
        if trained.shape != self.shape:
            raise ConfigError(
                f"the model {trained.name} is for {trained.shape}, but the clips of {self.name} "
                f"are {self.shape}: choose another experiment"
            )
        known = trained.model.predict_options.keys()
        predict = tuple(entry for entry in self.evaluation.predict if entry.keys() <= known)
        evaluation = replace(self.evaluation, predict=predict or ({},))
        return replace(self, name=trained.name, model=trained.model, evaluation=evaluation)

    @property
    def option_names(self) -> list[str]:
        """What tables call the model with each entry of `evaluation.predict`."""
        return self.model.option_names(self.name, self.evaluation.predict)


def load_experiment(path: Path, name: str) -> Experiment:
    """Read and validate the entry `name` of `experiments` in a `params.yaml`.

    Raises:
        ConfigError: the experiment is unknown, or a key or value of it is wrong. The message is
            one line that names the file and the key and says what was expected.
    """
    experiments = load_params(path)["experiments"]
    try:
        if name not in experiments:
            raise ConfigError(f"experiments has no {name!r}{suggest(name, experiments)}")
        return from_entry(name, experiments[name])
    except ConfigError as error:
        raise ConfigError(f"{Path(path).name}: {error}") from None


def load_params(path: Path) -> dict:
    """Return the content of a `params.yaml`, whose `experiments` is a mapping.

    Raises:
        ConfigError: it is missing, or not of that form.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{Path(path).name} is not valid YAML: {line}") from None
    if not isinstance(content, dict) or not isinstance(content.get("experiments"), dict):
        raise ConfigError(f"{Path(path).name} needs a section `experiments`, a name per entry")
    return content


def to_entry(experiment: Experiment) -> dict:
    """Return the experiment as its entry of `params.yaml`, of plain JSON types."""
    entry = _plain({f.name: getattr(experiment, f.name) for f in fields(experiment)})
    name = type(experiment.model).__module__.removeprefix(f"{models.__name__}.")
    entry["model"] = {"name": name, **entry["model"]}
    del entry["name"]
    return entry


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_entry(name: str, entry: Any) -> Experiment:
    """Validate an entry of `experiments` and return it as an object.

    Raises:
        ConfigError: a key or value is wrong.
    """
    key = f"experiments.{name}"
    sections = {"data": DataConfig, "training": TrainingConfig, "evaluation": EvaluationConfig}
    check_keys(entry, {*sections, "model"}, {*sections, "model"}, key)
    built = {s: build(config, entry[s], f"{key}.{s}") for s, config in sections.items()}
    model = _build_model(entry["model"], f"{key}.model")
    try:
        experiment = Experiment(name, model=model, **built)
        experiment.check_training()
        return experiment
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None


def _build_model(section: Any, key: str) -> ModelConfig:
    name = section.get("name") if isinstance(section, Mapping) else None
    config = model_config(name)
    if config is None:
        found = (info.name for info in pkgutil.iter_modules(models.__path__))
        known = [other for other in found if model_config(other)]
        raise ConfigError(f"{key}.name is {name!r}{suggest(str(name), known)}")
    return build(config, {k: v for k, v in section.items() if k != "name"}, key)


def model_config(name: Any) -> type[ModelConfig] | None:
    """Return the class `Config` of the file of that name in `srvp.models`, if there is one."""
    if not (isinstance(name, str) and name.isidentifier()):
        return None
    if importlib.util.find_spec(f"{models.__name__}.{name}") is None:
        return None
    module = importlib.import_module(f"{models.__name__}.{name}")
    config = getattr(module, "Config", None)
    its_own = isinstance(config, type) and config.__module__ == module.__name__
    return config if its_own and issubclass(config, ModelConfig) else None
