"""The cost of one step of the unlearning loop; `unlearn step` shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import get_model

from pbu_cli.models.kernels.channels_last import put_channels_last
from pbu_cli.models.kernels.kernel_cropping import cropped, find_crops
from pbu_cli.runtime.device import compute_in_float32
from pbu_cli.settings import Preprocessing, Schedule, Weights
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.loop import CHECK_EVERY, Trainable, unlearn

CLASSES = 10


def step(
    name: str, size: int, batch: int, rounds: int, device: str, *, live: bool
) -> dict[str, Any]:
    """A step of the loop relative to a plain step, the median of `rounds` checks of the loop.

    A plain step precedes each step of the loop, at the moment when the loop asks for its images, so
    that a busy machine slows both alike. With `live` the loop runs as in the command: its kernels
    are cropped to their used regions and, for large images, have their channels last. The plain
    step always uses whole kernels in torch's order.
    """
    compute_in_float32()
    torch.manual_seed(0)
    models = [get_model(name, num_classes=CLASSES).eval().to(device) for _ in range(2)]
    pixels = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    forgotten = torch.arange(CLASSES, device=device) == 0
    unit = Preprocessing((size, size), (0.5,) * 3, (0.25,) * 3)
    images = ForgetSet(pixels, labels, forgotten, unit, torch.zeros(batch, CLASSES, device=device))
    index = torch.arange(batch, device=device)
    with torch.no_grad():
        images = replace(images, logits=models[0](images.inputs(index)))
    names = [n for n, _ in models[0].named_parameters()]
    fisher = {n: torch.ones_like(p) for n, p in models[0].named_parameters()}
    schedule = Schedule(steps=CHECK_EVERY * (rounds + 1), batch_size=batch)
    if live:
        put_channels_last(models[0], 3, (size, size))
    crops = find_crops(models[0], images.inputs(index[:2])) if live else {}
    held = ExitStack()
    held.enter_context(cropped(models[0], crops))
    run = unlearn(
        models[0], images, fisher, Trainable(names, names[-2:], crops),
        weights=Weights(), schedule=schedule,
    )  # fmt: skip
    optimiser = torch.optim.Adam(models[1].parameters(), 1e-6, fused=True)

    inputs = ForgetSet.inputs
    plain: list[float] = []

    def plain_step() -> None:
        loss = F.cross_entropy(models[1](inputs(images, index)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    def after_plain(chosen: ForgetSet, index: Tensor) -> Tensor:
        if device.startswith("cuda"):
            torch.cuda.synchronize()  # so that no work of the loop is still pending
        plain.append(seconds(plain_step))
        return inputs(chosen, index)

    loop_seconds, plain_seconds = [], []
    with held, patch.object(ForgetSet, "inputs", after_plain):
        next(run)
        for _ in range(rounds):
            plain.clear()
            both = seconds(lambda: next(run))
            plain_seconds.append(sum(plain))
            loop_seconds.append(both - plain_seconds[-1])
    return {
        "model": name, "size": size, "batch": batch, "crops": len(crops),
        "plain_ms": 1e3 * median(plain_seconds) / CHECK_EVERY,
        "ratio": median(o / p for o, p in zip(loop_seconds, plain_seconds, strict=True)),
    }  # fmt: skip


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
