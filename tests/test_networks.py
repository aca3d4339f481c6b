import pytest
import torch
from torch import nn

from srvp.models.interface import VideoShape
from srvp.models.parts import networks

SMALLEST = {"dcgan": 4, "vgg": 8}  # pixels of the deepest map


@pytest.mark.parametrize("architecture", ["dcgan", "vgg"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_encoder_and_decoder_fit_each_other(architecture, channels, skip, size):
    shape = VideoShape(channels, size)
    encoder = networks.ENCODERS[architecture](shape, 4, 10)
    decoder = networks.DECODERS[architecture](shape, 4, 7, skip)
    x = torch.rand(3, channels, size, size)
    h, maps = encoder(x)
    assert h.shape == (3, 10) and h.abs().max() <= 1
    sizes = [SMALLEST[architecture] * 2**level for level in range(len(maps))]
    assert [m.shape[-1] for m in maps] == sizes and 4 * sizes[-1] in (2 * size, 4 * size)
    out = decoder(torch.randn(3, 7), maps if skip else None)
    assert out.shape == x.shape and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("architecture", ["dcgan", "vgg"])
@pytest.mark.parametrize("bias", [False, True])
def test_skip_maps_that_frames_share_count_for_each(architecture, bias):
    """As if they were repeated, but for the order of sums: 1e-5 in frames, 1e-4 in the gradient."""
    torch.manual_seed(0)
    encoder = networks.ENCODERS[architecture](VideoShape(1), 4, 10, bias)
    decoder = networks.DECODERS[architecture](VideoShape(1), 4, 7, True, bias)
    networks.init_convolutions(decoder)
    for parameter in decoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    _, maps = encoder(torch.rand(2, 1, 64, 64))
    maps, vectors = [m.detach() for m in maps], torch.randn(6, 7)
    results = []
    for skips in (maps, [m.repeat_interleave(3, dim=0) for m in maps]):
        x = decoder(vectors, skips)
        gradients = torch.autograd.grad(x.square().sum(), [*decoder.parameters()])
        results.append((x, torch.cat([g.flatten() for g in gradients])))
    (x, gradient), (same, same_gradient) = results
    torch.testing.assert_close(x, same, atol=1e-5, rtol=0)
    assert (gradient - same_gradient).norm() < 1e-4 * same_gradient.norm()


@pytest.mark.parametrize("architecture", ["dcgan", "vgg"])
def test_convolutions_have_no_bias_and_only_the_first_of_dcgan_has_no_batch_norm(architecture):
    encoder = networks.ENCODERS[architecture](VideoShape(1), 4, 10)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(c.bias is None for c in convolutions)
    assert len(convolutions) - len(norms) == (architecture == "dcgan")


def test_layers_of_a_perceptron_are_linear_maps():
    linear = [m for m in networks.mlp(5, 8, 3, 4) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(5, 8), (8, 8), (8, 8), (8, 3)]


def test_initialisation_is_that_of_the_authors():
    torch.manual_seed(0)
    encoder = networks.dcgan_encoder(VideoShape(1), 16, 32)
    networks.init_convolutions(encoder)
    weights = encoder.stages[2][0].weight
    assert weights.mean().abs() < 1e-3 and abs(weights.std() - 0.02) < 1e-3  # 32,768 draws
    f = networks.mlp(6, 8, 4, 2)
    networks.init_orthogonal(f, 1.2)
    torch.testing.assert_close(f[0].weight.T @ f[0].weight, 1.2**2 * torch.eye(6))
    assert not f[0].bias.any()


def test_stages_of_128_pixels_are_those_of_the_public_code_of_svg():
    """Their encoders have nf, 2nf, 4nf, 8nf and 8nf channels (edenton/svg, models/*_128.py)."""
    assert networks.stage_widths(64, 64) == [64, 128, 256, 512]
    assert networks.stage_widths(128, 64) == [64, 128, 256, 512, 512]


def test_standard_deviations_are_softplus_and_never_zero():
    """log(1 + exp(x)), which vanishes far below 0, and 1e-8, as in the authors' code."""
    raw = torch.tensor([[0.5, -1.0, 2.0, 0.0, 3.0, -60.0]])
    normal = networks.softplus_normal(raw)
    assert torch.equal(normal.mean, raw[:, :3])
    expected = torch.tensor([[2.0, 1 + torch.e**3, 1.0]]).log() + 1e-8
    torch.testing.assert_close(normal.stddev, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("block", [networks.conv_down, networks.conv_up, networks.conv3])
def test_batch_norm_in_the_weights_changes_nothing_but_rounding(block, bias):
    """Without gradients, before and after the weights or the statistics change."""
    torch.manual_seed(0)
    layer = block(64, 64, bias)
    x = torch.randn(32, 64, 8, 8)
    layer(x)  # moves the statistics
    layer.eval()
    for change in (
        lambda: None,
        lambda: layer[0].weight.mul_(2),
        lambda: layer[1].running_var.add_(1),
    ):
        with torch.no_grad():
            change()
        expected = layer(x).detach()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                torch.testing.assert_close(layer(x), expected, rtol=0, atol=3e-6)
