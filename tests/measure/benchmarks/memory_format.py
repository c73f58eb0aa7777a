"""How much faster a CPU is when the kernels have their channels last.

    python -m tests.measure.benchmarks.memory_format

The table shows the time of a forward pass and of a step of fused Adam with channels last, relative
to torch's own order. Both take turns, and medians over the rounds are shown.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.models import get_model


def ratio(works: list[Callable[[], object]], rounds: int) -> tuple[float, float]:
    """Seconds of the first of two works, and the ratio of the second to it."""
    took: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for work, times in zip(works, took, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    first, second = (times[1:] for times in took)
    return median(first), median(b / a for a, b in zip(first, second, strict=True))


def forward(model: nn.Module, size: int, batch: int) -> Callable[[], object]:
    x = torch.randn(batch, 3, size, size)
    return torch.inference_mode()(lambda: model(x))


def step(model: nn.Module, size: int, batch: int) -> Callable[[], object]:
    x, labels = torch.randn(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
    optimiser = torch.optim.Adam(model.parameters(), 1e-6, fused=True)

    def move() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimiser.step()

    return move


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet34", "resnet50", "densenet121",
                        "efficientnet_b0", "mobilenet_v3_large", "convnext_tiny"])  # fmt: skip
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    table = Table("model", "forward, s", "channels last", "step, s", "channels last")
    for name in given.models:
        own = get_model(name, num_classes=10).eval()
        last = copy.deepcopy(own).to(memory_format=torch.channels_last)
        cells = [name]
        for kind in (forward, step):
            seconds, found = ratio(
                [kind(model, given.size, given.batch) for model in (own, last)], given.rounds
            )
            cells += [f"{seconds:.2f}", f"{found:.2f}"]
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
