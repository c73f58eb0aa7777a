"""The device and the machine of a run: choose the device, set it up, and ask what it has."""

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
from pbu_cli.errors import InvalidUsage, PbuError, printable

LIBRARIES = ("torch", "torchvision", "safetensors", "numpy", "pillow")


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is CUDA, else MPS, else the CPU.

    Raises InvalidUsage where the name is unknown, PbuError where the device is not there.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError):
        raise InvalidUsage(
            f"--device {printable(name, 80)}: expected auto, cpu, cuda, cuda:N or mps"
        ) from None
    count = torch.cuda.device_count() if device.type == "cuda" else int(mps)
    if device.type not in ("cpu", "cuda", "mps"):
        raise InvalidUsage(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type != "cpu" and (device.index or 0) >= count:
        raise PbuError(
            f"--device {name}: torch {torch.__version__} sees {count} such devices here; use"
            " --device cpu, or a torch and a driver that see it"
        )
    return device


def compute_in_float32() -> None:
    """Make GPUs multiply float32 numbers in full precision.

    By default torch lets cuDNN round the inputs of convolutions to TF32, which keeps ten bits.
    Errors of that size are as large as those that the validation of a Fisher plan rejects
    (`fisher.dispatch.tolerance`).
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def compute_deterministically(device: torch.device) -> None:
    """Make the same inputs give the same bytes on this device, at whatever cost in time.

    On a CPU the order in which threads add up sums depends on their number, and so does the
    rounding: use one thread, whatever number there is. On a GPU use only deterministic algorithms;
    torch then raises an error for an operation that has none.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


@cache
def keep_freed_memory() -> None:
    """Make the C library keep memory that a step frees, so that the next step can reuse it.

    glibc returns the free end of its heap to the system once that is twice as large as the largest
    block that it has mapped and then freed. Every page that is requested again costs a page fault:
    up to half the time of a step. Freeing one block of 32 MB, the largest that counts, raises the
    limit to 64 MB (mallopt(3), M_MMAP_THRESHOLD). With another C library nothing changes.
    """
    bytes((32 << 20) - (1 << 16))  # freed at once; with its header it stays below 32 MB


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32 on this device.

    True only for CPUs that have an instruction for them. Where torch emulates bfloat16, products
    are slower. On GPUs it has not been measured.
    """
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())


def memory() -> float:
    """The memory of the machine in bytes, or of the container if that is less; else infinity."""
    limits = [math.inf]
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # there is no cgroup v2, or the file says "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def free_memory(device: torch.device) -> float:
    """The free bytes of a GPU, including those that torch has reserved and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)


def spare_memory(device: torch.device) -> float:
    """The bytes that a run may still take on this device, as far as that is known: those of a
    container's limit, else those that the system calls available."""
    if device.type == "cuda":
        return free_memory(device)
    limits = [memory()]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next((line for line in lines if line.startswith("MemAvailable")), "")
        limits.append(1024 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, StopIteration):  # there is no cgroup v2, or no limit
        most = int((group / "memory.max").read_text())
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = next(int(number) for name, number in pairs if name == "inactive_file")
        limits.append(most - int((group / "memory.current").read_text()) + cached)
    return float(min(limits))


def used_memory(device: torch.device) -> float:
    """The bytes that this process holds on the device; 0 where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    with suppress(OSError, ValueError, IndexError):
        return float(
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        )
    return 0.0


def affordable(needed: int, device: torch.device) -> bool:
    """Whether `needed` bytes are at most half of a GPU's free memory, or a quarter of the memory
    of the machine for any other device."""
    limit = free_memory(device) / 2 if device.type == "cuda" else memory() / 4
    return needed <= limit


def versions() -> dict[str, str | None]:
    """The versions of pbu, its libraries, CUDA and the driver; None where there is none."""
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
    """The device for a run record: its type, its name, and the number of CPU threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


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
