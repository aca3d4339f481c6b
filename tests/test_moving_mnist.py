import gzip
import hashlib
import shutil
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from srvp.data.config import DataConfig
from srvp.data.sets import mnist, moving_digits, moving_mnist
from srvp.data.sets.moving_mnist import LIMIT, MAX_SPEED, MovingMNIST

MNIST = ROOT / "data" / "mnist"


def make_test_set(name: str, videos: int, frames: int, **changes) -> moving_mnist.TestSet:
    return moving_mnist.test_set(MNIST, DataConfig(name, 1, videos, frames, **changes))


@pytest.mark.parametrize(
    ("name", "frames", "sha256"),
    [
        ("smmnist", 25, "8783c4a2df402a3ab7e01f9f8bd633131562dfe93a33f02d88d64e1481e2bf00"),
        ("dmmnist", 100, "ca3b0a61364894a9b832c4094ce969e59550df5596ba90662e16ba9ed405f132"),
    ],
)
def test_test_sets_are_those_of_the_paper_bit_for_bit(name, frames, sha256):
    """The hashes are of the authors' sets, whose arrays are time first."""
    test = make_test_set(name, 5000, frames)
    assert test.sequences.shape == (5000, frames, 64, 64)
    digest = hashlib.sha256()
    for t in range(frames):
        digest.update(np.ascontiguousarray(test.sequences[:, t]))
    assert digest.hexdigest() == sha256


@pytest.fixture(scope="module")
def some():
    return make_test_set("smmnist", 300, 40, seed=7)


def test_fewer_videos_are_the_first_of_more(some):
    fewer = make_test_set("smmnist", 3, 40, seed=7)
    assert np.array_equal(fewer.sequences, some.sequences[:3])
    assert np.array_equal(fewer.labels, some.labels[:3])


def test_another_seed_gives_other_videos(some):
    other = make_test_set("smmnist", 3, 40, seed=8)
    assert not np.array_equal(other.sequences, some.sequences[:3])


def test_digits_stay_in_the_frame_and_move_by_their_speed_between_bounces(some):
    assert some.positions.min() == 0 and some.positions.max() == LIMIT
    assert abs(some.speeds).max() == MAX_SPEED
    straight = (some.speeds[:, 1:] == some.speeds[:, :-1]).all(-1)
    moved = np.diff(some.positions, axis=1)[straight]
    # Positions are rounded to whole pixels: a step is the speed within one pixel.
    assert abs(moved - some.speeds[:, :-1][straight]).max() <= 1


def test_frames_show_the_digits_at_the_positions(some):
    """Pixels outside both 28x28 windows are black, and each digit adds light."""
    for video in range(5):
        for t in range(0, 40, 13):
            rest = some.sequences[video, t].copy()
            for row, column in some.positions[video, t]:
                assert rest[row : row + 28, column : column + 28].any()
            for row, column in some.positions[video, t]:
                rest[row : row + 28, column : column + 28] = 0
            assert not rest.any()


def test_deterministic_digits_keep_the_size_of_their_speed():
    test = make_test_set("dmmnist", 50, 60)
    sizes = abs(test.speeds)
    assert (sizes == sizes[:, :1]).all()


def test_deterministic_videos_repeat_themselves_after_72_frames():
    """Whole pixels per frame, there and back over LIMIT = 36 pixels: all periods divide 72."""
    test = make_test_set("dmmnist", 100, 100)
    assert (test.speeds == test.speeds.round()).all()
    assert np.array_equal(test.sequences[:, 72:], test.sequences[:, :28])


def test_more_videos_than_the_digits_make_are_refused():
    with pytest.raises(ValueError, match=r"data\.test_videos is 5001: .* 1 to 5000"):
        make_test_set("smmnist", 5001, 2)


# Training batches, against the generator of the test set as the reference.


NAMES = {flag: name for name, flag in moving_mnist.DETERMINISTIC.items()}


