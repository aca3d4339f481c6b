import pytest
import torch

from srvp.models.parts.fast.unroll import unroll_mlp
from srvp.models.parts.networks import mlp

VIDEOS, FRAMES, NY = 5, 6, 4


def loop(f, y, z, euler_steps):
    """The updates one by one, as the paper has them."""
    states, residuals = [], []
    for z_t in z.unbind(dim=1):
        for _ in range(euler_steps):
            residuals.append(f(torch.cat([y, z_t], dim=-1)) / euler_steps)
            y = y + residuals[-1]
        states.append(y)
    return torch.stack(states, dim=1), torch.stack(residuals, dim=1)


def perceptron_and_inputs(nz, layers=4):
    torch.manual_seed(0)
    f = mlp(NY + nz, 7, NY, layers)
    return f, torch.randn(VIDEOS, NY), torch.randn(VIDEOS, FRAMES, nz)


@pytest.mark.parametrize("euler_steps", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("nz", [3, 0])
def test_states_and_gradients_are_those_of_the_loop(nz, layers, euler_steps):
    f, y, z = perceptron_and_inputs(nz, layers)
    f, y, z = f.double(), y.double().requires_grad_(), z.double().requires_grad_()
    expected, found = (unroll(f, y, z, euler_steps) for unroll in (loop, unroll_mlp))
    assert found[0].shape == (VIDEOS, FRAMES, NY)
    assert found[1].shape == (VIDEOS, FRAMES * euler_steps, NY)
    inputs, grads = [y, z, *f.parameters()], [torch.randn_like(x) for x in expected]
    gradients = (torch.autograd.grad(result, inputs, grads) for result in (expected, found))
    for a, b in zip((*expected, *next(gradients)), (*found, *next(gradients)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_under_autocast_products_are_bfloat16_and_states_float32():
    """Six updates of four products, each of which rounds by up to 0.4 %: 5 % of the largest."""
    f, y, z = perceptron_and_inputs(3)
    y.requires_grad_()
    expected = loop(f, y, z, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = unroll_mlp(f, y, z, 1)
    assert found[0].dtype == found[1].dtype == torch.float32
    results = []
    for states, residuals in (expected, found):
        total = states.square().sum() + residuals.square().sum()
        results.append([states, residuals, *torch.autograd.grad(total, [y, *f.parameters()])])
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
