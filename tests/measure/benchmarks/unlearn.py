"""The cost of unlearning.

    python -m tests.measure.benchmarks.unlearn step|epoch|growth|parts

step     a step of the loop with all layers training, relative to a plain step of fused Adam on
         the cross-entropy of the same images; a plain step precedes each step of the loop, and
         medians are divided
epoch    the whole command on MNIST class 8, from start-up to the written file, in training epochs
         of the same network (some training batches are timed before and after the command)
growth   seconds and peak memory of the whole command by the number of forget images
parts    seconds and peak memory of each part of one such command, and its percent of an epoch
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from inspect import isgenerator
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torchvision.models import get_model

from pbu_cli.__main__ import run as pbu
from tests.measure.archives import SHARED, unpack
from tests.measure.benchmarks.unlearn_step import CLASSES, seconds, step

CHECKPOINT = SHARED / "checkpoints" / "mnist_resnet34_fp16.safetensors"
EPOCH = 60_000  # images of MNIST
BATCH = 64
PARTS = {
    "read, decode, extract": "pbu_cli.pipeline.fisher.prepare_inputs",
    "Fisher diagonal": "pbu_cli.pipeline.unlearn.measure_fisher",
    "mirror images": "pbu_cli.pipeline.sanitize.build_forget_set",
    "anchors": "pbu_cli.pipeline.anchors.synthesise_anchors",
    "synthetic forget inputs": "pbu_cli.pipeline.anchors.synthesise_forget_inputs",
    "steps": "pbu_cli.pipeline.sanitize.unlearn",
    "write and verify": "pbu_cli.pipeline.sanitize.write",
}


def epoch(folder: Path, batches: int, *flags: str) -> dict[str, Any]:
    """`pbu unlearn` on all images of class 8, relative to a training epoch of ResNet-34."""
    pace = training(batches)
    before = pace()
    command, _ = process(folder / "8", folder.parent / "out.safetensors", "--force", *flags)
    whole = epoch_of(before + pace())
    return {"command_s": command, "epoch_s": whole, "percent": 100 * command / whole}


def parts(folder: Path, batches: int, *flags: str) -> list[dict[str, Any]]:
    """The same command part by part, in this process. Start-up and tables are in no part."""
    pace = training(batches)
    before = pace()
    took: dict[str, tuple[float, float]] = {}
    command = ["unlearn", str(CHECKPOINT), "--forget", str(folder / "8"), "--quiet",
               "-o", str(folder.parent / "parts.safetensors"), *flags]  # fmt: skip
    with ExitStack() as held, redirect_stdout(io.StringIO()):
        for name, place in PARTS.items():
            held.enter_context(watched(name, place, took))
        if code := pbu(command):
            raise SystemExit(f"pbu {' '.join(command)}: exit code {code}")
    whole = epoch_of(before + pace())
    return [
        {"part": name, "s": s, "peak_mib": peak, "percent": 100 * s / whole}
        for name, (s, peak) in took.items()
    ]


@contextmanager
def watched(name: str, place: str, took: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Put the seconds and the peak memory, MiB, of all calls of a function into `took`."""
    work = resolve_name(place)

    def timed(*args: Any, **kwargs: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start = time.perf_counter()
        found = work(*args, **kwargs)
        if isgenerator(found):
            found = iter(list(found))
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        before, most = took.get(name, (0.0, 0.0))
        took[name] = before + time.perf_counter() - start, max(most, peak)
        return found

    with patch(place, timed):
        yield


def training(batches: int) -> Callable[[], list[float]]:
    """A function that times so many training steps of ResNet-34 on batches like MNIST's."""
    torch.manual_seed(0)
    model = get_model("resnet34", num_classes=CLASSES)
    model.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(CLASSES, (BATCH,))

    def train() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()

    train()
    return lambda: [seconds(train) for _ in range(batches)]


def epoch_of(steps: list[float]) -> float:
    return median(steps) * EPOCH / BATCH


def growth(folder: Path, count: int, *flags: str) -> dict[str, Any]:
    """The command on `count` images, which are links to the images of class 8."""
    images = sorted((folder / "8").iterdir())
    links = folder.parent / f"links{count}"
    links.mkdir()
    for number in range(count):
        (links / f"{number}.png").symlink_to(images[number % len(images)])
    took, peak = process(links, folder.parent / f"out{count}.safetensors", "--label", "8", *flags)
    return {"images": count, "s": took, "peak_mib": peak}


def process(forget: Path, output: Path, *flags: str) -> tuple[float, float]:
    """Seconds and peak memory, MiB, of one `pbu unlearn` as a process of its own."""
    command = [sys.executable, "-m", "pbu_cli", "unlearn", str(CHECKPOINT), "--forget", str(forget),
               "-o", str(output), "--quiet", *flags]  # fmt: skip
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def unpacked(place: Path) -> Path:
    return unpack(SHARED / "data" / "mnist.tar.xz", place) / "train"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("step", "epoch", "growth", "parts"))
    parser.add_argument("--models", default="resnet34:32:64,resnet34:224:8",
                        help="name:size:batch, for step")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", default="100,1000,10000,50000", help="for growth")
    parser.add_argument("--device", default="cpu", help="for step")
    parser.add_argument("--live", action="store_true",
                        help="for step: on kernels as in the command")  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fast", action="store_true", help="give the command --fast")
    given = parser.parse_args()
    flags = ["--fast"] * given.fast
    with tempfile.TemporaryDirectory() as scratch:
        if given.what == "step":
            cases = [case.split(":") for case in given.models.split(",")]
            rows = [
                step(n, int(s), int(b), given.rounds, given.device, live=given.live)
                for n, s, b in cases
            ]
        elif given.what == "epoch":
            folder = unpacked(Path(scratch))
            rows = [epoch(folder, 30, *flags) for _ in range(given.rounds)]
        elif given.what == "parts":
            rows = parts(unpacked(Path(scratch)), 60, *flags)
        else:
            folder = unpacked(Path(scratch))
            rows = [growth(folder, int(count), *flags) for count in given.images.split(",")]
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, {datetime.date.today()}"
    if given.json:
        print(json.dumps({"where": where, "rows": rows}, indent=2))
        return
    table = Table(*rows[0], title=f"{given.what}: {where}")
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
