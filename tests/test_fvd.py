"""FVD: its embeddings, the Fréchet distance against independent computations, its interval."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from perceptual_cases import REFERENCE, drifting_tiles, fetched

from srvp.metrics.fvd import frechet_distance, fvd, fvd_embeddings, jackknife, of_samples
from srvp.metrics.i3d import WEIGHTS, i3d_preprocess, load_i3d


def settings():
    """Return whether convolutions use TF32, and whether autocast and gradients are on."""
    precision = torch.backends.cudnn.conv.fp32_precision
    return precision, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()


class Probe(torch.nn.Linear):
    """A network in the place of I3D: logits that tell videos and their frames apart."""

    def __init__(self):
        super().__init__(1, 1)
        self.settings = []

    def forward(self, clips):
        self.settings.append(settings())
        return clips.mean(dim=(1, 3, 4))


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (torch.zeros(1, 8, 1, 64, 64), "8 frames, FVD needs at least 9"),
        (torch.zeros(9, 1, 64, 64), "shape"),
        (torch.zeros(0, 9, 1, 64, 64), "at least one of the others"),
        (torch.full((1, 9, 1, 64, 64), torch.nan), "NaN"),
        (torch.full((1, 9, 1, 64, 64), 255.0), r"ranges from 255 to 255, expected \[0, 1\]"),
    ],
)
def test_embeddings_refuse_what_is_no_video(videos, message):
    with pytest.raises(ValueError, match=message):
        fvd_embeddings(Probe(), videos)


def test_embeddings_do_not_depend_on_the_size_of_chunks():
    videos = drifting_tiles(0, 5, 9, 3)
    embeddings = fvd_embeddings(Probe(), videos)
    assert embeddings.dtype == torch.float64
    torch.testing.assert_close(embeddings, fvd_embeddings(Probe(), videos, chunk=3))
    whole = Probe()(i3d_preprocess(videos)).double()
    torch.testing.assert_close(embeddings, whole)


def test_networks_run_exactly_and_the_settings_come_back():
    probe = Probe()
    with torch.autocast("cpu", torch.bfloat16):
        before = settings()
        fvd_embeddings(probe, drifting_tiles(0, 1, 9, 1))
        assert settings() == before
    assert before[0] != "ieee"
    assert before[1:] == (True, True)
    assert probe.settings == [("ieee", False, False)]


def frechet_by_roots(first, second):
    """Return the Fréchet distance as TF-GAN computes it: two symmetric roots by singular values."""

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


def test_fvd_equals_an_independent_computation():
    i3d = load_i3d(folder=fetched(WEIGHTS))
    grey_embeddings = [fvd_embeddings(i3d, drifting_tiles(seed, 3, 9, 1)) for seed in (3, 4)]
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


@pytest.mark.filterwarnings("ignore:FVD of 60 videos")
def test_every_sample_of_all_videos_has_an_fvd_and_a_single_one_an_interval():
    random = np.random.RandomState(0)
    generated, real = random.standard_normal((60, 3, 4)), random.standard_normal((60, 4))
    several = of_samples(generated, real, frames=20)
    assert [s.value for s in several] == [frechet_distance(generated[:, i], real) for i in range(3)]
    assert all(np.isnan(s.ci95) for s in several)
    (single,) = of_samples(generated[:, :1], real, frames=20)
    assert single == fvd(generated[:, 0], real, 20, interval=True) and single.ci95 > 0


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
