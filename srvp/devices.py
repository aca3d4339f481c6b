"""Where things are computed, and in which precision."""

from contextlib import AbstractContextManager
from functools import cache

import torch


def pick_device(name: str) -> torch.device:
    """Return the device that `name` asks for; `auto` is an accelerator if there is one.

    Raises:
        ValueError: the device is not there. Nothing trains silently on the CPU instead.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    if name != "cpu" and (accelerator is None or accelerator.type != name):
        found = f"only {accelerator.type} and the CPU are" if accelerator else "only the CPU is"
        raise ValueError(f"the device is {name!r}, but {found} available: choose auto or cpu")
    return torch.device(name)


def device_count(device: torch.device) -> int:
    """Return how many devices of this kind can share work; a CPU counts once."""
    return 1 if device.type == "cpu" else torch.accelerator.device_count()


def all_like(device: torch.device) -> list[torch.device]:
    """Return the devices that can share the work of this one: all GPUs of its kind, or itself."""
    count = device_count(device)
    return [device] if count == 1 else [torch.device(device.type, i) for i in range(count)]


def pick_precision(name: str, device: torch.device) -> str:
    """Return `float32` or `bfloat16`; `auto` is what the hardware multiplies faster."""
    if name != "auto":
        return name
    return "bfloat16" if _has_fast_bfloat16(device) else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context to compute in: bfloat16 where asked for, float32 otherwise."""
    in_bfloat16 = pick_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16)


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and instruction_set() in ("AMX", "AVX-512 with bfloat16")


@cache
def instruction_set() -> str:
    """Return the widest instructions of the CPU that multiplications can use.

    The variables `ATEN_CPU_CAPABILITY=avx2` and `ONEDNN_MAX_CPU_ISA=AVX2` make a wide processor
    compute as a narrow one.
    """
    name = torch.backends.cpu.get_cpu_capability()
    if not name.startswith("AVX512"):
        return name  # "AVX2", or PyTorch's name for what other processors have
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512 with bfloat16" if torch.cpu._is_avx512_bf16_supported() else "AVX-512"
