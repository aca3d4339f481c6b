"""SV2P against a second writing of it (`reference_savp`), and the laws of its training."""

import pytest
import torch
from reference_savp import (
    ERRORS,
    Variables,
    adam_step,
    as_frames,
    assert_close,
    assert_gradients_equal,
    assert_terms_equal,
    cast,
    sv2p,
)
from torch import Tensor

from srvp.models.interface import Clips, VideoShape
from srvp.models.official_savp import from_variables
from srvp.models.parts import cdna
from srvp.models.sv2p import SV2P, Config, Randomness
from srvp.schema import ConfigError

SIZE, FRAMES, COUNT, GIVEN = 16, 4, 2, 2
HPARAMS = {"context_frames": GIVEN, "sequence_length": FRAMES, "kl_weight": 0.3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(**changes) -> Config:
    settings = {
        "transformation": "cdna",
        "time_variant": False,
        "conditioning_frames": GIVEN,
        "posterior_frames": FRAMES,
        "beta": 0.3,
        "prior_steps": 50,
        "kl_start": 100,
        "kl_end": 120,
        "sampling_k": 900.0,
    }
    return Config(**settings | changes)


def clips(channels: int, actions: int = 0, seed: int = 1) -> Clips:
    random = generator(seed)
    frames = torch.rand(COUNT, FRAMES, channels, SIZE, SIZE, generator=random)
    taken = torch.randn(COUNT, FRAMES, actions, generator=random) if actions else None
    return Clips(frames, taken)


def randomness(time_variant: bool, kl_weight: float, from_posterior: bool = True) -> Randomness:
    model = config(time_variant=time_variant).build(VideoShape(1, SIZE))
    drawn = model.draw_randomness(COUNT, FRAMES, 7000, generator(2))  # some true, some drawn frames
    return drawn._replace(
        from_posterior=torch.tensor(from_posterior), kl_weight=torch.tensor(kl_weight)
    )


def reference(seed: int, clips: Clips, r: Randomness, **options) -> tuple[Variables, dict]:
    variables = Variables(seed)
    out = sv2p(
        variables,
        clips,
        r.noise.z,
        r.true_frames,
        from_posterior=bool(r.from_posterior),
        kl_weight=float(r.kl_weight),
        **options,
    )
    return variables, out


def as_model(
    variables: dict[str, Tensor], dtype=torch.float64, all_kernels: bool = False, **hparams
) -> SV2P:
    weights = {name: value.detach().numpy() for name, value in variables.items()}
    return from_variables(weights, HPARAMS | hparams, SIZE, all_kernels=all_kernels).to(dtype)


@pytest.mark.parametrize(
    ("channels", "time_variant", "dtype"), [(1, False, torch.float32), (3, True, torch.float64)]
)
def test_training_step_equals_the_reference(
    channels: int, time_variant: bool, dtype: torch.dtype
) -> None:
    """Frames, masks, kernels, latents, losses, gradients and a step of Adam."""
    x, r, errors = clips(channels), randomness(time_variant, kl_weight=0.3), ERRORS[dtype]
    assert r.true_frames.float().mean() not in (0, 1)
    variables, expected = reference(3, x, r, dna=False)
    model = as_model(variables, dtype, multi_latent=time_variant)
    x, r = cast((x, r), dtype)
    out, loss = model(x, r), model.loss(x, r)
    assert_close(out.x, as_frames(expected["frames"]), errors.frame)
    for t, drawn in enumerate(out.drawn):
        masks, kernels = as_frames(expected["masks"][t]), expected["kernels"][t]
        assert masks.std() > 0.05 and kernels.std() > 0.01  # neither is the same everywhere
        assert_close(drawn.masks, masks, errors.frame)
        assert_close(drawn.kernels.transpose(1, 2).unflatten(1, (5, 5)), kernels, errors.frame)
    assert_close(out.q_z.mean, as_frames(expected["mean"]), errors.frame)
    assert_close(out.q_z.log_variance, as_frames(expected["log_variance"]), errors.frame)
    assert_terms_equal(loss, expected, errors.loss)
    gradients = torch.autograd.grad(expected["total"], list(variables.values()))
    loss.total.backward()
    theirs = as_model(dict(zip(variables, gradients, strict=True)), multi_latent=time_variant)
    assert_gradients_equal(
        {name: p.grad for name, p in model.named_parameters()},
        {name: p.detach() for name, p in theirs.named_parameters()},
        errors.gradient,
    )
    adam_step(variables, gradients, lr=1e-3, betas=(0.9, 0.999))
    torch.optim.Adam(model.parameters(), lr=1e-3).step()
    moved = as_model(variables, dtype, multi_latent=time_variant)
    assert_close(model(x, r).x, moved(x, r).x.double(), errors.step)


@pytest.mark.parametrize(
    ("options", "hparams", "actions"),
    [
        ({"dna": True}, {"transformation": "dna"}, 0),
        ({"dna": False, "every": True}, {"all_kernels": True}, 0),
        ({"dna": False}, {}, 4),
    ],
    ids=["dna", "all kernels", "actions"],
)
def test_variants_equal_the_reference(options: dict, hparams: dict, actions: int) -> None:
    x, r = clips(3, actions), randomness(False, kl_weight=0.0, from_posterior=False)
    variables, expected = reference(4, x, r, **options)
    out = as_model(variables, **hparams)(*cast((x, r), torch.float64))
    error = ERRORS[torch.float64].frame
    assert_close(out.x, as_frames(expected["frames"]), error)
    masks = as_frames(torch.stack(expected["masks"], 1))
    assert_close(torch.stack([d.masks for d in out.drawn], 1), masks, error)


@pytest.mark.parametrize("time_variant", [False, True])
def test_prediction_feeds_its_own_frames_back(time_variant: bool) -> None:
    """It equals the reference with z from the prior and no true frame after the given ones."""
    x, r = clips(1), randomness(time_variant, kl_weight=0.0, from_posterior=False)
    r = r._replace(true_frames=(torch.arange(FRAMES - 1) < GIVEN).expand(COUNT, -1))
    variables, expected = reference(5, x, r, dna=False)
    model = as_model(variables, multi_latent=time_variant)
    x, noise = cast((x, r.noise), torch.float64)
    with torch.no_grad():
        ours = model.predict(model.condition(x.until(GIVEN)), FRAMES - GIVEN, noise).x
    theirs = as_frames(expected["frames"][:, GIVEN - 1 :])
    assert_close(ours, theirs, ERRORS[torch.float64].frame)


def test_samples_of_a_clip_stay_together() -> None:
    model = config().build(VideoShape(1, SIZE)).eval()
    x, noise = clips(1).frames[:, :2], model.draw_noise(2 * COUNT, 4, generator())
    with torch.no_grad():
        together = model.predict(model.condition(x), 2, noise).x
        alone = model.predict(model.condition(x[1:2]), 2, type(noise)(noise.z[2:4])).x
    torch.testing.assert_close(together[2:4], alone, atol=1e-6, rtol=0)
    assert not together[2].equal(together[3])


def test_prediction_needs_actions_of_the_future() -> None:
    model = config().build(VideoShape(1, SIZE, actions=2)).eval()
    given = model.condition(Clips(clips(1).frames[:, :2], torch.zeros(COUNT, 3, 2)))
    with pytest.raises(ValueError, match="actions are of 3 frames, expected 4 or more"):
        model.predict(given, 3, model.draw_noise(COUNT, 5, generator()))


@pytest.mark.parametrize(
    ("channels", "frames", "total"), [(1, 20, 8372162), (3, 12, 8378500), (1, 15, 8370722)]
)
def test_parameters_are_as_many_as_in_the_public_code(
    channels: int, frames: int, total: int
) -> None:
    """But for the 24 weights that predict a robot arm's state."""
    with torch.device("meta"):
        model = config(posterior_frames=frames).build(VideoShape(channels))
    assert sum(p.numel() for p in model.parameters()) == total - 24


def test_last_kernel_is_dropped_unless_it_is_mended() -> None:
    for mended in (False, True):
        model = config(all_kernels=mended).build(VideoShape(1, SIZE))
        model.loss(clips(1), randomness(False, 0.0)).total.backward()
        by_kernel = model.predictor.kernels.bias.grad.view(25, 10).abs().sum(dim=0)
        assert (by_kernel[:9] > 0).all()
        assert (by_kernel[9] > 0) == mended


def test_initial_weights_are_glorot_uniform() -> None:
    torch.manual_seed(0)
    model = config().build(VideoShape(1, SIZE))
    kernel = model.predictor.lstms[4].gates.weight  # 192 inputs, 512 outputs, 25 taps
    bound = (6 / (25 * (192 + 512))) ** 0.5
    assert 0.99 * bound < kernel.abs().max() <= bound
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name


def test_stages_of_training() -> None:
    """The public settings: z from the prior, then from the posterior, then a KL that rises."""
    model = config(prior_steps=50000, kl_start=100000, kl_end=120000, beta=0.2)
    model = model.build(VideoShape(1, SIZE))
    for taken, posterior, weight in (
        (0, False, 0.0),
        (49999, False, 0.0),
        (50000, True, 0.0),
        (100000, True, 0.0),
        (110000, True, 0.1),
        (120000, True, 0.2),
        (500000, True, 0.2),
    ):
        r = model.draw_randomness(2, FRAMES, taken + 1, generator())
        assert bool(r.from_posterior) is posterior
        assert float(r.kl_weight) == pytest.approx(weight)


def test_first_stage_leaves_the_posterior_alone() -> None:
    model = config().build(VideoShape(1, SIZE))
    model.loss(clips(1), randomness(False, 0.0, from_posterior=False)).total.backward()
    assert all(not p.grad.any() for p in model.tower.parameters())


def test_scheduled_sampling_picks_as_many_true_frames_as_the_rate_says() -> None:
    """Half at 6,122 steps, none of 32 clips from 9,851 on; given frames are always true."""
    model = config().build(VideoShape(1, SIZE))
    for taken, count in ((0, 32), (6122, 16), (9850, 1), (9851, 0), (10**7, 0)):
        r = model.draw_randomness(32, 8, taken + 1, generator(taken))
        assert r.true_frames[:, :GIVEN].all()
        assert r.true_frames[:, GIVEN:].sum(dim=0).tolist() == [count] * (7 - GIVEN)
    r = model.draw_randomness(32, 8, 6123, generator())
    assert not r.true_frames[:, GIVEN].equal(r.true_frames[:, GIVEN + 1])  # other clips each time
    assert cdna.true_frame_rate(1, 0) == 0


def test_posterior_tells_the_length_that_it_needs() -> None:
    model = config().build(VideoShape(1, SIZE))
    r = model.draw_randomness(COUNT, FRAMES - 1, 1, generator())
    with pytest.raises(ConfigError, match=r"training.frames is 3, but model.posterior_frames is 4"):
        model.loss(clips(1).until(FRAMES - 1), r)


@pytest.mark.parametrize(
    "changes", [{"kl_end": 99}, {"transformation": "dna", "all_kernels": True}]
)
def test_impossible_settings_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        config(**changes)
