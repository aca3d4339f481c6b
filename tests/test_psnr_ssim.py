"""PSNR and SSIM, against the authors' functions and scikit-image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from srvp.metrics.psnr import psnr
from srvp.metrics.ssim import SSIM, ssim

AUTHORS = load_file(Path(__file__).parent / "reference" / "metrics.safetensors")


def frames(channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return smooth pictures with noise and without it, `(3, C, 64, 64)` each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, channels, 8, 8, generator=generator)
    truth = torch.nn.functional.interpolate(coarse, 64, mode="bilinear")
    noise = 0.1 * torch.randn(truth.shape, generator=generator)
    return (truth + noise).clamp(0, 1), truth


def difference_to_authors(metric, colour: str, precision: str = "") -> torch.Tensor:
    """Return our value minus theirs of four pairs: noise, motion, strokes, and nearly equal."""
    pair = (AUTHORS[f"{colour}/{name}"].float() / 255 for name in ("prediction", "target"))
    return (metric(*pair) - AUTHORS[f"{colour}/{metric.__name__}{precision}"]).abs()


@pytest.mark.parametrize("colour", ["grey", "colour"])
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_both_equal_the_authors_functions_in_float64(metric, colour):
    assert (difference_to_authors(metric, colour, "_float64") < 1e-5).all()


@pytest.mark.parametrize("colour", ["grey", "colour"])
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_both_equal_the_authors_functions_in_float32(metric, colour):
    difference = difference_to_authors(metric, colour)
    # The last pair is flat and nearly equal (50 dB), so that variances are differences of nearly
    # equal numbers. Of one channel, their float32 SSIM is 1.5e-5 from float64, ours 2.5e-6.
    exception = metric is ssim and colour == "grey"
    assert (difference < torch.tensor([1e-5, 1e-5, 1e-5, 2e-5 if exception else 1e-5])).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_against_scikit_image(channels):
    """An independent implementation, in float64, of the same definition."""
    prediction, truth = frames(channels, 0)
    expected = [
        structural_similarity(
            p.double().numpy(),
            t.double().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for p, t in zip(prediction, truth, strict=True)
    ]
    # 1e-5: float32 against float64, of variances that are differences of squares.
    np.testing.assert_allclose(ssim(prediction, truth).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_against_scikit_image_channel_by_channel(channels):
    prediction, truth = frames(channels, 1)
    expected = [
        np.mean([peak_signal_noise_ratio(*pair, data_range=1) for pair in zip(t, p, strict=True)])
        for p, t in zip(prediction.numpy(), truth.numpy(), strict=True)
    ]
    np.testing.assert_allclose(psnr(prediction, truth).numpy(), expected, atol=1e-4)


def test_psnr_averages_channels_rather_than_their_errors():
    truth = torch.zeros(2, 10, 10)
    prediction = torch.stack([torch.full((10, 10), 0.1), torch.full((10, 10), 0.01)])
    torch.testing.assert_close(psnr(prediction, truth), torch.tensor(30.0))  # of 20 and 40 dB


def test_equal_frames_score_one_and_a_hundred_decibels():
    _, truth = frames(3, 2)
    torch.testing.assert_close(ssim(truth, truth), torch.ones(3))
    torch.testing.assert_close(psnr(truth, truth), torch.full((3,), 100.0))


def test_ssim_is_symmetric():
    prediction, truth = frames(1, 3)
    torch.testing.assert_close(ssim(prediction, truth), ssim(truth, prediction))


def test_one_truth_is_compared_with_many_samples():
    prediction, truth = frames(3, 4)
    many = prediction[None].expand(5, -1, -1, -1, -1)
    for metric, scores in ((psnr, psnr(many, truth[None])), (ssim, SSIM(truth[None])(many))):
        assert scores.shape == (5, 3)
        torch.testing.assert_close(scores[4], metric(prediction, truth))


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="8 pixels a side, SSIM needs at least 11"):
        ssim(torch.zeros(1, 8, 64), torch.zeros(1, 8, 64))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_8_bit_frames_and_frames_of_other_sizes_are_refused(metric):
    frame = torch.zeros(1, 16, 16)
    for pair in ((frame.byte(), frame), (frame, frame.byte())):
        with pytest.raises(ValueError, match="has type torch.uint8, .* divide 8-bit frames by 255"):
            metric(*pair)
    with pytest.raises(ValueError, match="expected equal channels, height and width"):
        metric(frame, frame[:, :, :12])
