"""The cost of the Fisher diagonal.

    python -m tests.measure.benchmarks.fisher [--help]

The unit is a plain step: one forward and backward pass of the mean cross-entropy on the same
images, with the gradients of all weights. Each method alternates with plain steps in one run, and
the two medians are divided. Columns:

    ratio    time of a batch in plain steps; for `exact` that of one of its classes - 1 output
             vectors
    plan     the extra time of the first two batches, in plain steps: `fisher_diagonal` chooses and
             validates its plan, and on a GPU records it
    memory   peak memory above the model and the images, relative to a plain step; on a CPU each
             figure is measured in a new process

Peers: a loop over batches of one; `torch.func.vmap` over chunks of 8 images; and, if nngeometry is
installed, its Monte Carlo estimate and its exact diagonal. A dash marks what a peer cannot run.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from pbu_cli.fisher.diagonal import fisher_diagonal
from tests.measure.benchmarks.fisher_peers import STEPS, Batch, build, plain

OURS = ("empirical", "exact", "mc")
PEERS = ("loop", "vmap", "nngeometry-mc", "nngeometry")


@dataclass(frozen=True)
class Row:
    model: str
    size: int
    batch: int
    method: str
    plain_ms: float
    ratio: float | None = None
    plan: float | None = None
    memory: float | None = None


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(device: str, step: Callable[[], None]) -> float:
    start = clock(device)
    step()
    return clock(device) - start


def time_ours(
    estimator: Any, model: nn.Module, batch: Batch, repeats: int, device: str
) -> tuple[list[float], list[float]]:
    """Seconds of plain steps and of the batches of one pass, in turn. The first two batches include
    the plan. The plain steps use a copy, because during the pass the model requires no gradients.
    """
    twin, plains, passes = copy.deepcopy(model), list[float](), list[float]()
    plain(twin, *batch)

    def batches() -> Iterator[Batch]:
        for _ in range(repeats + 2):
            with torch.enable_grad():
                plains.append(seconds_of(device, partial(plain, twin, *batch)))
            start = clock(device)
            yield batch
            passes.append(clock(device) - start)

    fisher_diagonal(model, batches(), estimator=estimator)
    return plains[2:], passes


def time_peer(
    name: str, model: nn.Module, batch: Batch, repeats: int, device: str
) -> tuple[list[float], list[float]]:
    plains, peers = [], []
    for _ in range(repeats + 1):
        plains.append(seconds_of(device, partial(plain, model, *batch)))
        peers.append(seconds_of(device, partial(STEPS[name], model, *batch)))
    return plains[1:], peers[1:]


def peak(method: str, model: nn.Module, batch: Batch, device: str) -> int:
    """Peak bytes above those in use before. On a CPU Linux counts them, for the whole process."""
    cuda = device.startswith("cuda")

    def run() -> None:
        if method in OURS:
            batches = [batch] * (3 if cuda else 1)  # the second is recorded
            fisher_diagonal(model, batches, estimator=method)  # type: ignore[arg-type]
        else:
            STEPS[method](model, *batch)

    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    small = torch.ones(1, 3, 8, 8, requires_grad=True)  # torch allocates at its first step
    F.conv2d(small, torch.ones(4, 3, 3, 3, requires_grad=True)).sum().backward()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def peak_of(method: str, name: str, options: argparse.Namespace) -> int | None:
    if options.device.startswith("cuda"):
        setting = (options.size, options.batch, options.classes, options.device)
        try:
            return peak(method, *build(name, *setting), options.device)
        except Exception:  # a peer that fails has no peak
            return None
    arguments = ["--models", name, *_flags(options)]
    command = [sys.executable, "-m", "tests.measure.benchmarks.fisher", *arguments,
               "--peak-of", method]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def measure(name: str, options: argparse.Namespace, errors: Console) -> Iterator[Row]:
    setting = (name, options.size, options.batch)
    memory = {
        method: None if options.no_memory else peak_of(method, name, options)
        for method in ("plain", *options.methods)
    }
    for method in options.methods:
        model, batch = build(*setting, options.classes, options.device)
        plan = None
        try:
            if method in OURS:
                plains, times = time_ours(method, model, batch, options.repeats, options.device)
                unit, each = median(plains), median(times[2:])
                plan = (sum(times[:2]) - 2 * each) / unit
                each /= options.classes - 1 if method == "exact" else 1
            else:
                repeats = min(options.repeats, 3)
                plains, times = time_peer(method, model, batch, repeats, options.device)
                unit, each = median(plains), median(times)
        except Exception as error:  # a peer's failure is a result
            errors.print(f"{name} {method}: {type(error).__name__}: {str(error)[:200]}")
            yield Row(*setting, method, float("nan"))
            continue
        used, unit_used = memory[method], memory["plain"]
        yield Row(
            *setting,
            method,
            plain_ms=round(1e3 * unit, 1),
            ratio=round(each / unit, 3),
            plan=None if plan is None else round(plan, 2),
            memory=round(used / unit_used, 2) if used and unit_used else None,
        )


def _flags(options: argparse.Namespace) -> list[str]:
    named = ("size", "batch", "classes", "threads", "device")
    return [part for key in named for part in (f"--{key}", str(getattr(options, key)))]


def machine(options: argparse.Namespace) -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(": ")[1] for line in lines if "model name" in line), "")
    cuda = options.device.startswith("cuda")
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else model or platform.processor(),
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "repeats": options.repeats,
        "classes": options.classes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet34"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", choices=OURS + PEERS, default=[*OURS, *PEERS])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak-of", choices=("plain", *OURS, *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        setting = (options.models[0], options.size, options.batch, options.classes)
        print(peak(options.peak_of, *build(*setting, options.device), options.device))
        return
    errors = Console(stderr=True)
    rows = [row for name in options.models for row in measure(name, options, errors)]
    about = machine(options)
    if options.json:
        print(json.dumps({"machine": about, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    table = Table(caption=", ".join(f"{key} {value}" for key, value in about.items()))
    for head in ("model", "size", "batch", "method"):
        table.add_column(head)
    for head in ("plain ms", "ratio", "plan", "memory"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            *("-" if value in (None, "") else str(value) for value in asdict(row).values())
        )
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    main()
