from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import generator
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from reference import structvrnn as reference

from srvp.devices import autocast
from srvp.models.interface import VideoShape
from srvp.models.parts import keypoints as kp
from srvp.models.structvrnn import Config, Noise, Randomness, StructVRNN
from srvp.report import figures
from srvp.report.figures.style import GIVEN, PREDICTED
from srvp.schema import ConfigError
from srvp.training.loop import read_checkpoint
from srvp.training.run import Run

PUBLIC = Config(conditioning_frames=8, beta=0.0)
SMALL = replace(
    PUBLIC,
    keypoints=5,
    nf=4,
    rnn_size=12,
    prior_size=10,
    posterior_size=11,
    z_dim=3,
    conditioning_frames=3,
    best_of=4,
    beta=0.7,
)
TINY_FRAMES = replace(SMALL, heatmap_width=4)  # for 16 pixels: as many stages as for 64
B, T, P = 2, 5, 3
PARITY = {"rtol": 1e-4, "atol": 1e-4}
EXACT = {"rtol": 0, "atol": 1e-5}  # batches of other sizes round differently
VISION = ("detector", "heat_maps", "appearance", "image_decoder")
DYNAMICS = ("p_z", "q_z", "keypoint_decoder", "cell")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build(config: Config, channels: int = 1, size: int = 16) -> StructVRNN:
    """Return a model whose weights leave nothing near zero: biases count, keypoints spread."""
    torch.manual_seed(0)
    model = config.build(VideoShape(channels, size))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.normal_(0, 0.2)
        model.heat_maps.weight.mul_(3)
    return model


