"""The machine that a run is on: what it has, and which versions of what compute there."""

from __future__ import annotations

import math
import os
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pbu_cli import __version__
from pbu_cli.errors import InvalidUsage, PbuError

LIBRARIES = ("torch", "torchvision", "safetensors", "numpy", "pillow")


def memory() -> float:
    """Bytes of memory of the machine or, where that is less, of the container; else infinity."""
    limits = [math.inf]
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # no cgroup v2, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


@cache
def keep_freed_memory() -> None:
    """Have the C library keep what a step frees, for the next step to take.

    glibc returns what is free at the end of its heap to the system once that is twice the largest
    block that it mapped and was given back, and every page taken again costs a fault: up to half
    the time of a step. A block of 32 MB, the most that counts, makes the limit 64 MB
    (mallopt(3), M_MMAP_THRESHOLD). Elsewhere nothing changes.
    """
    bytes((32 << 20) - (1 << 16))  # given back at once; less than 32 MB, which includes a header


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are quicker there than in float32: on CPUs that have an
    instruction for them. Where torch emulates them they are slower; on a GPU nobody has measured.
    """
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())


def versions() -> dict[str, str | None]:
    """Versions of pbu, of what it computes with, and of CUDA and its driver; None: not there."""
    found: dict[str, str | None] = {"pbu": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        found[name] = None
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        **found,
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": _first_line(Path("/sys/module/nvidia/version")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """What computed: the kind of device, its name, and how many threads the CPU had."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


def compute_in_float32() -> None:
    """Have GPUs multiply float32 as such. torch lets cuDNN round what it convolves to TF32, ten
    bits: as coarse as what the trial of the Fisher pass takes for a mistake (`plan.tolerance`)."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a GPU, with those that torch keeps there for itself to take again."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def compute_alike(device: torch.device) -> None:
    """Have the same inputs give the same bytes on this device, at what that costs.

    On a CPU threads share out sums and so round them otherwise: one thread, for any number there
    is. On a GPU: deterministic algorithms alone, an error where torch has none for an operation.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _first_line(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text().partition("\n")[0]
    return None


def affordable(needed: int, device: torch.device) -> bool:
    """Whether memory holds so many bytes: half of what is free on a GPU, a quarter of the machine's
    elsewhere."""
    free = free_memory(device) / 2 if device.type == "cuda" else memory() / 4
    return needed <= free


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU. Raises PbuError where the device is not there."""
    mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InvalidUsage(f"--device {wanted}: expected auto, cpu, cuda, cuda:N or mps") from None
    count = torch.cuda.device_count() if device.type == "cuda" else int(mps)
    if device.type not in ("cpu", "cuda", "mps"):
        raise InvalidUsage(f"--device {wanted}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type != "cpu" and (device.index or 0) >= count:
        raise PbuError(
            f"--device {wanted}: torch {torch.__version__} sees {count} such devices here; use"
            " --device cpu, or a torch and a driver that see it"
        )
    return device
