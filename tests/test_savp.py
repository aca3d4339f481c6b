"""SAVP against a second writing of it (`reference_savp`), and the laws of its training."""

import pytest
import reference_savp as reference
import torch
from reference_savp import ERRORS, Variables, as_frames, assert_close, assert_terms_equal
from torch import Tensor

from srvp.models.interface import Clips, VideoShape
from srvp.models.official_savp import from_variables
from srvp.models.parts import cdna
from srvp.models.parts.discriminators import SpectralWeight, VideoDiscriminator
from srvp.models.parts.savp_networks import PooledConv2d, UpsampledConv2d
from srvp.models.savp import SAVP, Config, Noise, Randomness
from srvp.schema import ConfigError

SIZE, FRAMES, COUNT, GIVEN, CLIP = 32, 6, 2, 2, 4
NZ, NGF, NEF, NDF = 3, 4, 4, 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(**changes) -> Config:
    settings = {
        "nz": NZ,
        "ngf": NGF,
        "nef": NEF,
        "ndf": NDF,
        "transformation": "cdna",
        "conditioning_frames": GIVEN,
        "clip_length": CLIP,
        "shared_windows": False,
        "l1_weight": 100.0,
        "l2_weight": 1.0,
        "kl_weight": 0.5,
        "kl_start": 0,
        "kl_end": 0,
        "gan_weight": 0.1,
        "vae_gan_weight": 0.2,
        "gan_features_weight": 5.0,
        "vae_gan_features_weight": 10.0,
        "sampling_k": 900.0,
    }
    return Config(**settings | changes)


VAE = {
    "gan_weight": 0.0,
    "vae_gan_weight": 0.0,
    "gan_features_weight": 0.0,
    "vae_gan_features_weight": 0.0,
}
GAN = {"vae_gan_weight": 0.0, "vae_gan_features_weight": 0.0, "kl_weight": 0.0}


def clips(channels: int, actions: int = 0) -> Clips:
    random = generator(1)
    frames = torch.rand(COUNT, FRAMES, channels, SIZE, SIZE, generator=random)
    taken = torch.randn(COUNT, FRAMES, actions, generator=random) if actions else None
    return Clips(frames, taken)


def randomness(c: Config) -> Randomness:
    """Of a step when some frames are true and some are drawn."""
    return c.build(VideoShape(1, SIZE)).draw_randomness(COUNT, FRAMES, 6500, generator(2))


def compute(v: Variables, x: Clips, c: Config, r: Randomness) -> tuple[dict, dict, dict]:
    """Frames, the discriminators' and the generator's terms of the reference."""
    out = reference.savp_generate(
        v, x, r, given=c.conditioning_frames, nz=c.nz, ngf=c.ngf, nef=c.nef, how=c.transformation
    )
    losses = {"weights": c.gan_weights, "length": c.clip_length, "ndf": c.ndf}
    judged = reference.savp_discriminator_loss(v, x, r, out, **losses)
    return out, judged, reference.savp_generator_loss(v, x, r, out, c=c, ndf=c.ndf)


def as_model(variables: dict[str, Tensor], c: Config, dtype=torch.float64) -> SAVP:
    weights = {name: value.detach().numpy() for name, value in variables.items()}
    hparams = {"sequence_length": FRAMES, "context_frames": GIVEN}
    return from_variables(weights, hparams, **vars(c)).train().to(dtype)


def assert_gradients_equal(model: SAVP, expected: dict[str, Tensor], v: Variables) -> None:
    """Compare the gradients of a group of the model's weights with the reference's."""
    everything = {n: expected.get(n, torch.zeros_like(value)) for n, value in v.items()}
    theirs = dict(as_model(everything, model.config).named_parameters())
    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    error = ERRORS[next(model.parameters()).dtype].gradient
    reference.assert_gradients_equal(ours, {n: theirs[n].detach() for n in ours}, error)


