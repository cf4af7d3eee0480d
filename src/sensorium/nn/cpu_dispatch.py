"""Which CPU kernel computes a product: decided by the processor's make, so that a run repeats to the bit."""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError

LINEAR_BACKENDS = ("torch", "onednn", "widen")


@cache
def linear_backend(dtype: torch.dtype) -> str:
    """How the products of a linear layer are done in `dtype` on this machine; the same on every run.

    torch: as torch chooses. onednn: by oneDNN directly, which adds the bias while it writes the result. widen: bf16
    products in float32.
    """
    forced = os.environ.get("SENSORIUM_KERNELS")
    if forced and forced not in LINEAR_BACKENDS:
        raise SensoriumError(
            f"SENSORIUM_KERNELS={forced!r}: choose one of {', '.join(LINEAR_BACKENDS)}, or leave it unset."
        )
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return "torch"
    if forced:
        return forced
    direct = is_amd_cpu() or has_bf16_matmul()
    if dtype == torch.float32 and direct:  # Zen 4: oneDNN 83-104, MKL 46-75 GFLOP/s a core
        return "onednn"  # AMX: 170 both, but the bias costs nothing
    if dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("avx512_bf16"):
        return "onednn" if direct else "widen"  # bf16 on AMX 1,600, on an older Xeon 80
    return "torch"  # Xeon without AMX, float32: a step by oneDNN takes 1.19 times as long


@cache
def is_amd_cpu() -> bool:
    """Whether AMD made this processor."""
    about = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (about.read_text() if about.exists() else platform.processor())


@cache
def has_bf16_matmul() -> bool:
    """Whether this processor has a unit for bf16 products (AMX), which are then several times as fast as float32."""
    return hasattr(torch.cpu, "get_capabilities") and bool(
        torch.cpu.get_capabilities().get("amx_bf16")
    )


@cache
def has_int8_dot_product() -> bool:
    """Whether this processor adds up products of unsigned and signed bytes without a loss (VNNI, AMX)."""
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(can.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def configure_allocator() -> bool:
    """Keep freed memory for the next step instead of handing it back to the system; call it once, when a run starts.

    True where it took effect (glibc). The process then stays at its peak memory.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return False
    asked = {
        -1: (1 << 31) - 1,
        -2: 64 << 20,
        -3: 1 << 30,
    }  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    return all(libc.mallopt(what, value) for what, value in asked.items())


def _is_eager(*tensors: Tensor) -> bool:
    """Whether these are plain CPU tensors and nobody traces, counts or transforms what is done to them."""
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )
