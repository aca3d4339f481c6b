"""LPIPS with the published weights, against independent implementations and known answers."""

import warnings

import numpy as np
import pytest
import torch
from perceptual_cases import REFERENCE, black_and_white, drifting_tiles, fetched

from srvp.files import sha256
from srvp.metrics.lpips import ARCHIVE, TORCH_HUB_ALEXNET, WEIGHTS, load_lpips


@pytest.fixture(scope="module")
def lpips():
    return load_lpips(folder=fetched(WEIGHTS))


@pytest.mark.parametrize(("channels", "key"), [(3, "lpips_rgb"), (1, "lpips_grey")])
def test_lpips_equals_the_jax_package(lpips, channels, key):
    truth, prediction = (drifting_tiles(seed, 2, 2, 3)[:, :, :channels] / 255 for seed in (1, 2))
    scores = lpips(prediction, truth)
    # Float32 rounding leaves 1e-7; forgetting to rescale to [-1, 1] would move scores by 0.05.
    np.testing.assert_allclose(scores, REFERENCE[key], rtol=0, atol=1e-5)


def test_lpips_of_samples_equals_the_lpips_package_pair_by_pair(lpips):
    truth, *samples = (drifting_tiles(seed, 2, 3, 3) / 255 for seed in range(4))
    scores = lpips.distance(torch.stack(samples), lpips.features(truth, chunk=4), chunk=5)
    assert scores.shape == (3, 2, 3)
    for sample, score in zip(samples, scores, strict=True):
        expected = lpips.network(sample.flatten(0, 1), truth.flatten(0, 1), normalize=True)
        torch.testing.assert_close(score.flatten(), expected.flatten(), rtol=0, atol=1e-6)


def test_lpips_known_values(lpips):
    black, white = black_and_white(frames=2).split(1)
    assert torch.equal(lpips(white, white), torch.zeros(1, 2))
    # Published: 0.81401, from the same weights on other hardware.
    torch.testing.assert_close(lpips(black, white), torch.full((1, 2), 0.81395), rtol=0, atol=1e-4)


FRAMES = torch.full((1, 2, 1, 64, 64), 0.5)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (FRAMES[0], r"shape \(2, 1, 64, 64\), expected \(batch, time, channel, height, width\)"),
        (FRAMES.expand(-1, -1, 2, -1, -1), "1 or 3 channels"),
        (FRAMES * torch.nan, "NaN"),
        (FRAMES + 1, r"ranges from 1.5 to 1.5, expected \[0, 1\]"),
        (FRAMES - 1, r"expected \[0, 1\]"),
        (FRAMES.to(torch.uint8), "floating point"),
        (FRAMES[..., :30], "64x30 pixels, LPIPS needs at least 31 a side"),
    ],
)
def test_lpips_refuses_what_is_no_video(lpips, video, message):
    with pytest.raises(ValueError, match=message):
        lpips(video, video)


def test_lpips_refuses_a_prediction_that_does_not_fit_the_truth(lpips):
    with pytest.raises(ValueError, match="prediction has NaN in it"):
        lpips(FRAMES * torch.nan, FRAMES)
    with pytest.raises(ValueError, match="expected equal shapes"):
        lpips(FRAMES, FRAMES[:, :1])
    with pytest.raises(ValueError, match="expected equal shapes"):
        lpips.distance(FRAMES.expand(-1, -1, 3, -1, -1), lpips.features(FRAMES))


def test_lpips_is_exact_under_autocast(lpips):
    truth, prediction = (drifting_tiles(seed, 1, 2, 1) / 255 for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        scores = lpips(prediction, truth)
    assert torch.equal(scores, lpips(prediction, truth))
    assert not scores.requires_grad


def test_lpips_smallest_frames(lpips):
    black, white = black_and_white(frames=1, size=31).split(1)
    assert lpips(black, white).item() > 0.1


def test_loading_is_silent_and_leaves_the_random_state(capfd):
    folder, state = fetched(WEIGHTS), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = load_lpips(folder=folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_alexnet_of_torch_hub_is_used_where_it_is(lpips, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "checkpoints" / "alexnet.pth"
    cached.parent.mkdir(parents=True)
    backbone = WEIGHTS.load(fetched(WEIGHTS))
    torch.save({**backbone, "classifier.6.bias": torch.zeros(1000)}, cached)
    named = cached.rename(cached.with_name(f"alexnet-owt-{sha256(cached)[:8]}.pth"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("srvp.metrics.lpips.TORCH_HUB_ALEXNET", named.name)

    WEIGHTS.fetch(tmp_path)
    assert WEIGHTS.provenance(tmp_path)["source"] == named.name
    loaded, expected = load_lpips(folder=tmp_path).state_dict(), lpips.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_damaged_alexnet_of_torch_hub_is_not_used(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "checkpoints" / TORCH_HUB_ALEXNET
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    downloaded = []
    monkeypatch.setattr("srvp.metrics.lpips.fetch_arrays", downloaded.append)
    with pytest.raises(TypeError):  # of the archive that was not downloaded
        WEIGHTS.fetch(tmp_path)
    assert downloaded == [ARCHIVE]
