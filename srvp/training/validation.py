"""Validation during training: the PSNR of the best of some samples, on clips never trained on."""

import torch

from srvp.data import VideoSource
from srvp.devices import autocast
from srvp.experiment import Experiment
from srvp.metrics.psnr import psnr
from srvp.models.interface import VideoModel
from srvp.training import distributed


@torch.no_grad()
def validation_psnr(
    model: VideoModel,
    source: VideoSource,
    experiment: Experiment,
    device: torch.device,
    at_once: int,
) -> float:
    """Return the mean over clips of the best sample's PSNR in dB, a mean over predicted frames.

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
    scores = torch.zeros(config.validation_videos, device=device)
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
        truth = clips.after(given_frames)[:, None]
        part.copy_(psnr(futures, truth).mean(dim=2).amax(dim=1))
    model.train()
    return distributed.mean(scores).mean().item() * distributed.world_size()