@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.float64), (3, torch.float32)])
def test_training_step_equals_the_reference(channels: int, dtype: torch.dtype) -> None:
    """Both objectives in order: terms, gradients, and a step of Adam of either optimizer."""
    c, x, v, errors = config(), clips(channels), Variables(3), ERRORS[dtype]
    r = randomness(c)
    assert r.true_frames.float().mean() not in (0, 1)
    out, *_ = compute(v, x, c, r)
    model, x_, r_ = as_model(v, c, dtype), reference.cast(x, dtype), reference.cast(r, dtype)
    generated = model(x_, r_)
    error = errors.frame if dtype == torch.float64 else 1e-4  # instance norm
    for name in ("posterior", "prior"):
        assert_close(generated.passes[name], as_frames(out[name][0]), error)
    for t, drawn in enumerate(generated.drawn):
        masks, kernels = (torch.cat([out[n][i][t] for n in ("posterior", "prior")]) for i in (1, 2))
        assert masks.std() > 0.05 and kernels.std() > 0.01
        assert_close(drawn.masks, as_frames(masks), error)
        assert_close(drawn.kernels.transpose(1, 2).unflatten(1, (5, 5)), kernels, error)
    assert_close(generated.mean, out["mean"], error)
    assert_close(generated.log_variance, out["log_variance"], error)
    groups = model.parameter_groups()
    optimizers = {n: torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.999)) for n, p in groups.items()}
    for objective in model.objectives(1):
        _, judged, made = compute(v, x, c, r)
        expected = judged if objective == "discriminators" else made
        loss = model.loss(x_, r_, objective)
        assert_terms_equal(loss, expected, errors.loss)
        loss.total.backward(inputs=groups[objective])
        moved = v.trained(objective.removesuffix("s"))
        gradients = torch.autograd.grad(expected["total"], list(moved.values()))
        assert_gradients_equal(model, dict(zip(moved, gradients, strict=True)), v)
        optimizers[objective].step()
        model.zero_grad()
        reference.adam_step(moved, gradients, lr=2e-4, betas=(0.5, 0.999))
        after = as_model(v, c, dtype)
        for name in ("posterior", "prior"):
            ours, theirs = (m(x_, r_).passes[name] for m in (model, after))
            assert_close(ours, theirs.double(), errors.step)
            judges = (m.discriminators[name] for m in (model, after))
            ours, theirs = (j(x_.frames[:, :CLIP], j.normalised()).logits for j in judges)
            assert_close(ours, theirs.double(), errors.step)


ABLATIONS = {
    "VAE": VAE,
    "deterministic": VAE | {"nz": 0},
    "GAN": GAN,
    "GAN without z": GAN | {"nz": 0},
}


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_ablations_equal_the_reference(changes: dict) -> None:
    c, x, v = config(**changes), clips(1), Variables(4)
    r = randomness(c)
    _, judged, made = compute(v, x, c, r)
    for name in ("posterior", "prior"):  # both discriminators are there, if there is one
        if c.adversarial and (c.nz or name == "prior"):
            reference.discriminator(v, name, reference.channels_last(x.frames[:, :CLIP]), NDF)
    model = as_model(v, c)
    assert list(model.objectives(1)) == [
        *(["discriminators"] if c.adversarial else []),
        "generator",
    ]
    x, r = reference.cast((x, r), torch.float64)
    assert_terms_equal(model.loss(x, r, "generator"), made, ERRORS[torch.float64].loss)
    if c.adversarial:
        judged_by_ours = model.loss(x, r, "discriminators")
        assert_terms_equal(judged_by_ours, judged, ERRORS[torch.float64].loss)


@pytest.mark.parametrize(
    ("transformation", "actions"), [("dna", 0), ("flow", 0), ("cdna", 4)], ids=lambda v: str(v)
)
def test_variants_equal_the_reference(transformation: str, actions: int) -> None:
    c, x, v = config(**VAE, transformation=transformation), clips(3, actions), Variables(5)
    r = randomness(c)
    out, _, made = compute(v, x, c, r)
    model = as_model(v, c)
    x, r = reference.cast((x, r), torch.float64)
    errors = ERRORS[torch.float64]
    generated = model(x, r, ("posterior",))
    assert_close(generated.passes["posterior"], as_frames(out["posterior"][0]), errors.frame)
    loss = model.loss(x, r, "generator")
    assert_terms_equal(loss, made, errors.loss)
    loss.total.backward()
    moved = v.trained("generator")
    gradients = torch.autograd.grad(made["total"], list(moved.values()))
    assert_gradients_equal(model, dict(zip(moved, gradients, strict=True)), v)


def test_prediction_feeds_its_own_frames_back() -> None:
    """It equals the reference's prior pass without true frames, with either context."""
    c, x, v = config(**VAE), clips(1), Variables(6)
    r = randomness(c)
    true_frames = (torch.arange(FRAMES - 1) < GIVEN).expand(COUNT, 2, -1)
    z = torch.cat([r.posterior[:, : GIVEN - 1], r.prior[:, GIVEN - 1 :]], dim=1)
    for context, prior in (("posterior", r.prior), ("prior", z)):
        given = GIVEN if context == "posterior" else 1  # z of the prior from the first frame on
        out = reference.savp_generate(
            v,
            x,
            r._replace(true_frames=true_frames, prior=prior),
            given=given,
            nz=NZ,
            ngf=NGF,
            nef=NEF,
        )
        model = as_model(v, c).eval()
        noise = Noise(z.double())
        with torch.no_grad():
            given_clips = model.condition(reference.cast(x, torch.float64).until(GIVEN))
            ours = model.predict(given_clips, FRAMES - GIVEN, noise, context=context).x
        theirs = as_frames(out["prior"][0][:, GIVEN - 1 :])
        assert_close(ours, theirs, ERRORS[torch.float64].frame)