def clips(channels: int = 1, size: int = 16, frames: int = T) -> torch.Tensor:
    """Return videos of a bright square that moves over noise, a different way in each."""
    x = 0.3 * torch.rand(B, frames, channels, size, size, generator=generator(1))
    side = size // 4
    for video in range(B):
        for t in range(frames):
            row, column = (size // 8 + (video + 1) * t) % size, (size // 2 - t) % size
            x[video, t, :, row : row + side, column : column + side] += 0.6
    return x


def randomness(model: StructVRNN, frames: int = T) -> Randomness:
    drawn = model.draw_randomness(B, frames, 10**6, generator(2))
    coins = torch.tensor([True, False, True, False, True])[:frames].repeat(B, 1)
    return drawn._replace(see_true=coins)


def arrays(model: StructVRNN) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def numpy_frames(x: torch.Tensor) -> np.ndarray:
    """Return frames `(..., C, H, W)` as the reference has them: `(..., H, W, C)`."""
    return x.double().movedim(-3, -1).numpy() - 0.5


def close(ours: torch.Tensor, theirs) -> None:
    np.testing.assert_allclose(ours.detach().double().numpy(), theirs, **PARITY)


SHAPES = [(1, 64, 16, T), (3, 64, 8, T), (3, 128, 16, 2)]


@pytest.mark.parametrize("channels, size, width, frames", SHAPES)
def test_training_agrees_with_the_reference(channels, size, width, frames):
    model = build(replace(SMALL, heatmap_width=width), channels, size)
    sizes, w = asdict(model.config), arrays(model)
    x, drawn = clips(channels, size, frames), randomness(model, frames)
    vision = reference.vision(w, sizes, numpy_frames(x))

    points, maps = model.detect(x)
    painted = model.paint(points, model.scene(x[:, 0], points[:, 0]))
    close(maps.movedim(-3, -1), vision["maps"])
    close(points, vision["keypoints"])
    close(painted.movedim(-3, -1) - 0.5, vision["painted"])
    spread = points[..., :2].flatten(0, 1).std(dim=0).mean()
    assert spread > 1e-3  # a detector that sees nothing would agree, too

    eps, coins = drawn.z.double().numpy(), drawn.see_true.numpy()
    expected = reference.dynamics(w, sizes, vision["keypoints"], eps, coins)
    assert len(np.unique(expected["best"])) > 1
    dynamics, observed = model.follow(points, drawn), min(P, frames)
    close(dynamics.keypoints.flatten(-2), expected["own"])
    close(dynamics.z, expected["z"])
    for belief, name in ((dynamics.p_z, "p"), (dynamics.q_z, "q")):
        close(belief.mean, expected[f"{name}_mean"][:, :observed])
        close(belief.stddev, expected[f"{name}_std"][:, :observed])

    loss = model.loss(x, drawn)
    for term in ("image", "separation", "kernels"):
        np.testing.assert_allclose(getattr(loss, term).item(), vision[term], rtol=1e-4)
    for term in ("coordinates", "kl"):
        np.testing.assert_allclose(getattr(loss, term).item(), expected[term], rtol=1e-4)
    # Their weight 5 is ours times the frames and divided by the videos.
    weighted = 5 * frames / B * loss.sparsity.item()
    np.testing.assert_allclose(weighted, 5 * vision["sparsity"], rtol=1e-4)
    c = model.config
    total = loss.image + c.separation * loss.separation + c.sparsity * loss.sparsity
    total += loss.coordinates + c.beta * loss.kl + c.l2_kernels * loss.kernels
    torch.testing.assert_close(loss.total, total)


def test_gradients_agree_with_differences_of_the_reference():
    """Each parameter, along a random direction; the reference stops gradients by hand."""
    model = build(TINY_FRAMES)
    sizes, x, drawn = asdict(model.config), clips(), randomness(model)
    model.loss(x, drawn).total.backward()
    w, frames = arrays(model), numpy_frames(x)
    points = reference.vision(w, sizes, frames)["keypoints"]
    eps, coins = drawn.z.double().numpy(), drawn.see_true.numpy()
    stopped = reference.dynamics(w, sizes, points, eps, coins)["stopped"]

    def total(w, name):
        if name.startswith(DYNAMICS):
            terms = reference.dynamics(w, sizes, points, eps, coins, stopped)
            return terms["coordinates"] + sizes["beta"] * terms["kl"]
        terms = reference.vision(w, sizes, frames)
        terms["sparsity"] *= B / T  # as a mean
        weights = {"separation": sizes["separation"], "sparsity": sizes["sparsity"]}
        weights |= {"image": 1, "kernels": sizes["l2_kernels"]}
        return sum(weight * terms[term] for term, weight in weights.items())

    random, step = np.random.default_rng(0), 1e-6
    for name, p in model.named_parameters():
        direction = random.standard_normal(p.shape)
        ahead, behind = ({**w, name: w[name] + s * direction} for s in (step, -step))
        expected = (total(ahead, name) - total(behind, name)) / (2 * step)
        found = (p.grad.double().numpy() * direction).sum()
        size = p.grad.double().norm().item()  # the derivative along a direction of length 1
        assert size > 0, name
        np.testing.assert_allclose(found, expected, atol=1e-4 * size, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("channels, size, width, frames", SHAPES[1:])
def test_prediction_agrees_with_the_reference(channels, size, width, frames):
    model = build(replace(SMALL, heatmap_width=width), channels, size)
    x, samples, future = clips(channels, size, frames), 2, 3
    noise = model.draw_noise(B * samples, frames + future, generator(3))
    predicted = model.predict(model.condition(x), future, noise)
    eps = noise.z.double().numpy().reshape(B, samples, frames + future, -1)
    for video in range(B):
        given = numpy_frames(x)[video]
        expected = reference.predict(arrays(model), asdict(model.config), given, future, eps[video])
        ours = predicted.x.unflatten(0, (B, samples))[video]
        close(ours.movedim(-3, -1) - 0.5, expected)
        assert ours.std(dim=0).max() > 1e-3  # futures differ


def test_parameter_counts_are_those_of_the_public_code():
    expected = {
        "detector": 481_344,
        "heat_maps": 8_256,
        "appearance": 480_768,
        "image_decoder": 33_152 + 138_432 + 99,
        "p_z": 69_792,
        "q_z": 94_368,
        "keypoint_decoder": 92_480,
        "cell": 1_107_456,
    }
    model = PUBLIC.build(VideoShape(3))
    assert {name: count(part) for name, part in model.named_children()} == expected
    assert count(model) == 2_506_147
    assert count(PUBLIC.build(VideoShape(1))) == 2_504_929
    assert count(replace(PUBLIC, keypoints=48).build(VideoShape(3))) == 2_413_923
    assert count(SMALL.build(VideoShape(1))) == 23_701


def test_initialisation_is_that_of_keras():
    torch.manual_seed(0)
    model = PUBLIC.build(VideoShape(3))

    def is_uniform(weight, bound):
        assert bound * 0.95 < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)

    is_uniform(model.appearance[1][0].weight, (6 / (9 * 32)) ** 0.5)
    is_uniform(model.image_decoder.join.weight, (6 / 258) ** 0.5)
    is_uniform(model.p_z[0].weight, (6 / 512) ** 0.5)
    is_uniform(model.p_z[2].weight, (6 / (128 + 16)) ** 0.5)
    is_uniform(model.heat_maps.weight, (6 / (128 + 64)) ** 0.5)
    is_uniform(model.keypoint_decoder[2].weight, (6 / (128 + 192)) ** 0.5)
    is_uniform(model.cell.input.weight, (6 / (192 + 16 + 3 * 512)) ** 0.5)
    u = model.cell.recurrent.weight
    torch.testing.assert_close(u.T @ u, torch.eye(512), rtol=0, atol=1e-5)
    assert all(not p.any() for p in model.parameters() if p.dim() == 1)


# Laws.


def test_keypoint_of_a_single_pixel_is_where_it_is():
    maps = torch.zeros(1, 2, 16, 16)
    maps[0, 0, 0, 0] = 1.0
    maps[0, 1, 15, 8] = 0.25
    found = kp.from_maps(maps)[0]
    expected = torch.tensor([[-1, 1, 1], [2 * 8 / 15 - 1, -1, 0.25]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)
    assert kp.from_maps(torch.zeros(1, 2, 16, 16)).abs().max() < 1e-6


def test_drawn_keypoints_are_found_where_they_were_drawn():
    points = torch.tensor([[[0.3, -0.2, 1.0], [-0.4, 0.1, 0.5]]])
    found = kp.from_maps(kp.to_maps(points, 16, 0.1))
    torch.testing.assert_close(found, points, rtol=0, atol=5e-3)


def test_keypoints_move_with_the_image():
    """A shift by a pixel of the heat maps, of an object on grey, shifts them by that pixel."""
    torch.manual_seed(1)
    model = SMALL.build(VideoShape(1, 64))
    with torch.no_grad():
        model.detector[0][0].weight[:, 1:] = 0  # coordinates tell where a thing is
        model.heat_maps.weight.mul_(1000)
        model.heat_maps.bias.fill_(-30)  # nothing where nothing is
    x = torch.full((1, 4, 1, 64, 64), 0.5)
    for t, (row, column) in enumerate([(28, 28), (28, 32), (24, 28), (24, 32)]):
        x[0, t, 0, row : row + 4, column : column + 4] = torch.rand(4, 4, generator=generator(0))
    points, maps = model.detect(x)
    seen = maps.amax(dim=(0, 1, 3, 4)) > 1
    assert seen.sum() > 1
    pixel = 2 / 15
    shift = (points[0, 1:, seen, :2] - points[0, :1, seen, :2]).mean(dim=1)
    expected = torch.tensor([[pixel, 0], [0, pixel], [pixel, pixel]])
    torch.testing.assert_close(shift, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(maps[0, 1, ..., 1:], maps[0, 0, ..., :-1], rtol=1e-4, atol=1e-4)


def test_keypoints_without_intensity_draw_nothing():
    model, x = build(TINY_FRAMES), clips()
    points, _ = model.detect(x)
    scene = model.scene(x[:, 0], points[:, 0])
    hidden = points.clone()
    hidden[..., 2] = 0
    assert not kp.to_maps(hidden, 4, 0.1).any()
    moved = hidden.clone()
    moved[..., :2] = -moved[..., :2]
    torch.testing.assert_close(model.paint(hidden, scene), model.paint(moved, scene))
    assert not torch.allclose(model.paint(hidden, scene), model.paint(points, scene))


def test_separation_tells_parallel_from_independent_movement():
    paths = torch.randn(3, 8, 1, 2, generator=generator(0))
    parallel = torch.cat([paths + offset for offset in (0.0, 0.5, -2.0)], dim=2)
    scales = torch.rand(3, 8, 3, 1, generator=generator(1))
    assert kp.separation(torch.cat([parallel, scales], -1), 0.1).item() == pytest.approx(1)
    apart = torch.cat([5 * paths, torch.zeros_like(paths), -5 * paths], dim=2)
    assert kp.separation(torch.cat([apart, scales], -1), 0.1).item() == pytest.approx(0, abs=1e-6)


def test_kl_has_its_closed_form():
    """N(2, 2^2) from N(0, 1), whatever h and k are."""
    model = build(TINY_FRAMES)
    with torch.no_grad():
        for net, mean, std in ((model.p_z, 0.0, 1.0), (model.q_z, 2.0, 2.0)):
            net[2].weight.zero_()
            net[2].bias[:3] = mean
            net[2].bias[3:] = np.log(np.expm1(std - 1e-4))
    kl = model.loss(clips(), randomness(model)).kl
    torch.testing.assert_close(kl.item(), 3 * 0.5 * (4 + 4 - np.log(4) - 1), rtol=1e-5, atol=0)


def test_gradients_do_not_pass_between_vision_and_dynamics():
    model = build(TINY_FRAMES)
    loss = model.loss(clips(), randomness(model))
    parts = {name: list(part.parameters()) for name, part in model.named_children()}
    reached = {
        term: {
            name
            for name, p in parts.items()
            if any(
                g is not None and g.any()
                for g in torch.autograd.grad(
                    getattr(loss, term), p, retain_graph=True, allow_unused=True
                )
            )
        }
        for term in loss._fields
    }
    detector = {"detector", "heat_maps"}
    assert reached == {
        "total": {*VISION, *DYNAMICS},
        "image": {*VISION},
        "separation": detector,
        "sparsity": detector,
        "coordinates": {"q_z", "keypoint_decoder", "cell"},  # the prior learns from the KL only
        "kl": {*DYNAMICS},
        "kernels": {"detector", "appearance", "image_decoder"},
    }


def test_gradients_reach_every_parameter():
    model = build(TINY_FRAMES, channels=3)
    model.loss(clips(3), randomness(model)).total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_only_the_nearest_sample_is_kept():
    model, x = build(TINY_FRAMES), clips()
    points = model.detect(x)[0].detach()
    drawn = randomness(model)
    kept = model.follow(points, drawn).keypoints
    errors = []
    for n in range(SMALL.best_of):  # only sample n, along the same states as far as frame 1
        single = model.follow(points, drawn._replace(z=drawn.z[:, :, n : n + 1]))
        errors.append((single.keypoints[:, 0] - points[:, 0]).square().sum(dim=(-2, -1)))
    best = torch.stack(errors).amin(dim=0)
    found = (kept[:, 0] - points[:, 0]).square().sum(dim=(-2, -1))
    torch.testing.assert_close(found, best)


def test_schedules():
    config = replace(SMALL, beta=0.5, beta_steps=1000, own_steps=8000)
    model = build(replace(config, heatmap_width=4))
    draws = {
        step: model.draw_randomness(2, 4000, step, generator(step)) for step in (1, 500, 20000)
    }
    assert [d.beta.item() for d in draws.values()] == pytest.approx([0.0005, 0.25, 0.5])
    assert all(d.beta.dim() == 0 for d in draws.values())
    after = {step: d.see_true[:, P:].float().mean().item() for step, d in draws.items()}
    expected = {step: 1 - 0.5 * min(step / 8000, 1) for step in draws}
    assert after == pytest.approx(expected, abs=0.03)
    assert all((d.see_true[0] == d.see_true[1]).all() for d in draws.values())
    until = [
        model.draw_randomness(1, P, 20000, generator(n)).see_true.float().mean().item()
        for n in range(1000)
    ]
    assert np.mean(until) == pytest.approx(0.1, abs=0.03)


def test_schedules_of_one_step_end_with_the_first():
    """Steps count from 1. At the end, half of the keypoints after the given ones are true."""
    model = build(replace(SMALL, heatmap_width=4, beta_steps=1, own_steps=1))
    drawn = model.draw_randomness(1, 4000, 1, generator())
    assert drawn.beta.item() == pytest.approx(SMALL.beta)
    assert drawn.see_true[:, P:].float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_same_noise_same_futures_and_longer_ones_begin_alike():
    model, x = build(TINY_FRAMES), clips()
    given = model.condition(x)
    noise = model.draw_noise(2 * B, T + 9, generator(0))
    with torch.no_grad():
        long, again = (model.predict(given, 9, noise) for _ in range(2))
        short = model.predict(given, 4, noise)
        one = model.predict(model.condition(x[1:]), 9, Noise(noise.z[2:]))
    for field in long._fields:
        long_field = getattr(long, field)
        assert torch.equal(long_field, getattr(again, field))
        torch.testing.assert_close(long_field[:, :4], getattr(short, field), **EXACT)
        torch.testing.assert_close(long_field[2:], getattr(one, field), **EXACT)
    assert long.x.min() >= 0 and long.x.max() <= 1
    shorter = model.draw_noise(2 * B, T + 4, generator(0))
    assert torch.equal(noise.z[:, : T + 4], shorter.z)


def test_given_frames_act_through_their_keypoints():
    """But for the first, which is painted on; frames to come do not act at all."""
    model, x = build(TINY_FRAMES), clips()
    noise = model.draw_noise(B, T + 2, generator(0))
    given = model.condition(x)
    moved = x.roll(3, dims=-1)
    moved[:, 0] = x[:, 0]
    other = model.condition(moved)
    futures = [model.predict(state, 2, noise) for state in (given, other)]
    assert not torch.allclose(futures[0].keypoints, futures[1].keypoints)
    for name in ("first", "features"):
        assert torch.equal(getattr(given.state.scene, name), getattr(other.state.scene, name))


def test_heat_maps_have_to_fit_the_frames():
    with pytest.raises(ConfigError, match="heatmap_width is 16; expected the 8 pixels"):
        SMALL.build(VideoShape(1, 8))
    with pytest.raises(ConfigError, match="heatmap_width is 12; expected the 64 pixels"):
        replace(SMALL, heatmap_width=12).build(VideoShape(1, 64))


# In the training loop.


@pytest.fixture
def experiment(tiny):
    """The experiment `tiny` with this model."""
    model = replace(SMALL, nf=2, conditioning_frames=5)
    sizes = {"frames": 8, "batch_size": 2, "lr": 0.01, "constant_steps": 20}
    return replace(
        tiny,
        model=model,
        training=replace(tiny.training, **sizes, clip_norm=10.0, clip_each=True),
        evaluation=replace(tiny.evaluation, predict=({},)),
    )


def test_training_lowers_the_loss_and_resumes_bit_for_bit(experiment, blobs, tmp_path):
    device = torch.device("cpu")
    whole, cut, resumed = (Run(experiment, device) for _ in range(3))

    def move(run, steps):
        for _ in range(steps):
            run.update(blobs.train.draw(2, 8, run.generator))

    move(cut, 6)
    cut.save(tmp_path / "checkpoint.pt")
    resumed.restore(read_checkpoint(tmp_path / "checkpoint.pt", device))
    move(resumed, 6)
    move(whole, 12)
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name]), name
    losses = [run.close_row()["total"] for run in (cut, whole)]  # of 6 steps, and of 12
    assert losses[1] < 0.95 * losses[0]


def test_gradients_are_clipped_one_by_one(experiment, blobs):
    clips = blobs.train.draw(2, 8, generator(0))

    def gradients(**changes):
        training = replace(experiment.training, **changes)
        run = Run(replace(experiment, training=training), torch.device("cpu"))
        run.update(clips)
        return [p.grad for p in run.model.parameters()]

    free, clipped = gradients(clip_norm=None), gradients()
    norms = torch.stack([g.norm() for g in free])
    assert norms.min() < 10 < norms.max()
    for before, after in zip(free, clipped, strict=True):
        expected = before * (10 / before.norm()).clamp(max=1)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=0)


