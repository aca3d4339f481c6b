"""The test protocol: best of N samples per clip and metric, over the predicted frames only.

For every test clip, N futures are sampled. Each is scored frame by frame (PSNR, SSIM, LPIPS); its
score is the mean over frames. Per clip, and separately per metric, the best sample counts. The
result is the mean over clips and its 95 % interval, 1.96 standard deviations / sqrt(clips) (the
official protocol). FVD compares one random sample per clip, its given frames included and all
frames rounded down to 8 bits, with the true clips. Its mean and interval are over the first five
samples; a predictor with a single sample gets an interval over the clips.

Clips are scored in batches. Every finished batch is a file, from which a killed evaluation resumes.

Shapes: B clips, S samples of each (s at a time), T frames, of which F are predicted.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from srvp import __version__
from srvp.data.prepared import PreparedVideos
from srvp.evaluation.precision import decoding_in, settled
from srvp.evaluation.references import PSNR_CAPS, Predictor, reference_predictors
from srvp.evaluation.results import EXAMPLES, Scores, write_examples, write_scores
from srvp.evaluation.scoring import Batch, load_metrics
from srvp.experiment import EvaluationConfig, Experiment
from srvp.files import atomic_write
from srvp.metrics.table import METRICS, kind
from srvp.models.interface import Clips, VideoModel, generator

PACKAGE = Path(__file__).parents[1]


def sampler(
    model: VideoModel, config: EvaluationConfig, frames: int, options: Mapping[str, Any]
) -> Predictor:
    """Return a model as a predictor. It can also be asked for only one sample of each clip.

    The noise of a sample depends only on the seed, the clip's number and the sample's: not on the
    batch, the device, or the clips before.

    Args:
        model: in evaluation mode.
        config: the protocol.
        frames: to predict, F.
        options: of the model's prediction, an entry of `evaluation.predict`.
    """

    def predict(
        given: Clips, numbers: list[int], only: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        total = given.frames.shape[1] + frames
        # On the CPU, so that it is the same anywhere.
        generators = [generator(config.seed, number) for number in numbers]
        noise = [model.draw_noise(config.samples, total, random) for random in generators]
        if only is not None:
            noise = [type(n)(*(x[[i]] for x in n)) for n, i in zip(noise, only, strict=True)]
        with decoding_in(model, config.precision, given.frames.device):
            yield from model.futures(given, frames, noise, config.frames_at_once, **options)

    return predict


class Part(NamedTuple):
    """Predictors of an evaluation that are scored together, and where finished batches are."""

    predictors: dict[str, Predictor]
    partial: Path


def parts(
    model: VideoModel,
    experiment: Experiment,
    videos: PreparedVideos,
    out: Path,
    references: Path | None,
) -> list[Part]:
    """Return the model with each entry of `evaluation.predict`, and the reference predictors.

    The model is put into evaluation mode.

    Args:
        model, experiment, videos, out, references: as for `evaluate_experiment`.
    """
    # Convolutions are faster this way, on a CPU as on a GPU.
    model.eval().to(memory_format=torch.channels_last)
    config, frames = experiment.evaluation, experiment.predicted_frames
    samplers = [sampler(model, config, frames, options) for options in config.predict]
    names = model.config.option_names(experiment.name, config.predict)
    partial = partial_folder(out, model_digest(model), config, videos)
    device = next(model.parameters()).device
    return [
        Part(dict(zip(names, samplers, strict=True)), partial),
        reference_part(experiment, videos, device, references or out),
    ]


def reference_part(
    experiment: Experiment, videos: PreparedVideos, device: torch.device, folder: Path
) -> Part:
    """Return the reference predictors; evaluations of the same test set can share the folder."""
    config = replace(experiment.evaluation, predict=({},))  # options of models
    if not kind(config.metrics, "sets"):
        config = replace(config, precision="float32")  # of I3D: not computed
    partial = partial_folder(folder, f"references {experiment.data}", config, videos)
    return Part(reference_predictors(experiment, videos, device), partial)


# Every finished batch is a file.


def batch_files(
    videos: PreparedVideos, config: EvaluationConfig, partial: Path
) -> dict[Path, list[int]]:
    """Return the file of every batch, with the numbers of its clips, which its name tells."""
    count, predicted = len(videos.clips), videos.clip_frames - config.conditioning_frames
    size = max(1, min(config.batch_size, config.frames_at_once // predicted))
    batches = [list(range(i, min(i + size, count))) for i in range(0, count, size)]
    return {partial / f"{b[0]:05d}-{b[-1]:05d}.safetensors": b for b in batches}


def score_batches(
    batches: Mapping[Path, list[int]],
    predictors: Mapping[str, Predictor],
    videos: PreparedVideos,
    config: EvaluationConfig,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Write the files of the batches that have none: clips to futures to scores."""
    todo = {path: numbers for path, numbers in batches.items() if not is_whole(path)}
    if not todo:
        return
    metrics, done = load_metrics(config, device), len(batches) - len(todo)
    # A bar that is rarely drawn: every drawing is a line in an executed notebook.
    settings = {"desc": "evaluate", "unit": "batch", "mininterval": 5, "disable": not progress}
    with tqdm(total=len(batches), initial=done, **settings) as bar:
        for path, numbers in todo.items():
            batch = Batch(read_clips(videos, numbers, device), config, metrics)
            arrays = score_batch(batch, numbers, predictors)
            with atomic_write(path) as temporary:
                save_file(arrays, temporary)
            del batch, arrays  # before the next batch is read
            bar.update()


