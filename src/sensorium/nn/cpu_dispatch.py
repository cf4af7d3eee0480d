"""Choice of the CPU kernel for linear layers and attention.

The choice follows from the processor model rather than from timing, so that a run repeats to the
last bit.
"""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError

LINEAR_BACKENDS = ("torch", "onednn", "widen")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # parameters of mallopt(3)
ALLOCATOR_OPTIONS = {
    M_TRIM_THRESHOLD: (1 << 31) - 1,
    M_TOP_PAD: 64 << 20,
    M_MMAP_THRESHOLD: 1 << 30,
}
"""Options of glibc's allocator and their values in bytes."""


@cache
def linear_backend(dtype: torch.dtype) -> str:
    """Return the backend of linear layers in `dtype` on this machine, the same on every run.

    Returns:
        `torch`: PyTorch's own choice. `onednn`: oneDNN directly, which adds the bias while it
        writes the result. `widen`: bf16 products computed in float32.

    Raises:
        SensoriumError: SENSORIUM_KERNELS names no backend.
    """
    forced = os.environ.get("SENSORIUM_KERNELS")
    if forced and forced not in LINEAR_BACKENDS:
        raise SensoriumError(
            f"SENSORIUM_KERNELS={forced!r} is not a backend. Choose one of "
            f"{', '.join(LINEAR_BACKENDS)}, or leave it unset."
        )
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return "torch"
    if forced:
        return forced
    fast_onednn = is_amd_cpu() or has_bf16_matmul()
    if dtype == torch.float32 and fast_onednn:
        # Zen 4: oneDNN 83-104, MKL 46-75 GFLOP/s a core. AMX: both 170, but the bias is free.
        return "onednn"
    if dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("avx512_bf16"):
        # bf16 on AMX: 1,600 GFLOP/s; on an older Xeon: 80.
        return "onednn" if fast_onednn else "widen"
    # A Xeon without AMX, float32: a training step by oneDNN takes 1.19 times as long.
    return "torch"


@cache
def is_amd_cpu() -> bool:
    """Return whether the processor is made by AMD."""
    cpuinfo = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())


@cache
def has_bf16_matmul() -> bool:
    """Return whether the processor has a matrix unit for bf16 (AMX), much faster than float32."""
    return hasattr(torch.cpu, "get_capabilities") and bool(
        torch.cpu.get_capabilities().get("amx_bf16")
    )


@cache
def has_int8_dot_product() -> bool:
    """Return whether the processor adds up products of int8 without saturation (VNNI, AMX)."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def configure_allocator() -> bool:
    """Keep freed memory for the next step instead of returning it to the system (glibc).

    Call it once, when a run starts. The process then stays at its peak memory.

    Returns:
        Whether the options took effect.
    """
    if os.name != "posix":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return all(libc.mallopt(option, value) for option, value in ALLOCATOR_OPTIONS.items())


def is_eager(*tensors: Tensor) -> bool:
    """Return whether these are plain CPU tensors whose operations nobody traces or transforms."""
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()  # pyright: ignore[reportPrivateUsage]
        and not torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
        and not torch._C._len_torch_dispatch_stack()  # pyright: ignore[reportPrivateUsage]
    )