def sampled_paths(deterministic: bool, videos: int, frames: int) -> np.ndarray:
    source = MovingMNIST(torch.zeros(1, 28, 28, dtype=torch.uint8), deterministic=deterministic)
    generator = torch.Generator().manual_seed(0)
    return source.draw_positions(videos, frames, generator).numpy()


@pytest.mark.parametrize("deterministic", [False, True])
def test_training_paths_are_distributed_as_the_reference(deterministic):
    """Positions, steps and steps after a bounce have the same distributions.

    The bound on a distribution function is the two-sample Kolmogorov-Smirnov one at 1e-6 for about
    5,000 independent digits on either side.
    """
    reference = make_test_set(NAMES[deterministic], 2500, 30).positions
    ours = sampled_paths(deterministic, 2500, 30)
    bound = 2.7 * np.sqrt(2 / 5000)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        values = np.arange(-40, 41)
        cdf = [(x.reshape(-1)[:, None] <= values).mean(axis=0) for x in (a, b)]
        return abs(cdf[0] - cdf[1]).max()

    for t in (0, 5, 29):
        assert distance(reference[:, t], ours[:, t]) < bound
    assert distance(np.diff(reference, axis=1)[:, 20], np.diff(ours, axis=1)[:, 20]) < bound
    assert distance(after_wall(reference), after_wall(ours)) < bound
    assert distance(gaps(reference), gaps(ours)) < bound


def after_wall(positions: np.ndarray) -> np.ndarray:
    """The two steps that follow a frame on the top wall, on the column axis."""
    at_wall = positions[:, 4:-2, :, 0] == 0
    return (positions[:, 6:, :, 1] - positions[:, 4:-2, :, 1])[at_wall]


def gaps(positions: np.ndarray) -> np.ndarray:
    """Row distance of the two digits, which decides how they overlap."""
    return positions[:, 10, 0, 0] - positions[:, 10, 1, 0]


@pytest.mark.parametrize("deterministic", [False, True])
def test_bounces_and_overlaps_are_distributed_as_the_reference(deterministic):
    """At each wall, the two steps after it along and across the wall; and what digits share.

    Bounds as above, for the fewer digits that are at a wall of a given side: 200 or more.
    """
    reference = make_test_set(NAMES[deterministic], 2500, 30).positions
    ours = sampled_paths(deterministic, 2500, 30)
    for axis in (0, 1):
        for wall in (0, LIMIT):
            a, b = steps_from_wall(reference, axis, wall), steps_from_wall(ours, axis, wall)
            assert min(len(a), len(b)) > 200
            bound = 2.7 * np.sqrt(1 / len(a) + 1 / len(b))
            for component in (0, 1):
                assert ks_distance(a[:, component], b[:, component]) < bound
    for t in (0, 10, 29):
        bound = 2.7 * np.sqrt(2 / 2500)
        assert ks_distance(shared_area(reference[:, t]), shared_area(ours[:, t])) < bound


def steps_from_wall(positions: np.ndarray, axis: int, wall: int) -> np.ndarray:
    """Displacements over two frames `(digits, 2)` of the digits at a wall.

    At three times so far apart that what follows the one says little of the next.
    """
    times = np.array([6, 16, 26])
    at_wall = positions[:, times][..., axis] == wall
    return (positions[:, times + 2] - positions[:, times])[at_wall]


