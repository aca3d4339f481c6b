"""Validation during training: scores of some samples, on clips never trained on."""

import torch
from torch import Tensor

from srvp.data import VideoSource
from srvp.devices import autocast
from srvp.experiment import Experiment
from srvp.metrics.energy import energy_score
from srvp.metrics.psnr import psnr
from srvp.models.interface import VideoModel
from srvp.training import distributed

FRAMES = (1, 5, 10)  # predicted frames whose PSNR tells sharpness from motion


@torch.no_grad()
def validation_scores(
    model: VideoModel,
    source: VideoSource,
    experiment: Experiment,
    device: torch.device,
    at_once: int,
) -> dict[str, float]:
    """Return means over clips.

    `validation_psnr` is the PSNR of the best sample in dB, a mean over predicted frames;
    `validation_psnr_1` and so on are those of its first, fifth and tenth frame, if there are so
    many; `validation_energy` is the fair energy score of all samples.

    Clips and noise are the same at every validation of a run. Several processes share the clips.

    Args:
        model: to validate; it comes back in training mode.
        source: of the validation clips.
        experiment: whose `training` says how many clips, frames and samples.
        device: where to compute.
        at_once: clips that are drawn and predicted together.
    """
    config, given_frames = experiment.training, experiment.evaluation.conditioning_frames
    generator = torch.Generator(device).manual_seed(config.seed)
    frames, samples = config.validation_frames, config.validation_samples
    at = [n for n in FRAMES if n <= frames - given_frames]
    scores = torch.zeros(config.validation_videos, 2 + len(at), device=device)
    model.eval()
    for i, part in enumerate(scores.split(at_once)):
        clips = source.draw(len(part), frames, generator)
        noise = model.draw_noise(len(part) * samples, frames, generator)
        if i % distributed.world_size() != distributed.rank():
            continue
        with autocast(config.precision, device):
            given = model.condition(clips.until(given_frames))
            prediction = model.predict(given, frames - given_frames, noise).x.float()
        futures = prediction.unflatten(0, (len(part), samples))
        part.copy_(_scores(futures, clips.after(given_frames), at))
    model.train()
    means = distributed.mean(scores).mean(dim=0) * distributed.world_size()
    names = ["validation_psnr", *(f"validation_psnr_{n}" for n in at), "validation_energy"]
    return dict(zip(names, means.tolist(), strict=True))


def _scores(futures: Tensor, truth: Tensor, at: list[int]) -> Tensor:
    """Return the scores `(B, ...)` of futures `(B, S, F, C, H, W)`, in the order of their names."""
    of_frames = psnr(futures, truth[:, None])  # (B, S, F)
    mean, best = of_frames.mean(dim=2).max(dim=1)
    best_sample = of_frames[torch.arange(len(best), device=best.device), best]  # (B, F)
    energy = energy_score(futures.flatten(2), truth.flatten(1))
    columns = [mean, *(best_sample[:, n - 1] for n in at), energy]
    return torch.stack(columns, dim=1)
