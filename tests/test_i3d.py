"""I3D with the published weights, against an independent implementation and known answers."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from perceptual_cases import REFERENCE, black_and_white, drifting_tiles, fetched

from srvp.metrics.i3d import WEIGHTS, _MaxPool, i3d_preprocess, load_i3d, resize_tf1


@pytest.fixture(scope="module")
def i3d():
    return load_i3d(folder=fetched(WEIGHTS))


@pytest.fixture(scope="module")
def grey_clips():
    return i3d_preprocess(drifting_tiles(4, 3, 9, 1))


@pytest.fixture(scope="module")
def grey_logits(i3d, grey_clips):
    return i3d(grey_clips)


def test_i3d_equals_the_jax_package_on_grey_videos_of_odd_length(grey_logits):
    # Logits lie between -20 and 27. Rounding leaves 2e-5; symmetric padding would move them by 17.
    np.testing.assert_allclose(grey_logits, REFERENCE["logits_grey"], rtol=0, atol=1e-3)


def test_i3d_equals_the_jax_package_on_a_colour_video_of_even_length(i3d):
    logits = i3d(i3d_preprocess(drifting_tiles(5, 1, 16, 3)))
    np.testing.assert_allclose(logits, REFERENCE["logits_rgb"], rtol=0, atol=1e-3)


def test_i3d_tells_black_from_white_as_the_original_does(i3d):
    black, white = i3d(i3d_preprocess(black_and_white(frames=30)))
    # 151.39244 is what others publish from the original TensorFlow code.
    assert (black - white).square().sum().item() == pytest.approx(151.39244, rel=1e-5)


def resize_by_indexing(frames, size):
    """Return TensorFlow 1's bilinear resize of frames (..., H, W): along x, then y, in float32."""
    for axis in (-1, -2):
        n = frames.shape[axis]
        position = np.arange(size, dtype=np.float32) * np.float32(n / size)
        lower = np.floor(position).astype(int)
        weight = (position - lower).astype(np.float32).reshape(-1, *[1] * (-1 - axis))
        first, second = (frames.take(np.minimum(lower + k, n - 1), axis) for k in (0, 1))
        frames = first + (second - first) * weight
    return frames


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (224, 224), (300, 240)])
def test_resize_equals_direct_indexing(shape):
    frames = np.random.RandomState(0).uniform(0, 255, (2, 1, *shape)).astype(np.float32)
    resized = resize_tf1(torch.from_numpy(frames), 224)
    # Rounding leaves 1e-4 of 255; a half-pixel offset would differ by 31 on average.
    np.testing.assert_allclose(resized, resize_by_indexing(frames, 224), rtol=0, atol=1e-3)


def test_i3d_takes_grey_as_three_equal_colours(i3d):
    clips = i3d_preprocess(drifting_tiles(6, 1, 9, 1))
    # Rounding leaves 2e-5, logits lie between -20 and 27.
    torch.testing.assert_close(i3d(clips), i3d(clips.expand(-1, 3, -1, -1, -1)), rtol=0, atol=1e-3)


def test_i3d_in_bfloat16_is_near_to_float32(grey_clips, grey_logits):
    logits = load_i3d(precision=torch.bfloat16, folder=fetched(WEIGHTS))(grey_clips)
    assert logits.dtype == torch.float32  # the mean over time, too, is in full precision
    # Eight bits round by up to 0.4 % in each of some twenty layers.
    error = (logits - grey_logits).square().mean().sqrt() / grey_logits.std()
    assert 1e-3 < error < 0.03


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((5, 8, 7), (3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1)),
        ((5, 8, 7), (1, 3, 3), (1, 2, 2), (1, 1, 0, 1, 0, 0)),
        ((5, 8, 7), (2, 2, 2), (2, 2, 2), (0, 1, 0, 0, 0, 1)),
        ((4, 2, 1), (3, 3, 3), (2, 2, 2), (1, 1, 0, 1, 0, 1)),
    ],
)
def test_max_pool_equals_pytorch_after_padding(shape, kernel, stride, padding):
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = F.max_pool3d(F.pad(x, padding), kernel, stride)  # zeros are below all of x
    assert torch.equal(_MaxPool(kernel, stride)(x), expected)


def test_preprocessing_truncates_to_8_bits():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16)
    clips = i3d_preprocess(levels)
    assert clips.shape == (1, 1, 1, 224, 224)
    assert (clips.min(), clips.max()) == (-1, 1)
    assert torch.equal(i3d_preprocess(levels / 255), clips)
    assert torch.equal(i3d_preprocess((levels / 255 + 0.9 / 255).clamp(max=1)), clips)


def test_loading_is_silent_and_leaves_the_random_state(capfd):
    folder, state = fetched(WEIGHTS), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = load_i3d(folder=folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