def test_bfloat16_and_the_memory_layout_change_the_loss_by_little():
    model, x = build(SMALL, 3, 64), clips(3, 64)
    drawn = randomness(model)._replace(z=torch.zeros(B, T, 1, 3))  # no near ties of samples
    with torch.no_grad():
        plain = model.loss(x, drawn)
        with autocast("bfloat16", torch.device("cpu")):
            rough = model.loss(x, drawn)
        other = model.to(memory_format=torch.channels_last).loss(x, drawn)
    torch.testing.assert_close(torch.stack(other), torch.stack(plain), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack(rough), torch.stack(plain), rtol=0.05, atol=0.01)
    assert all(term.dtype == torch.float32 for term in rough)


# In figures. Corners and the middle of frames of 64 pixels:

CORNERS = np.array([[-1, 1, 1.0], [1, -1, 0.25], [0, 0, -0.5]])  # upper left, lower right
PLACES = [[0, 0], [63, 63], [31.5, 31.5]]  # column, row


def test_keypoints_are_drawn_where_the_maps_have_them():
    """A drawn keypoint has its centre of mass where the figure marks it."""
    (mark,) = (
        figures.keypoint_grid(
            {"a": np.zeros((1, 1, 16, 16))}, {"a": np.array([[[0.2, -0.4, 1.0]]])}, 1, [0]
        )
        .axes[0]
        .collections
    )
    column, row = mark.get_offsets()[0]
    drawn = kp.to_maps(torch.tensor([[0.2, -0.4, 1.0]]), 16, 0.1)[0]
    pixel = torch.arange(16.0)
    assert (drawn.sum(0) * pixel).sum() / drawn.sum() == pytest.approx(column, abs=0.01)
    assert (drawn.sum(1) * pixel).sum() / drawn.sum() == pytest.approx(row, abs=0.01)


