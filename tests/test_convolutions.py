import pytest
import torch
from torch.nn import functional as F

from srvp.devices import instruction_set
from srvp.models.parts.fast import choice, patches
from srvp.models.parts.networks import DownConv, FromVector, ToVector, UpConv, UpToImage

LAYERS = [
    (DownConv, (64, 160), (16, 64, 16, 8)),
    (DownConv, (64, 64), (70, 64, 16, 16)),  # more than one chunk, the last one smaller
    (DownConv, (64, 64), (40, 64, 8, 12)),  # no whole tiles
    (DownConv, (1, 64), (3, 1, 8, 8)),
    (UpConv, (160, 64), (16, 160, 8, 4)),
    (UpConv, (64, 64), (70, 64, 8, 8)),
    (UpConv, (16, 64), (2, 16, 4, 4)),
    (UpToImage, (64, 3), (3, 64, 8, 4)),
    (UpToImage, (16, 1), (3, 16, 4, 8)),
    (ToVector, (24, 9), (3, 24, 4, 4)),
    (FromVector, (9, 24), (3, 9, 1, 1)),
]


WAYS = {
    "direct": choice.Rule(),
    "Winograd": choice.Rule(winograd=64),
    "products": choice.Rule(products=8),
}


@pytest.fixture
def rule(monkeypatch):
    """Let all convolutions follow a rule, whatever the processor."""

    def follow(rule: choice.Rule) -> None:
        types = (torch.float32, torch.bfloat16)
        monkeypatch.setattr(choice, "RULES", {(instruction_set(), kind): rule for kind in types})

    return follow


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("layer", "sizes", "shape"), LAYERS)
def test_results_and_gradients_are_those_of_pytorch(
    layer, sizes, shape, way, bias, memory_format, rule
):
    """Against PyTorch's convolution in float64.

    Sums of up to 2,560 products in float32 (6e-8 each) and, for the weights, over as many positions
    again.
    """
    rule(WAYS[way])
    torch.manual_seed(0)
    ours = layer(*sizes, bias).to(memory_format=memory_format)
    exact = type(ours).__bases__[0](*sizes, 4, ours.stride, ours.padding, bias=bias).double()
    exact.load_state_dict(ours.state_dict())
    x = torch.randn(shape).to(memory_format=memory_format).requires_grad_()
    x_exact = x.detach().double().requires_grad_()
    y, y_exact = ours(x), exact(x_exact)
    grad = torch.randn(y_exact.shape)
    results = (y, *torch.autograd.grad(y, [x, *ours.parameters()], grad))
    expected = (y_exact, *torch.autograd.grad(y_exact, [x_exact, *exact.parameters()], grad))
    for result, reference in zip(results, expected, strict=True):
        difference = (result - reference).abs().max() / reference.abs().max()
        assert result.dtype == torch.float32 and difference < 5e-6


def test_a_processor_without_avx_convolves_directly(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    instruction_set.cache_clear()
    try:
        assert choice.describe() == "DEFAULT: all direct"
        assert choice.down(torch.zeros(40, 128, 16, 16), torch.zeros(128, 128, 4, 4)) is None
    finally:
        instruction_set.cache_clear()


@pytest.mark.parametrize("channels", [1, 3])
def test_products_of_patches_are_the_layers_that_meet_the_image(channels):
    """What a GPU computes in their place, against PyTorch's convolutions in float64."""
    torch.manual_seed(0)
    weight = torch.randn(5, channels, 4, 4, dtype=torch.float64)
    image = torch.randn(2, channels, 8, 12, dtype=torch.float64, requires_grad=True)
    maps = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    down = F.linear(patches.patches(image), weight.flatten(1)).permute(0, 3, 1, 2)
    up = patches.Overlap.apply(maps.permute(0, 2, 3, 1) @ weight.flatten(1))
    for found, x, convolve in (
        (down, image, F.conv2d),
        (up, maps, F.conv_transpose2d),
    ):
        expected = convolve(x, weight, stride=2, padding=1)
        torch.testing.assert_close(found, expected)
        grad = torch.randn_like(expected)
        gradients = [torch.autograd.grad(y, x, grad)[0] for y in (found, expected)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("layer", "sizes", "shape"),
    [(DownConv, (64, 128), (20, 64, 16, 16)), (UpConv, (128, 64), (20, 128, 8, 8))],
)
@pytest.mark.parametrize(
    ("way", "least", "most"), [("Winograd", 4e-3, 2.5e-2), ("products", 1e-3, 8e-3)]
)
def test_bfloat16_rounds_by_per_cents(rule, way, least, most, layer, sizes, shape):
    """Root mean squares: eight bits are 0.2 %, which the sums before and after add to."""
    rule(WAYS[way])
    torch.manual_seed(0)
    conv, x, results = layer(*sizes), torch.randn(shape, requires_grad=True), []
    grad = torch.randn(conv(x).shape)
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv(x)
        results.append((y, *torch.autograd.grad(y, [x, conv.weight], grad.to(y.dtype))))
    assert [result.dtype for result in results[0]] == [torch.bfloat16, x.dtype, x.dtype]
    for result, exact in zip(*results, strict=True):
        assert least < (result - exact).norm() / exact.norm() < most


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", [DownConv, UpConv])
def test_frozen_weights_and_inputs_cost_no_gradient(layer, way, rule):
    rule(WAYS[way])
    conv = layer(64, 64)
    x = torch.randn(32, 64, 8, 8, requires_grad=True)
    conv.weight.requires_grad_(False)
    conv(x).sum().backward()
    assert conv.weight.grad is None and x.grad is not None
    x.grad = None
    conv.weight.requires_grad_(True)
    conv(x.detach()).sum().backward()
    assert conv.weight.grad is not None and x.grad is None
