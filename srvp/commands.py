"""What each command does. Every function imports only what it needs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from srvp.experiment import Experiment, load_experiment
from srvp.files import project_root


def _experiment(name: str) -> Experiment:
    return load_experiment(project_root() / "params.yaml", name)


def _prepared(name: str, given: Path | None) -> Path:
    return given or project_root() / "prepared" / name


def _run(name: str, given: Path | None) -> Path:
    return given or project_root() / "runs" / name


def _references() -> Path:
    return project_root() / "scratch" / "references"


def _model_file(given: str | None, default: Path | None = None) -> Path:
    """Return the file of a model that is given by its file or by the name of a pretrained one."""
    from srvp.store import pretrained_file

    if given is None:
        return default
    is_name = "/" not in given and not given.endswith(".safetensors")
    return pretrained_file(given) if is_name and not Path(given).is_file() else Path(given)


def _keep(given: Path, suffixes: Sequence[str], out: Path) -> None:
    """Make sure that results are not written over what was given, or into it."""
    for path in (out.with_suffix(suffix) if suffix else out for suffix in suffixes):
        if given.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"{path} would overwrite {given}, or lie in it: choose another --out")


def prepare(experiment: str, out: Path | None) -> None:
    """Prepare the data of an experiment: raw files -> prepared/EXPERIMENT."""
    from srvp.data import prepare

    out = _prepared(experiment, out)
    prepare(_experiment(experiment).data, project_root() / "data", out)
    print(f"{out} is ready")


def train(experiment: str, prepared: Path | None, out: Path | None, minutes: float | None) -> None:
    """Train a model: prepared/EXPERIMENT -> runs/EXPERIMENT, on all GPUs of this machine."""
    from srvp.training.launch import train_everywhere

    settings = _experiment(experiment)
    if minutes is not None:
        settings = replace(settings, training=replace(settings.training, minutes=minutes))
    folders = _prepared(experiment, prepared), _run(experiment, out)
    train_everywhere(settings, *folders, log=lambda row: print(row, flush=True))


def evaluate(
    experiment: str,
    model: str | None,
    clips: int | None,
    metrics: list[str] | None,
    precision: str | None,
    prepared: Path | None,
    out: Path | None,
) -> None:
    """Score a model on the test clips of an experiment; write what the figures show."""
    from srvp.data import open_test
    from srvp.evaluation.launch import evaluate_everywhere
    from srvp.evaluation.results import metrics_table
    from srvp.store import MODEL_FILE, load_model

    given = {"--model": model, "--clips": clips, "--metrics": metrics, "--precision": precision}
    other = [name for name, value in given.items() if value is not None]
    run = _run(experiment, None)
    if other and out is None:
        raise ValueError(f"{other[0]} needs --out: the results of {run} would be overwritten")
    protocol, out = _experiment(experiment), out or run
    own = out / MODEL_FILE  # of a run that was trained there
    default = own if own.is_file() else run / MODEL_FILE
    path = _model_file(model, default)
    changes = {"metrics": metrics and tuple(metrics), "precision": precision}
    changes = {key: value for key, value in changes.items() if value is not None}
    network, trained = load_model(path, protocol.training.device)
    data = replace(protocol.data, test_videos=clips or protocol.data.test_videos)
    evaluation = replace(protocol.evaluation, **changes)
    settings = replace(protocol, data=data, evaluation=evaluation).with_model_of(trained)
    videos = open_test(settings.data, _prepared(experiment, prepared))
    scores = evaluate_everywhere(network, settings, videos, path, out, references=_references())
    print(metrics_table(scores).round(4).to_string())


def score(predictions: Path, experiment: str, prepared: Path | None, out: Path) -> None:
    """Score the predictions of another program by the protocol of an experiment."""
    from srvp.data import open_test
    from srvp.evaluation.predictions import evaluate_predictions
    from srvp.evaluation.results import metrics_table

    _keep(predictions, ("",), out)
    settings = _experiment(experiment)
    videos = open_test(settings.data, _prepared(experiment, prepared))
    scores = evaluate_predictions(predictions, settings, videos, out, _references())
    print(metrics_table(scores).round(4).to_string())


def publish(experiment: str, folder: Path | None) -> None:
    """Copy the model of a run to pretrained/, its matrices in 8 bits."""
    from srvp.files import sha256
    from srvp.store import publish

    path = publish(_run(experiment, folder), project_root() / "pretrained" / experiment)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(path)}")


def import_savp(folder: Path, experiment: str, out: Path | None) -> None:
    """Turn a checkpoint of the public code of SAVP or SV2P into a model file."""
    from srvp.models.official_savp import load
    from srvp.store import MODEL_FILE, save_model

    settings = _experiment(experiment)
    model = load(folder, settings.data.size)
    if model.shape != settings.shape:
        raise ValueError(
            f"the checkpoint is of {model.shape}, but experiments.{experiment} is of "
            f"{settings.shape}: name another with --experiment"
        )
    settings = replace(settings, model=model.config)
    settings.check_training()  # as whoever reads the file will
    path = out or _run(experiment, None) / MODEL_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, settings, path)
    print(path)


def videos(folder: Path, experiment: str | None) -> None:
    """List the videos of a folder: what is taken, what is left out, and why. Writes nothing."""
    from srvp.data.listing import listing

    split = _experiment(experiment).data.split if experiment else {}
    print(listing(folder, **split))


def predict(
    video: Path,
    model: str,
    given: int | None,
    frames: int,
    samples: int,
    seed: int,
    crop: str | None,
    rate: float | None,
    device: str,
    out: Path,
) -> None:
    """Predict futures of any video: writes an MP4, a GIF and a picture of them."""
    from srvp.evaluation.futures import predict_futures
    from srvp.report.animation import FUTURES, write_futures
    from srvp.store import load_model

    _keep(video, FUTURES, out)
    network, experiment = load_model(_model_file(model), device)
    futures = predict_futures(
        network, experiment, video, given=given, frames=frames, samples=samples, seed=seed,
        crop=crop, rate=rate,
    )  # fmt: skip
    print(futures.how_read)
    for path in write_futures(futures, out):
        print(path)


def notebook(name: str, experiment: str | None) -> None:
    """Run a notebook with the parameters of the pipeline; its executed copy goes to the results."""
    from srvp.notebook import run_stage

    run_stage(name, experiment)