def test_a_grid_has_every_frame_with_its_keypoints():
    videos = {name: np.zeros((3, 3, 64, 64), np.uint8) for name in ("truth", "future")}
    points = {"truth": np.stack([CORNERS, -CORNERS, CORNERS]), "future": np.stack([CORNERS] * 3)}
    figure = figures.keypoint_grid(videos, points, 2, [0, 1, 2])
    assert [to_hex(ax.spines["left"].get_edgecolor()) for ax in figure.axes] == 2 * [
        GIVEN,
        GIVEN,
        PREDICTED,
    ]
    marks = [ax.collections[0] for ax in figure.axes]
    np.testing.assert_allclose(marks[0].get_offsets(), PLACES)
    np.testing.assert_allclose(marks[1].get_offsets(), PLACES[1::-1] + PLACES[2:])
    sizes = marks[0].get_sizes()
    assert sizes[0] == 4 * sizes[1] and sizes[2] == 0  # a negative scale shows nothing
    assert len(np.unique(marks[0].get_facecolors(), axis=0)) == 3


def test_trajectories_leave_from_the_last_given_keypoints():
    given = np.stack([0.5 * CORNERS, CORNERS])
    futures = np.stack([np.stack([CORNERS * (1 - 0.1 * s)] * 4) for s in range(5)])
    figure = figures.keypoint_trajectories(np.zeros((1, 64, 64), np.uint8), given, futures, 2)
    ax = figure.axes[0]
    drawn = [lines for lines in ax.collections if isinstance(lines, LineCollection)]
    paths = [segment for lines in drawn for segment in lines.get_segments()]
    assert len(paths) == 2 * 3 and {len(path) for path in paths} == {1 + 4}
    assert {tuple(path[0]) for path in paths} == {(0, 0), (63, 63)}  # the strongest two
    colors = [to_hex(c) for lines in drawn for c in lines.get_colors()]
    assert len(set(colors)) == 2 and GIVEN not in colors  # a colour for each keypoint


def test_distance_to_the_nearest_keypoint():
    centres = np.array([[[0.0, 0.0], [60.0, 63.0]]])  # row, column
    assert figures.distance_to_nearest(CORNERS[None], centres, 64) == pytest.approx(1.5)