def is_whole(path: Path) -> bool:
    """Whether there is a file, and it was not damaged, by a full disk for example."""
    try:
        with safe_open(path, "np"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


def read_clips(videos: PreparedVideos, numbers: list[int], device: torch.device) -> Clips:
    """Return test clips with uint8 frames."""
    arrays = videos.test_clips(numbers), videos.test_actions(numbers)
    return Clips(*(x if x is None else torch.from_numpy(x).to(device) for x in arrays))


def score_batch(
    batch: Batch, numbers: list[int], predictors: Mapping[str, Predictor]
) -> dict[str, np.ndarray]:
    """Return the scores of the i-th predictor under `i/...`, and for FVD `real` `(B, 400)`."""
    arrays = {} if batch.real is None else {"real": batch.real.numpy()}
    for i, (name, predict) in enumerate(predictors.items()):
        try:
            scores = batch.score(predict(batch.given, numbers), PSNR_CAPS.get(name, math.inf))
        except ValueError as error:
            raise ValueError(f"{name}, clips {numbers[0]}-{numbers[-1]}: {error}") from error
        arrays |= {f"{i}/{key}": array for key, array in scores.items()}
    return arrays


def scores_of(
    i: int, arrays: Mapping[str, np.ndarray], config: EvaluationConfig, frames: int
) -> Scores:
    """Return the scores of the i-th predictor from the arrays of all clips, of `frames` frames."""
    own = {k.removeprefix(f"{i}/"): x for k, x in arrays.items() if k.startswith(f"{i}/")}

    def under(name: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(name): x for k, x in own.items() if k.startswith(name)}

    distances = {}
    for metric in kind(config.metrics, "sets"):
        module = import_module(f"srvp.metrics.{METRICS[metric].module}")
        distances[metric] = module.of_samples(own["embeddings"], arrays["real"], frames)
    return Scores(under("samples/"), under("curves/"), **distances, forecast=under("forecast/"))


# Evaluations.


def evaluate(
    predictors: Mapping[str, Predictor],
    videos: PreparedVideos,
    config: EvaluationConfig,
    device: torch.device,
    partial: Path,
) -> dict[str, Scores]:
    """Score predictors on every test clip.

    Args:
        predictors: by name.
        videos: the test set.
        config: the protocol.
        device: where to score.
        partial: folder for the finished batches, which are not scored again (`partial_folder`).

    Raises:
        ValueError: predictions are no frames.
        FileNotFoundError: weights that a metric needs cannot be fetched.
    """
    batches = batch_files(videos, config, partial)
    score_batches(batches, predictors, videos, config, device)
    files = [load_file(path) for path in batches]
    arrays = {key: np.concatenate([file[key] for file in files]) for key in files[0]}
    frames = videos.clip_frames
    return {name: scores_of(i, arrays, config, frames) for i, name in enumerate(predictors)}


def evaluate_parts(
    parts: Sequence[Part], videos: PreparedVideos, config: EvaluationConfig, device: torch.device
) -> dict[str, Scores]:
    """Score the predictors of all parts, one after the other, as `evaluate` does."""
    scores = [evaluate(part.predictors, videos, config, device, part.partial) for part in parts]
    return {name: found for of_part in scores for name, found in of_part.items()}


def evaluate_experiment(
    model: VideoModel,
    experiment: Experiment,
    videos: PreparedVideos,
    source: Path,
    out: Path,
    references: Path | None = None,
) -> dict[str, Scores]:
    """Score a model, with each of its options, and the trivial predictors; write all results.

    Args:
        model: to score; it is put in evaluation mode.
        experiment: whose protocol to follow.
        videos: the test set.
        source: file of the model.
        out: folder for the results, as `write_scores` and `write_examples` describe them. The
            finished batches are in its folder `partial` until all is written.
        references: folder that keeps the scores of the references, for further evaluations on the
            same test set; None: they are scored for this one alone.

    Returns:
        Scores by predictor: the model under the experiment's name, then the same model with other
        options of prediction, then the trivial predictors.
    """
    device = next(model.parameters()).device
    experiment = settled(experiment, device)
    config = experiment.evaluation
    if not Path(source).exists():
        raise FileNotFoundError(f"{source} does not exist: name the file of the model")
    both = parts(model, experiment, videos, out, references)
    scores = evaluate_parts(both, videos, config, device)
    first = read_clips(videos, list(range(len(videos.clips)))[:EXAMPLES], device)
    name, given = experiment.name, config.conditioning_frames
    write_examples(both[0].predictors[name], first, given, scores[name], out)
    write_scores(scores, experiment, source, out)
    return scores


def partial_folder(
    out: Path, content: str, config: EvaluationConfig, videos: PreparedVideos
) -> Path:
    """Return the folder in `out` for finished batches.

    Its name tells all that scores depend on: predictions, protocol, test set and code. `content`
    tells the predictions from others, as `model_digest` does.
    """
    protocol = asdict(config)
    del protocol["batch_size"], protocol["frames_at_once"]  # which the names of the files tell
    code = __version__, _code_digest(PACKAGE)
    parts = [*code, content, protocol, len(videos.clips), videos.manifest]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return out / "partial" / name


@cache  # of the code that this process runs, whatever is edited meanwhile
def _code_digest(package: Path) -> str:
    """Return the SHA-256 of the code that makes test sets, predictions and scores."""
    digest = hashlib.sha256()
    for folder in ("data", "evaluation", "metrics", "models"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def model_digest(model: VideoModel) -> str:
    """Return the SHA-256 of a model's settings and weights."""
    digest = hashlib.sha256(repr(model.config).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