def shared_area(positions: np.ndarray) -> np.ndarray:
    """Pixels that the two 28x28 windows of a video share."""
    gap = abs(positions[:, 0] - positions[:, 1])
    return np.maximum(28 - gap, 0).prod(axis=-1)


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two empirical distribution functions."""
    values = np.union1d(a, b)
    cdf = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return abs(cdf[0] - cdf[1]).max()


def drawn_paths(deterministic: bool, count: int, frames: int) -> tuple[np.ndarray, ...]:
    """Positions `(count, frames, 2, 2)` and the random numbers that they were made of."""
    source = MovingMNIST(torch.zeros(1, 28, 28, dtype=torch.uint8), deterministic=deterministic)
    positions = source.draw_positions(count, frames, torch.Generator().manual_seed(1))
    generator, shape = torch.Generator().manual_seed(1), (count, 2, 2)
    start = torch.randint(0, LIMIT + 1, shape, generator=generator)
    speed, after = (
        torch.randint(-MAX_SPEED, MAX_SPEED + 1, size, generator=generator)
        for size in (shape, (frames, 5, *shape))
    )
    return positions.numpy(), start.numpy(), speed.numpy(), after.numpy()


def test_deterministic_training_paths_are_reflections():
    """On each axis a triangle wave, also through corners: exact, since all numbers are whole."""
    positions, start, speed, _ = drawn_paths(True, 2000, 60)
    straight = start[:, None] + speed[:, None] * np.arange(60)[:, None, None]
    assert np.array_equal(positions, LIMIT - abs(straight % (2 * LIMIT) - LIMIT))


def test_stochastic_training_paths_are_those_of_the_reference_for_the_same_random_numbers():
    """Digit by digit, with the arithmetic of the test set, up to five bounces within a frame."""
    positions, start, speed, after = drawn_paths(False, 3000, 30)
    apart = most = 0
    for clip, digit in np.ndindex(3000, 2):
        place, now, path = start[clip, digit].astype(float), tuple(speed[clip, digit]), []
        for t in range(30):
            for bounces in range(6):
                most = max(most, bounces)
                if bounces == 5 or abs(place - LIMIT / 2).max() <= LIMIT / 2 + 1e-8:
                    break
                numbers = iter(after[t, bounces, clip, digit].tolist())
                random = SimpleNamespace(randint=lambda *_, numbers=numbers: next(numbers))
                *place, now = moving_mnist._bounce(*place, now, random)
                place = np.array(place)
            path.append(place.clip(0, LIMIT))
            place = path[-1] + now
        apart += np.abs(path - positions[clip, :, digit]).max() > 1
    assert most == 5
    # A digit at a wall within 1e-8 does not bounce; in float32, rounding may take it further out.
    assert apart <= 60  # of 6000; 97 if the fifth bounce were left out


def test_training_batches_show_the_digits_at_the_positions():
    """Against the reference renderer, exactly: sums of whole numbers, saturated at 255."""
    digits, _ = mnist.load(MNIST, "test")
    source = MovingMNIST(torch.from_numpy(digits[:1].copy()), deterministic=False)
    batch = source.draw(4, 6, torch.Generator().manual_seed(3)).frames
    positions = source.draw_positions(4, 6, torch.Generator().manual_seed(3)).numpy()
    shapes = np.repeat(digits[:1], 8, axis=0).reshape(4, 2, 28, 28)
    expected = moving_mnist._render(shapes, positions)
    assert batch.shape == (4, 6, 1, 64, 64)
    assert np.array_equal((255 * batch[:, :, 0]).round().byte().numpy(), expected)


def test_batches_depend_only_on_their_number_and_differ():
    """Also across the border of the batches whose paths are drawn together."""
    digits, _ = mnist.load(MNIST, "test")
    source = MovingMNIST(torch.from_numpy(digits.copy()), deterministic=False)
    border = moving_digits.steps_at_once(torch.device("cpu"))[0]

    def batches(seed: int, first: int, end: int) -> list[torch.Tensor]:
        return [clips.frames for clips in islice(source.batches(2, 3, seed, first), end - first)]

    drawn = batches(5, 0, border + 2)[border - 2 :]
    again = batches(5, border - 2, border + 2)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert drawn[0].shape == (2, 3, 1, 64, 64)
    others = [*drawn[1:], *batches(6, border - 2, border - 1)]
    assert not any(torch.equal(drawn[0], other) for other in others)


def test_batches_rendered_several_at_a_time_begin_at_any_step(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(moving_digits, "steps_at_once", lambda device: (8, 4))
    digits = torch.randint(256, (50, 28, 28), dtype=torch.uint8)
    source = MovingMNIST(digits, deterministic=False)
    whole = [clips.frames for clips in islice(source.batches(2, 3, seed=5), 12)]
    for first in range(10):
        assert torch.equal(next(source.batches(2, 3, 5, first)).frames, whole[first])
    assert not any(torch.equal(whole[0], other) for other in whole[1:])


# Frames of another size


@pytest.mark.parametrize("size", [16, 32, 128])
def test_test_sets_of_another_size_show_the_same_scenes(some, size):
    other = make_test_set("smmnist", 20, 40, seed=7, size=size)
    assert other.sequences.shape == (20, 40, size, size)
    check_same_scenes(other.sequences, some.sequences[:20], other.positions, some.positions[:20])
    assert np.array_equal(other.speeds, some.speeds[:20])
    assert np.array_equal(other.labels, some.labels[:20])
    limit = other.positions.max()
    assert limit == LIMIT * size // 64 and other.positions.min() == 0


@pytest.mark.parametrize("size", [16, 32, 128])
def test_training_batches_of_another_size_show_the_same_scenes(size):
    digits, _ = mnist.load(MNIST, "test")
    frames, positions = {}, {}
    for side in (64, size):
        scaled = torch.from_numpy(moving_mnist.resized(digits[:50].copy(), side))
        source = MovingMNIST(scaled, deterministic=False)
        frames[side] = source.draw(10, 8, torch.Generator().manual_seed(3)).frames
        positions[side] = source.draw_positions(10, 8, torch.Generator().manual_seed(3)).numpy()
        assert frames[side].shape == (10, 8, 1, side, side)
    pixels = {side: (255 * x[:, :, 0]).round().byte().numpy() for side, x in frames.items()}
    check_same_scenes(pixels[size], pixels[64], positions[size], positions[64])


def check_same_scenes(x: np.ndarray, reference: np.ndarray, where: np.ndarray, there: np.ndarray):
    """Compare videos and positions with those of 64 pixels."""
    scale = x.shape[-1] / 64
    # Both are rounded to whole pixels of their own.
    assert np.abs(where / scale - there).max() <= 0.5 + 0.5 / scale
    a, b = (
        video.reshape(*video.shape[:2], 8, video.shape[-1] // 8, 8, -1).mean((3, 5))
        for video in (x, reference)
    )
    # 0.95 at 16 pixels, which round positions most; 0.1 to the scenes of other videos.
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9
    # Digits are as large and as thick. Lanczos overshoots below black, which is cut off.
    assert abs(a.mean() / b.mean() - 1) < 0.15


def test_digits_are_scaled_as_pillow_does():
    digits, _ = mnist.load(MNIST, "test")
    assert moving_mnist.resized(digits, 64) is digits
    scaled = moving_mnist.resized(digits[:3], 128)
    assert scaled.shape == (3, 56, 56) and scaled.dtype == np.uint8
    expected = Image.fromarray(digits[2]).resize((56, 56), Image.Resampling.LANCZOS)
    assert np.array_equal(scaled[2], expected)


# Raw files.


@pytest.fixture
def raw(tmp_path):
    shutil.copytree(MNIST, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_missing_file_is_named(raw):
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte.gz is missing.*ff7bcfd4"):
        mnist.load(raw, "test")


def test_a_truncated_file_is_named_with_the_checksum_expected(raw):
    path = raw / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz is damaged.*ba891046") as e:
        mnist.load(raw, "train")
    assert "\n" not in str(e.value)


def test_an_altered_file_is_named_with_the_checksum_expected(raw):
    path = raw / "t10k-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[5000] ^= 1
    path.write_bytes(gzip.compress(content, compresslevel=1))
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz was altered.*0fa7898d"):
        mnist.load(raw, "test")
