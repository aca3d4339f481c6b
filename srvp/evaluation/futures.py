"""Futures of any video file, by a trained model."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from srvp.data.sets.videos import read_clip
from srvp.experiment import Experiment
from srvp.models.interface import VideoModel


class Futures(NamedTuple):
    """Sampled futures of one video, all frames uint8 `(..., C, H, W)`."""

    given: np.ndarray  # (T, C, H, W)
    truth: np.ndarray  # (up to F, C, H, W): what really follows, as far as the video goes
    samples: np.ndarray  # (S, F, C, H, W)
    how_read: str  # how the video became frames of the model's size


def predict_futures(
    model: VideoModel,
    experiment: Experiment,
    video: Path,
    *,
    given: int | None = None,
    frames: int,
    samples: int,
    seed: int = 1,
    crop: str | None = None,
    rate: float | None = None,
) -> Futures:
    """Sample futures of a video file, a GIF or a folder of pictures.

    Args:
        model: in evaluation mode.
        experiment: that the model was trained for.
        video: to read; it is resized to the model's size, grey if the model is.
        given: frames to give to the model, the first of the video; by default those of the
            experiment's protocol.
        frames: how many to predict, F.
        samples: how many futures, S.
        seed: of the noise.
        crop: `center` to crop the largest square first.
        rate: frames per second to keep; by default all.

    Raises:
        ValueError: the video is damaged or too short, or the model needs actions.
    """
    if not Path(video).exists():
        raise FileNotFoundError(
            f"{video} does not exist: name a video, a GIF or a folder of pictures"
        )
    count = given or experiment.evaluation.conditioning_frames
    channels, size, _ = model.shape
    clip, how_read = read_clip(
        video, size=size, channels=channels, crop=crop, rate=rate, frames=count + frames
    )
    if len(clip) < count:
        raise ValueError(
            f"{video} has {len(clip)} frames, but {count} are to be given: take a longer video, "
            f"or give fewer (the model needs {model.config.frames_needed})"
        )
    device = next(model.parameters()).device
    x = torch.from_numpy(clip[None, :count]).to(device).float() / 255
    noise = model.draw_noise(samples, count + frames, torch.Generator().manual_seed(seed))
    future = np.empty((samples, frames, *clip.shape[1:]), np.uint8)
    done = 0
    # As floats, and with what the model keeps, all futures together would take many times the room.
    for part in model.futures(x, frames, [noise], at_once=experiment.evaluation.frames_at_once):
        future[done : done + part.shape[1]] = (255 * part[0]).round().byte().cpu().numpy()
        done += part.shape[1]
    return Futures(clip[:count], clip[count:], future, how_read)
