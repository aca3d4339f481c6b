"""Predictors to read other numbers against: they learn nothing, or know what no model can know.

- Trivial predictors repeat one frame, made of the given ones. On Stochastic Moving MNIST, where
  nine pixels of ten are black, a black frame scores more than a model that misplaces the digits.
- The perfect model, where the truth can be simulated, is the generator itself from the true state
  after the last given frame: the ceiling. The perfect mean is the mean of its futures: what PSNR
  gives for hedging.
- Controls, beside FVD and KVD, are the true videos, spoilt in one respect: what these distances do
  not notice.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from srvp.data import perfect_model
from srvp.data.prepared import PreparedVideos
from srvp.experiment import Experiment
from srvp.files import project_root
from srvp.metrics.table import kind
from srvp.models.interface import Clips, generator

# A predictor takes the given frames of clips and the clips' numbers. It yields their futures in
# chunks of samples (B, s, F, C, H, W), so that all samples are never in memory together.
Predictor = Callable[[Clips, list[int]], Iterator[Tensor]]

BLUR = 5  # pixels of a frame of 64x64: the standard deviation of the blurred copy
NOISE = 0.1  # standard deviation of the noisy control
JITTER = 2  # pixels, at most, that the jittered control moves a frame by
PERFECT, PERFECT_MEAN = "perfect model", "perfect mean"
# An exact frame would score 100 dB. It counts as one that a good decoder draws.
PSNR_CAPS = {PERFECT: 25.0, PERFECT_MEAN: 25.0}


def blurred(frames: Tensor) -> Tensor:
    """Return frames `(..., H, W)` under a Gaussian blur, black outside of them."""
    for axis in (-1, -2):
        place = torch.arange(frames.shape[axis], device=frames.device)
        distance = (place[:, None] - place) * 64 / len(place)
        weights = torch.exp(-distance.square() / (2 * BLUR**2))
        window = weights / weights.sum(dim=0).amax()
        frames = (frames.transpose(axis, -1) @ window.to(frames.dtype)).transpose(axis, -1)
    return frames.clamp(0, 1)


# Each makes one frame (B, 1, C, H, W) of the given ones (B, T - F, C, H, W).
TRIVIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "copy last frame": lambda given: given[:, -1:],
    "blurred copy": lambda given: blurred(given[:, -1:]),
    "mean frame": lambda given: given.mean(dim=1, keepdim=True),
    "black frame": lambda given: torch.zeros_like(given[:, :1]),
}


def trivial_predictors(frames: int) -> dict[str, Predictor]:
    """Return the predictors that learn nothing. Each has one sample, of `frames` frames."""

    def predictor(make_frame: Callable[[Tensor], Tensor]) -> Predictor:
        repeats = (-1, -1, frames, -1, -1, -1)
        return lambda given, numbers: iter([make_frame(given.frames)[:, None].expand(repeats)])

    return {name: predictor(make_frame) for name, make_frame in TRIVIAL.items()}


def _shuffled(truth: Tensor, random: torch.Generator) -> Tensor:
    return truth[torch.randperm(len(truth), generator=random)]


def _frozen(truth: Tensor, random: torch.Generator) -> Tensor:
    return truth[:1].expand_as(truth)


def _jittered(truth: Tensor, random: torch.Generator) -> Tensor:
    height, width = truth.shape[-2:]
    corners = torch.randint(2 * JITTER + 1, (len(truth), 2), generator=random).tolist()
    padded = F.pad(truth, 4 * (JITTER,), mode="replicate")
    moved = [x[:, i : i + height, j : j + width] for x, (i, j) in zip(padded, corners, strict=True)]
    return torch.stack(moved)


def _noisy(truth: Tensor, random: torch.Generator) -> Tensor:
    noise = torch.randn(truth.shape, generator=random)
    return (truth + NOISE * noise.to(truth.device)).clamp(0, 1)


# Each spoils the true predicted frames (F, C, H, W) of a clip.
CONTROLS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "truth, shuffled in time": _shuffled,
    "truth, frozen": _frozen,
    "truth, jittered": _jittered,
    "truth, noisy": _noisy,
}


def control_predictors(videos: PreparedVideos, given: int, seed: int) -> dict[str, Predictor]:
    """Return the spoilt truths, of one sample each. Unlike other predictors they see the truth."""

    def predictor(spoil: Callable[[Tensor, torch.Generator], Tensor]) -> Predictor:
        def predict(clips: Clips, numbers: list[int]) -> Iterator[Tensor]:
            truth = torch.from_numpy(videos.test_clips(numbers)[:, given:]).float() / 255
            spoilt = [spoil(x, generator(seed, n)) for x, n in zip(truth, numbers, strict=True)]
            yield torch.stack(spoilt)[:, None].to(clips.frames.device)

        return predict

    return {name: predictor(spoil) for name, spoil in CONTROLS.items()}


def perfect_predictors(
    experiment: Experiment, videos: PreparedVideos, device: torch.device
) -> dict[str, Predictor]:
    """Return the perfect model and its mean, if the test set was simulated.

    Where nothing is random the perfect model is the truth, and has no mean of its own; nor has it
    if there is one sample.
    """
    model = perfect_model(experiment.data, project_root() / "data", videos, device)
    if model is None:
        return {}
    config, frames = experiment.evaluation, experiment.predicted_frames
    means: dict[tuple[int, ...], Tensor] = {}  # of the clips that were predicted last

    def sample(given: Clips, numbers: list[int]) -> Iterator[Tensor]:
        known, total = given.frames.shape[1], 0
        random = [generator(config.seed, n) for n in numbers]
        paths = [
            model.draw_paths(n, known, frames, config.samples, g)
            for n, g in zip(numbers, random, strict=True)
        ]
        chunk = max(1, config.frames_at_once // (frames * len(numbers)))
        for part in torch.stack(paths).split(chunk, dim=1):
            futures = model.render(numbers, part)
            total = total + futures.sum(dim=1, keepdim=True)
            yield futures
        means.clear()
        means[tuple(numbers)] = (total / config.samples).clamp(0, 1)

    def mean(given: Clips, numbers: list[int]) -> Iterator[Tensor]:
        if tuple(numbers) not in means:
            for _ in sample(given, numbers):
                pass
        yield means[tuple(numbers)]

    has_mean = config.samples > 1 and not model.deterministic
    return {PERFECT: sample, PERFECT_MEAN: mean} if has_mean else {PERFECT: sample}


def reference_predictors(
    experiment: Experiment, videos: PreparedVideos, device: torch.device
) -> dict[str, Predictor]:
    """Return the predictors of every table beside the models: ceilings, floors and controls."""
    config = experiment.evaluation
    controls = control_predictors(videos, config.conditioning_frames, config.seed)
    return {
        **perfect_predictors(experiment, videos, device),
        **trivial_predictors(experiment.predicted_frames),
        **(controls if kind(config.metrics, "sets") else {}),
    }


# In the order of tables, after the models. All but the perfect model have one sample.
REFERENCES = (PERFECT, PERFECT_MEAN, *TRIVIAL, *CONTROLS)


def table_rank(name: str) -> int:
    """Return the place of a row among the references; -1 is a model.

    A name may tell the number of samples: `perfect model (best of 10)`.
    """
    name = name.partition(" (")[0]
    return REFERENCES.index(name) if name in REFERENCES else -1
