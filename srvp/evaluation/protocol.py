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
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from srvp import __version__
from srvp.data.prepared import PreparedVideos
from srvp.evaluation.results import EXAMPLES, Scores, write_examples, write_scores
from srvp.experiment import EvaluationConfig, Experiment
from srvp.metrics import fvd
from srvp.metrics.table import METRICS, Against, fetch_weights
from srvp.models.interface import Clips, VideoModel, generator

# A predictor takes the given frames of clips and the clips' numbers. It yields their futures in
# chunks of samples (B, s, F, C, H, W), so that all samples are never in memory together.
Predictor = Callable[[Clips, list[int]], Iterator[Tensor]]

# Predictors that learn nothing, to read other numbers against: on Stochastic Moving MNIST, where
# nine pixels of ten are black, a black frame scores more than a model that misplaces the digits.
# Each repeats one frame (B, 1, C, H, W), made of the given ones (B, T - F, C, H, W).
TRIVIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "copy last frame": lambda given: given[:, -1:],
    "mean frame": lambda given: given.mean(dim=1, keepdim=True),
    "black frame": lambda given: torch.zeros_like(given[:, :1]),
}


def trivial_predictors(frames: int) -> dict[str, Predictor]:
    """Return the predictors that learn nothing. Each has one sample, of `frames` frames."""

    def predictor(make_frame: Callable[[Tensor], Tensor]) -> Predictor:
        repeats = (-1, -1, frames, -1, -1, -1)
        return lambda given, numbers: iter([make_frame(given.frames)[:, None].expand(repeats)])

    return {name: predictor(make_frame) for name, make_frame in TRIVIAL.items()}


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
        return model.futures(given, frames, noise, config.frames_at_once, **options)

    return predict


def all_predictors(model: VideoModel, experiment: Experiment) -> dict[str, Predictor]:
    """Return the model with each entry of `evaluation.predict`, and the trivial predictors.

    The model is put into evaluation mode.
    """
    # Convolutions are faster this way, on a CPU as on a GPU.
    model.eval().to(memory_format=torch.channels_last)
    config = experiment.evaluation
    frames = experiment.data.test_frames - config.conditioning_frames
    samplers = [sampler(model, config, frames, options) for options in config.predict]
    names = model.config.option_names(experiment.name, config.predict)
    return dict(zip(names, samplers, strict=True)) | trivial_predictors(frames)


# Scoring a batch of clips.

Metrics = tuple[dict[str, Against], fvd.I3D | None]  # metrics of frames; the network of FVD


def load_metrics(config: EvaluationConfig, device: torch.device) -> Metrics:
    """Return the metrics that a protocol asks for. Their weights are fetched, if they need any."""
    if any(METRICS[name].weights for name in config.metrics):
        fetch_weights(config.metrics)
    # The file of a metric has a function `load`: see `srvp.metrics.table`.
    files = {m: f"srvp.metrics.{METRICS[m].module}" for m in config.metrics if METRICS[m].per_frame}
    metrics = {name: import_module(file).load(device) for name, file in files.items()}
    compares_sets = len(metrics) < len(config.metrics)
    return metrics, fvd.load(device, config.fvd_precision) if compares_sets else None


