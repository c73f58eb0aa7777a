"""`python -m tests.measure.benchmarks.fisher [--help]`: what the Fisher diagonal costs.

The unit is a plain step: one forward and backward pass of the mean cross-entropy on the same
images, with all weights' gradients. Each row alternates with plain steps in the same run and
divides the two medians. OutputVectors:

    ratio    time of a batch in plain steps; for `exact` a column's, of which there are classes - 1
    plan     what `fisher_diagonal` takes more for its first two batches, in plain steps: it looks
             for a way, and on a GPU records it
    memory   peak above the model and the images, in that of a plain step: for a CPU each in a new
             process

Peers: the loop over batches of one; `torch.func.vmap` over chunks of 8 images; nngeometry, if it
is installed, its Monte Carlo estimate and its exact one over all classes. What a peer cannot run
is a dash.
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
from torch import Tensor, nn
from torchvision import models

from pbu_cli.fisher.diagonal import fisher_diagonal

Batch = tuple[Tensor, Tensor]
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


def build(name: str, size: int, batch: int, classes: int, device: str) -> tuple[nn.Module, Batch]:
    """`small_resnet34` is resnet34 with the 3x3 stem of small images, which keeps larger maps."""
    torch.manual_seed(0)
    options = {"image_size": size} if name.startswith("vit") else {}
    model = models.get_model(name.removeprefix("small_"), num_classes=classes, **options)
    if name.startswith("small_"):
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    x, labels = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
    return model.eval().to(device), (x.to(device), labels.to(device))


# One batch


def plain(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    F.cross_entropy(model(x), labels).backward()
    model.zero_grad(set_to_none=True)


def loop(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    total = [torch.zeros_like(p) for p in model.parameters()]
    for image, label in zip(x.split(1), labels.split(1), strict=True):
        gradients = torch.autograd.grad(
            F.cross_entropy(model(image), label), list(model.parameters())
        )
        for t, g in zip(total, gradients, strict=True):
            t.addcmul_(g, g)


def vmap(model: nn.Module, x: Tensor, labels: Tensor, chunk: int = 8) -> None:
    held = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    total = {name: torch.zeros_like(p) for name, p in held.items()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {**parameters, **buffers}, (image[None],))
        return F.cross_entropy(logits, label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for some_x, some_labels in zip(x.split(chunk), labels.split(chunk), strict=True):
        for name, g in each(held, some_x, some_labels).items():
            total[name] += g.square().sum(0)


def nngeometry(model: nn.Module, x: Tensor, labels: Tensor, draws: int | None = None) -> None:
    """Its own `exact`, whole, or with draws its Monte Carlo estimate, as costly as `empirical`."""
    from nngeometry import metrics  # type: ignore[import-not-found,unused-ignore]
    from nngeometry.object import PMatDiag  # type: ignore[import-not-found,unused-ignore]
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, labels), batch_size=len(x))
    options: dict[str, Any] = {"variant": "classif_logits", "device": x.device}
    if draws is None:
        metrics.FIM(model, loader, PMatDiag, **options)
    else:
        metrics.FIM_MonteCarlo(model, loader, PMatDiag, trials=draws, **options)


STEPS: dict[str, Callable[[nn.Module, Tensor, Tensor], None]] = {
    "plain": plain,
    "loop": loop,
    "vmap": vmap,
    "nngeometry": nngeometry,
    "nngeometry-mc": partial(nngeometry, draws=1),
}


# Time


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def stopwatch(device: str, step: Callable[[], None]) -> float:
    start = clock(device)
    step()
    return clock(device) - start


def time_ours(
    estimator: Any, model: nn.Module, batch: Batch, repeats: int, device: str
) -> tuple[list[float], list[float]]:
    """Seconds of plain steps, and of the batches of one pass between them; the first have the plan.

    The plain steps are of a copy, for during the pass the model's parameters ask for no gradients.
    """
    twin, plains, ours = copy.deepcopy(model), list[float](), list[float]()
    plain(twin, *batch)

    def batches() -> Iterator[Batch]:
        for _ in range(repeats + 2):
            with torch.enable_grad():
                plains.append(stopwatch(device, partial(plain, twin, *batch)))
            start = clock(device)
            yield batch
            ours.append(clock(device) - start)

    fisher_diagonal(model, batches(), estimator=estimator)
    return plains[2:], ours


def time_peer(
    name: str, model: nn.Module, batch: Batch, repeats: int, device: str
) -> tuple[list[float], list[float]]:
    plains, peers = [], []
    for _ in range(repeats + 1):
        plains.append(stopwatch(device, partial(plain, model, *batch)))
        peers.append(stopwatch(device, partial(STEPS[name], model, *batch)))
    return plains[1:], peers[1:]


# Memory


def peak(method: str, model: nn.Module, batch: Batch, device: str) -> int:
    """Bytes above those in use before; for the CPU as Linux counts them, of a new process."""
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
    small = torch.ones(1, 3, 8, 8, requires_grad=True)  # what torch itself takes at its first step
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
        except Exception:  # as above
            return None
    arguments = ["--models", name, *_flags(options)]
    command = [
        sys.executable,
        "-m",
        "tests.measure.benchmarks.fisher",
        *arguments,
        "--peak-of",
        method,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


# The table


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