def test_one_given_frame_suffices() -> None:
    model = config().build(VideoShape(1, SIZE)).eval()
    with torch.no_grad():
        given = model.condition(clips(1).until(1))
        assert model.predict(given, 2, model.draw_noise(COUNT, 3, generator())).x.isfinite().all()


COUNTS = {
    "KTH": (1, {"nz": 32}, 18502215),
    "BAIR": (3, {"nz": 8}, 17637995),
    "Moving MNIST": (1, {"nz": 8}, 17625783),
    "GAN": (1, {"nz": 32, **GAN}, 18502215),
    "VAE on KTH": (1, {"nz": 32, **VAE}, 8217669),
    "VAE on BAIR": (3, {"nz": 8, **VAE}, 7349993),
    "deterministic on KTH": (1, {"nz": 0, **VAE}, 6392517),
    "deterministic on BAIR": (3, {"nz": 0, **VAE}, 6397177),
}


@pytest.mark.parametrize(("channels", "changes", "count"), COUNTS.values(), ids=COUNTS)
def test_parameters_are_as_many_as_in_the_public_code(
    channels: int, changes: dict, count: int
) -> None:
    sizes = {"ngf": 32, "nef": 64, "ndf": 32, "clip_length": 10}
    with torch.device("meta"):
        model = config(**sizes, **changes).build(VideoShape(channels))
    assert sum(p.numel() for p in model.parameters()) == count
    groups = [p for group in model.parameter_groups().values() for p in group]
    assert len(groups) == len(list(model.parameters()))


@pytest.mark.parametrize("size", [64, 128])
def test_larger_frames_have_more_layers(size: int) -> None:
    model = config(**VAE).build(VideoShape(1, size)).eval()
    with torch.no_grad():
        given = model.condition(torch.rand(1, 2, 1, size, size))
        x = model.predict(given, 1, model.draw_noise(1, 3, generator())).x
    assert x.shape == (1, 1, 1, size, size) and x.min() >= 0 and x.max() <= 1


def test_spectral_norm_moves_u_once_per_step() -> None:
    """Every evaluation of a step starts from the same u; it moves when the next step begins."""
    torch.manual_seed(0)
    weight = SpectralWeight(30, 7)
    first = weight.u.clone()
    normalised = weight.normalised(step_begins=True)
    assert weight.u.equal(first) and not weight.next_u.equal(first)
    assert weight.normalised(step_begins=False).equal(normalised)
    second = weight.next_u.clone()
    weight.normalised(step_begins=True)
    assert weight.u.equal(second)
    for _ in range(200):
        normalised = weight.normalised(step_begins=True)
    torch.testing.assert_close(torch.linalg.matrix_norm(normalised, 2), torch.tensor(1.0))


def test_discriminator_of_an_evaluated_model_keeps_u() -> None:
    model = config().build(VideoShape(1, SIZE)).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    r = randomness(model.config)
    for objective in model.objectives(1):
        model.loss(clips(1), r, objective)
    assert all(buffer.equal(before[name]) for name, buffer in model.named_buffers())


def test_the_loss_of_the_discriminators_moves_u_and_that_of_the_generator_does_not() -> None:
    model = config().build(VideoShape(1, SIZE)).train()
    r = randomness(model.config)
    states = [{name: u.clone() for name, u in model.named_buffers() if name.endswith("next_u")}]
    for objective in ("discriminators", "generator"):
        model.loss(clips(1), r, objective)
        states.append({name: model.get_buffer(name).clone() for name in states[0]})
    before, judged, after = states
    assert before and not any(u.equal(before[name]) for name, u in judged.items())
    assert all(u.equal(judged[name]) for name, u in after.items())


def test_discriminator_maps_have_the_published_sizes() -> None:
    judge = VideoDiscriminator(VideoShape(1), frames=10, ndf=1)
    judged = judge(torch.rand(2, 10, 1, 64, 64), judge.normalised())
    sizes = [tuple(f.shape[2:4]) for f in judged.features]
    assert sizes == [(10, 64), (9, 32), (9, 32), (8, 16), (8, 16), (4, 8), (4, 8)]
    assert judged.logits.shape == (2,)