class Batch:
    """Some test clips, with uint8 frames, and what the metrics need of their true frames."""

    def __init__(self, clips: Clips, config: EvaluationConfig, metrics: Metrics):
        x, given = Clips(clips.frames.float() / 255, clips.actions), config.conditioning_frames
        self.given, self.truth = x.until(given), x.after(given)
        self.given_8bit, self.real = clips.frames[:, :given], None
        per_frame, self.i3d = metrics
        if self.i3d is not None:
            self.real = fvd.fvd_embeddings(self.i3d, clips.frames).float()
        self.compare = {name: against(self.truth) for name, against in per_frame.items()}
        # The scores (B, S, F) get their memory now: small blocks laid between large ones with every
        # chunk would keep the allocator from using the space of the large ones again.
        shape = (len(self.truth), config.samples, self.truth.shape[1])
        self.scores = {name: self.truth.new_empty(shape) for name in self.compare}

    def score(self, samples: Iterator[Tensor]) -> dict[str, np.ndarray]:
        """Score the futures of one predictor, in chunks `(B, s, F, C, H, W)`.

        Returns:
            For every metric of frames `samples/METRIC` `(B, S)`, means over the frames, and
            `curves/METRIC` `(B, F)`, the best sample. For FVD `embeddings` of some samples,
            `(B, min(S, FVD_REPEATS), 400)`.

        Raises:
            ValueError: futures have another shape than the true frames, or are not in [0, 1].
        """
        embeddings, count = [], 0
        for chunk in samples:
            self._check(chunk)
            if self.i3d is not None and count < fvd.FVD_REPEATS:
                wanted = chunk[:, : fvd.FVD_REPEATS - count]
                embeddings.append(fvd.embed_futures(self.i3d, self.given_8bit, wanted))
            first, count = count, count + chunk.shape[1]
            for name, compare in self.compare.items():
                self.scores[name][:, first:count] = compare(chunk)
            del chunk  # before the next is sampled
            if not self.compare and count >= fvd.FVD_REPEATS:
                break  # FVD needs no more
        arrays = {}
        for name, scores in self.scores.items():
            means = scores[:, :count].mean(dim=2)
            best = means.argmin(dim=1) if METRICS[name].lower_is_better else means.argmax(dim=1)
            arrays[f"samples/{name}"] = means.cpu().numpy()
            arrays[f"curves/{name}"] = scores[torch.arange(len(best)), best].cpu().numpy()
        if embeddings:
            arrays["embeddings"] = torch.cat(embeddings, dim=1).float().numpy()
        return arrays

    def _check(self, samples: Tensor) -> None:
        if samples.dim() != 6 or samples[:, :1].shape != self.truth[:, None].shape:
            clips, *frames = self.truth.shape
            raise ValueError(
                f"predictions have shape {tuple(samples.shape)}, expected ({clips} clips, any "
                f"samples, {', '.join(map(str, frames))})"
            )
        low, high = (bound.item() for bound in samples.aminmax())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(
                f"predicted frames range from {low:g} to {high:g}, expected [0, 1]: scale them; "
                "if that is nan, the model diverged or the file is damaged"
            )


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
    next(iter(todo)).parent.mkdir(parents=True, exist_ok=True)
    # A bar that is rarely drawn: every drawing is a line in an executed notebook.
    settings = {"desc": "evaluate", "unit": "batch", "mininterval": 5, "disable": not progress}
    with tqdm(total=len(batches), initial=done, **settings) as bar:
        for path, numbers in todo.items():
            batch = Batch(read_clips(videos, numbers, device), config, metrics)
            arrays = score_batch(batch, numbers, predictors)
            temporary = path.with_suffix(f".{os.getpid()}")
            save_file(arrays, temporary)
            os.replace(temporary, path)  # whole, or not there
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
            scores = batch.score(predict(batch.given, numbers))
        except ValueError as error:
            raise ValueError(f"{name}, clips {numbers[0]}-{numbers[-1]}: {error}") from error
        arrays |= {f"{i}/{key}": array for key, array in scores.items()}
    return arrays


def scores_of(
    i: int, arrays: Mapping[str, np.ndarray], config: EvaluationConfig, frames: int
) -> Scores:
    """Return the scores of the i-th predictor from the arrays of all clips, of `frames` frames."""
    metrics = [metric for metric in config.metrics if METRICS[metric].per_frame]
    samples = {metric: arrays[f"{i}/samples/{metric}"] for metric in metrics}
    curves = {metric: arrays[f"{i}/curves/{metric}"] for metric in metrics}
    if len(metrics) == len(config.metrics):
        return Scores(samples, curves)
    embeddings = arrays[f"{i}/embeddings"]
    return Scores(samples, curves, fvd.fvd_of_samples(embeddings, arrays["real"], frames))


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


def evaluate_experiment(
    model: VideoModel, experiment: Experiment, videos: PreparedVideos, source: Path, out: Path
) -> dict[str, Scores]:
    """Score a model, with each of its options, and the trivial predictors; write all results.

    Args:
        model: to score; it is put in evaluation mode.
        experiment: whose protocol to follow.
        videos: the test set.
        source: file of the model.
        out: folder for the results, as `write_scores` and `write_examples` describe them. The
            finished batches are in its folder `partial` until all is written.

    Returns:
        Scores by predictor: the model under the experiment's name, then the same model with other
        options of prediction, then the trivial predictors.
    """
    config, device = experiment.evaluation, next(model.parameters()).device
    if not Path(source).exists():
        raise FileNotFoundError(f"{source} does not exist: name the file of the model")
    partial = partial_folder(out, model_digest(model), config, videos)
    predictors = all_predictors(model, experiment)
    scores = evaluate(predictors, videos, config, device, partial)
    first = read_clips(videos, list(range(len(videos.clips)))[:EXAMPLES], device)
    name, given = experiment.name, config.conditioning_frames
    write_examples(predictors[name], first, given, scores[name], out)
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
    parts = [__version__, content, protocol, len(videos.clips), videos.manifest]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return out / "partial" / name


def model_digest(model: VideoModel) -> str:
    """Return the SHA-256 of a model's settings and weights."""
    digest = hashlib.sha256(repr(model.config).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
