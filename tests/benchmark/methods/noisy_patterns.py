"""Four classes of noisy patterns and a small CNN, on which every method can be checked by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from pbu_cli.benchmark.methods import find
from pbu_cli.benchmark.methods.task import Result, Task
from pbu_cli.benchmark.training import Recipe
from pbu_cli.data.preprocessing import image_logits
from pbu_cli.settings import Preprocessing

UNIT = Preprocessing((6, 6), (0.5,), (0.25,))
CLASSES, FORGET_CLASS = 4, 2
RECIPE = Recipe(epochs=12, rate=0.05, batch_size=32)


def build_untrained(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES)
        ).eval()


def images() -> tuple[Tensor, Tensor]:
    """uint8 pixels [400, 1, 6, 6] and labels [400]."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 256, (CLASSES, 1, 6, 6), generator=generator).float()
    labels = torch.arange(400) % CLASSES
    noise = 40 * torch.randn(400, 1, 6, 6, generator=generator)
    return (patterns[labels] * 0.6 + 50 + noise).clamp(0, 255).to(torch.uint8), labels


def logits_of(network: nn.Module) -> Tensor:
    """The logits of all images, [400, 4]."""
    pixels, _ = images()
    return image_logits(network, pixels, UNIT)


def accuracies(network: nn.Module) -> tuple[float, float]:
    """(A_Df, A_Dr) in percent."""
    _, labels = images()
    correct = (logits_of(network).argmax(1) == labels).float()
    is_forget = labels == FORGET_CLASS
    return 100 * correct[is_forget].mean().item(), 100 * correct[~is_forget].mean().item()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def results_of(task: Task, name: str) -> list[Result]:
    """A method's results, each with the network as it was when it was yielded."""
    return [replace(r, network=copy.deepcopy(r.network)) for r in find(name).unlearn(task)]


def head_of(network: nn.Module) -> nn.Linear:
    head = network.get_submodule("4")
    assert isinstance(head, nn.Linear)
    return head


def running_mean_of(network: nn.Module) -> Tensor:
    return network.get_buffer("1.running_mean")