def test_merged_convolutions_equal_the_plain_ones() -> None:
    """Convolution and pooling, bilinear upsampling and convolution: in two steps each."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    for size in (3, 5):
        pooled = PooledConv2d(3, 4, size)
        plain = torch.nn.functional.conv2d(x, pooled.weight, padding=size // 2)
        plain = torch.nn.functional.avg_pool2d(plain, 2) + pooled.bias[:, None, None]
        torch.testing.assert_close(pooled(x), plain)
    upsampled = UpsampledConv2d(3, 4)
    surrounded = torch.nn.functional.pad(x, (2, 2, 2, 2))  # with zeros; borders are then cut off
    large = torch.nn.functional.interpolate(surrounded, scale_factor=2, mode="bilinear")
    plain = torch.nn.functional.conv2d(large[..., 3:-3, 3:-3], upsampled.weight, upsampled.bias)
    torch.testing.assert_close(upsampled(x), plain)


def test_symmetric_padding_repeats_the_edge() -> None:
    padded = cdna.pad_symmetric(torch.tensor([[[[1.0, 2.0, 3.0]]]]).expand(1, 1, 3, 3))
    assert padded[0, 0, 3].tolist() == [2, 1, 1, 2, 3, 3, 2]


def test_scheduled_sampling_is_drawn_for_each_pass_and_frame() -> None:
    """As often as the rate says, never below 0.001, that is from 12,339 steps on."""
    model = config(**VAE).build(VideoShape(1, SIZE))
    r = model.draw_randomness(4000, 8, 6123, generator())
    assert r.true_frames[..., :GIVEN].all()
    drawn = r.true_frames[..., GIVEN:].float()
    assert abs(drawn.mean() - 0.5) < 0.01
    assert not drawn[:, 0].equal(drawn[:, 1])
    last = model.draw_randomness(4000, 8, 12338, generator()).true_frames[..., GIVEN:]
    assert last.any() and last.float().mean() < 0.002
    assert not model.draw_randomness(4000, 8, 12340, generator()).true_frames[..., GIVEN:].any()


def test_passes_have_noise_of_their_own() -> None:
    r = randomness(config())
    assert not r.posterior.equal(r.prior)


def test_initial_weights() -> None:
    """Normal with a deviation of 0.02, cut at twice that; the LSTM of z alone is Glorot uniform."""
    torch.manual_seed(0)
    model = config(nz=8, ngf=16).build(VideoShape(1, SIZE))
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif name == "cell.z_lstm.weight":
            assert 0.3 < value.abs().max() <= (6 / (16 + 32)) ** 0.5
        elif value.dim() == 1:
            assert (value == 1).all(), name
        else:
            assert value.abs().max() <= 0.04, name
    spread = float(model.cell.masks.weight.detach().std())
    assert spread == pytest.approx(0.02 * 0.88, rel=0.05)  # of the cut one


def test_weight_of_the_kl_rises() -> None:
    model = config(**VAE | {"kl_start": 50000, "kl_end": 100000}).build(VideoShape(1, SIZE))
    for taken, share in ((0, 0), (50000, 0), (75000, 0.5), (100000, 1), (300000, 1)):
        r = model.draw_randomness(1, FRAMES, taken + 1, generator())
        assert float(r.kl_weight) == pytest.approx(0.5 * share)


def test_windows_start_anywhere_and_together_if_asked() -> None:
    for shared in (False, True):
        model = config(shared_windows=shared).build(VideoShape(1, SIZE))
        windows = model.draw_randomness(200, FRAMES, 1, generator()).windows
        assert windows.unique().tolist() == [0, 1]  # 5 outputs, 4 frames at a time
        assert windows[..., 0].equal(windows[..., 1]) == shared
        assert not windows[:, 0].equal(windows[:, 1])


def test_clips_must_hold_a_window() -> None:
    model = config().build(VideoShape(1, SIZE))
    with pytest.raises(ConfigError, match=r"training.frames is 4, .* model.clip_length, 4"):
        model.draw_randomness(COUNT, 4, 1, generator())


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_start": 2, "kl_end": 1},
        {"gan_weight": 0.0},  # but its features have a weight
        {"nz": 0},  # but there is a pass of the posterior
    ],
)
def test_impossible_settings_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        config(**changes)


def test_sizes_without_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.size is 16; SAVP needs one of \[32, 64, 128, 256"):
        config().build(VideoShape(1, 16))
