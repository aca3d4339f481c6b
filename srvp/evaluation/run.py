"""The evaluation of a trained model: shared among devices, scored, and written."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.numpy import save_file

from srvp.data.prepared import PreparedVideos
from srvp.devices import all_like
from srvp.evaluation.protocol import (
    Predictor,
    batch_files,
    clip_noise,
    evaluate,
    join_noise,
    model_predictors,
    progress_of,
    require,
    score_batches,
    trivial_predictors,
)
from srvp.evaluation.results import Scores, fingerprint, weights_digest, write_scores
from srvp.experiment import Experiment
from srvp.files import atomic_write
from srvp.models.interface import Clips, VideoModel
from srvp.processes import in_processes

EXAMPLES_FILE = "examples.safetensors"


def evaluate_experiment(
    model: VideoModel,
    experiment: Experiment,
    videos: PreparedVideos,
    source: Path,
    out: Path,
    devices: Sequence[torch.device] | None = None,
) -> dict[str, Scores]:
    """Score a model, with all its options, and the trivial baselines; write all results to `out`.

    Results are those of `write_scores`, and `examples.safetensors` with the futures that figures
    show. Finished batches are kept in `out/partial` until then.

    Args:
        model: in evaluation mode.
        experiment: whose protocol to follow.
        videos: the test set.
        source: file of the model.
        out: folder of the results.
        devices: that share the test set, a process each; by default the model's, or all of its
            kind if there are several GPUs.

    Returns:
        Scores by predictor: the model under the experiment's name, then the same model with other
        options of prediction, then the baselines.
    """
    config = experiment.evaluation
    require(config, videos)
    partial = out / "partial" / fingerprint(weights_digest(model), config, videos)
    device = next(model.parameters()).device
    devices = devices or all_like(device)
    if len(devices) > 1:
        batches = batch_files(videos, config, partial)
        args = (devices, copy.deepcopy(model).cpu(), experiment, videos, partial)
        with progress_of(batches) as bar:

            def show() -> None:
                bar.update(sum(path.exists() for path in batches) - bar.n)

            in_processes(_score_share, args, len(devices), meanwhile=show)
    scores = evaluate(predictors_of(model, experiment), videos, config, device, partial)
    write_examples(model, experiment, videos, scores[experiment.name], out / EXAMPLES_FILE)
    write_scores(scores, experiment, source, out)
    return scores


def predictors_of(model: VideoModel, experiment: Experiment) -> dict[str, Predictor]:
    """Return all predictors that an evaluation compares."""
    # Convolutions are faster this way, on a CPU as on a GPU.
    model.to(memory_format=torch.channels_last)
    return model_predictors(model, experiment) | trivial_predictors(experiment.predicted_frames)


def _score_share(
    rank: int,
    devices: Sequence[torch.device],
    model: VideoModel,
    experiment: Experiment,
    videos: PreparedVideos,
    partial: Path,
) -> None:
    """Score every n-th batch: the share of one of n processes."""
    device, config = devices[rank], experiment.evaluation
    batches = list(batch_files(videos, config, partial).items())[rank :: len(devices)]
    predictors = predictors_of(model.to(device), experiment)
    score_batches(dict(batches), predictors, videos, config, device, progress=False)


@torch.inference_mode()
def write_examples(
    model: VideoModel,
    experiment: Experiment,
    videos: PreparedVideos,
    scores: Scores,
    path: Path,
    count: int = 8,
) -> None:
    """Sample the best, a random and the worst future of the first test clips again, as uint8.

    The file holds `truth` `(count, T, C, H, W)` and, with only the predicted frames, `random` (the
    first sample) and `METRIC.best` and `METRIC.worst` for every metric of frames
    `(count, F, C, H, W)`.
    """
    config, frames = experiment.evaluation, experiment.predicted_frames
    device = next(model.parameters()).device
    chosen = list(range(min(count, len(videos.clips))))
    clips, actions = videos.test_clips(chosen), videos.test_actions(chosen)
    x = torch.from_numpy(clips).to(device).float() / 255
    actions = actions if actions is None else torch.from_numpy(actions).to(device)
    condition = model.condition(Clips(x, actions).until(config.conditioning_frames))
    noise = [clip_noise(model, config, clip, x.shape[1]) for clip in chosen]
    wanted = {"random": [0] * len(chosen)}
    for metric in scores.samples:
        wanted[f"{metric}.best"] = scores.best(metric)[chosen].tolist()
        wanted[f"{metric}.worst"] = scores.worst(metric)[chosen].tolist()
    examples = {"truth": clips}
    for name, samples in wanted.items():
        part = join_noise(noise, [slice(s, s + 1) for s in samples], device)
        prediction = model.predict(condition, frames, part, **config.predict[0]).x
        examples[name] = (prediction.float() * 255).round().byte().cpu().numpy()
    with atomic_write(path) as temporary:
        save_file(examples, temporary)
