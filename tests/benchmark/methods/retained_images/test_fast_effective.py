"""UNSIR: the noise and the impair epoch."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from pbu_cli.benchmark.methods.retained_images import fast_effective
from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import FORGET_CLASS, seeded


def test_the_noise_raises_the_loss_of_its_class(task: Task) -> None:
    start = torch.randn(16, 1, 6, 6, generator=seeded(1))
    noise = fast_effective.learn_noise(task.original, start, FORGET_CLASS)
    labels = torch.full((16,), FORGET_CLASS)
    before, after = (F.cross_entropy(task.original(x), labels).item() for x in (start, noise))
    assert after > before + 1


def test_the_penalty_shrinks_the_noise(task: Task) -> None:
    start = torch.randn(16, 1, 6, 6, generator=seeded(1))
    lengths = [
        fast_effective.learn_noise(
            task.original, start, FORGET_CLASS, replace(fast_effective.SETTINGS, penalty=penalty)
        ).norm()
        for penalty in (0.0, 10.0)
    ]
    assert lengths[1] < 0.5 * lengths[0]


def test_the_impair_epoch_is_the_retained_images_and_all_copies(task: Task) -> None:
    noise = 1000 + torch.arange(3.0)[:, None, None, None].expand(3, 1, 6, 6)
    retained = task.retained.subset(torch.arange(10))
    batches = list(fast_effective.impair_batches(retained, noise, FORGET_CLASS, torch.Generator()))
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    copies = x[:, 0, 0, 0] >= 1000
    assert copies.sum() == 3 * fast_effective.SETTINGS.copies
    assert (y[copies] == FORGET_CLASS).all()
    assert sorted(y[~copies].tolist()) == sorted(retained.labels.tolist())
