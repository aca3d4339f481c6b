"""How DCGAN's convolutions are computed on a CPU: chosen by its instruction set.

    direct       PyTorch's own convolution (oneDNN)
    winograd     fewer multiplications, more sums around them (`winograd`)
    products     a product of patches, for small maps (`products`)

The table follows measurements of a whole step and of each layer (`benchmarks/README.md`): AMX
multiplies bfloat16 so fast that the sums of Winograd's maps cost more than they save, but a direct
convolution leaves its tiles nearly empty where maps are small. Results are equal up to rounding,
whatever is chosen.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from srvp.devices import instruction_set
from srvp.models.parts.fast import products, winograd

ALWAYS_DIRECT = 1 << 30


class Rule(NamedTuple):
    """When a layer is not convolved directly."""

    winograd: int = ALWAYS_DIRECT  # channels from which on, on the narrower side
    products: int = 0  # side of the smaller map up to which, in positions


RULES = {
    ("AMX", torch.float32): Rule(winograd=128),
    ("AMX", torch.bfloat16): Rule(products=4),
    ("AVX-512 with bfloat16", torch.float32): Rule(winograd=64),
    ("AVX-512 with bfloat16", torch.bfloat16): Rule(winograd=64),
    ("AVX-512", torch.float32): Rule(winograd=64),
    ("AVX2", torch.float32): Rule(winograd=64),
}
NARROW = 64  # channels on the narrower side below which a product of patches has little to multiply

Convolve = Callable[[Tensor, Tensor], Tensor]


def precision(x: Tensor) -> torch.dtype:
    """Return the type that x is convolved in on a CPU."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def down(x: Tensor, weight: Tensor) -> Convolve | None:
    """Return how to convolve `(N, C, H, W)` by `(O, C, 4, 4)`; None for PyTorch's convolution."""
    return _choose(x, weight, halvings=1, ways=(winograd.down, products.down))


def up(x: Tensor, weight: Tensor) -> Convolve | None:
    """The same for the transposed convolution of `(N, O, H, W)`."""
    return _choose(x, weight, halvings=0, ways=(winograd.up, products.up))


def _choose(
    x: Tensor, weight: Tensor, halvings: int, ways: tuple[Convolve, Convolve]
) -> Convolve | None:
    n, _, height, width = x.shape
    if x.device.type != "cpu" or height % 2 or width % 2:
        return None
    dtype, narrower = precision(x), min(weight.shape[:2])
    rule = RULES.get((instruction_set(), dtype), Rule())
    h, w = height >> halvings, width >> halvings  # of the smaller map
    by_winograd, by_products = ways
    if narrower >= rule.winograd and winograd.fits(n, h, w):
        return lambda x, weight: by_winograd(x.to(dtype), weight)
    if narrower >= NARROW and max(h, w) <= rule.products and n * h * w >= winograd.FEW * 16:
        return lambda x, weight: by_products(x.to(dtype), weight)
    return None


def describe() -> str:
    """Say how this processor convolves, for the protocol of a result."""
    name = instruction_set()
    parts = []
    for (instructions, dtype), rule in RULES.items():
        if instructions == name:
            kind = str(dtype).removeprefix("torch.")
            if rule.winograd < ALWAYS_DIRECT:
                parts.append(f"{kind} by Winograd's F(4, 2) from {rule.winograd} channels on")
            if rule.products:
                parts.append(f"{kind} by products of patches up to {rule.products}x{rule.products}")
    return f"{name}: {', '.join(parts) or 'all direct'}"
