"""Fine-tuning on the retained images."""

from __future__ import annotations

import torch.nn.functional as F

from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import results_of


def test_finetuning_lowers_the_loss_of_the_retained_images(task: Task) -> None:
    (result,) = results_of(task, "finetune")
    losses = [
        sum(F.cross_entropy(n(x), y).item() for x, y in task.retained.batches(300))
        for n in (task.original, result.network)
    ]
    assert losses[1] < losses[0]
