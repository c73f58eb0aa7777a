"""How an original is trained, so that anyone can train it again: one frozen recipe a dataset.

Nothing here knows of forgetting: the same function trains the original, and the network that is
retrained without the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.data.augmentation import augment

# Families that plain SGD trains badly: AdamW with the rate and decay of their own papers.
ADAPTIVE = ("convnext", "vit", "swin", "maxvit")


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum, or AdamW, with a one-cycle learning rate.

    rate: the peak. pad, flip: each image is shifted by up to `pad` pixels, black moving in, and
    mirrored half of the time. mixed: forward and backward in bfloat16 where torch's autocast has
    it so, the weights in float32; about twice as fast on a CPU that knows bfloat16.
    """

    epochs: int
    rate: float = 0.1
    batch_size: int = 128
    weight_decay: float = 5e-4
    momentum: float = 0.9
    optimiser: str = "sgd"
    pad: int = 0
    flip: bool = False
    mixed: bool = False


# Digits must not be mirrored, and need no help to generalise.
RECIPES = {
    "mnist": Recipe(epochs=3, rate=0.05),
    "cifar10": Recipe(epochs=30, pad=4, flip=True, mixed=True),
    "cifar100": Recipe(epochs=60, pad=4, flip=True, mixed=True),
    "food101": Recipe(epochs=60, pad=16, flip=True, mixed=True),
}
GREY, COLOUR = Recipe(epochs=10, rate=0.05), Recipe(epochs=30, pad=4, flip=True, mixed=True)


def recipe_for(dataset: str, model: str, channels: int) -> Recipe:
    """The recipe of a dataset, by name or else by whether it has colour, fit to the model.

    >>> recipe_for("mnist", "resnet34", 1).optimiser, recipe_for("mnist", "vit_b_16", 1).optimiser
    ('sgd', 'adamw')
    """
    recipe = RECIPES.get(dataset, GREY if channels == 1 else COLOUR)
    if model.startswith(ADAPTIVE):
        return replace(recipe, optimiser="adamw", rate=1e-3, weight_decay=0.05)
    return recipe


def train(network: nn.Module, feed: CountingLoader, recipe: Recipe, *, seed: int) -> None:
    """Train in place, in training mode, on everything that `feed` holds; ends in eval mode."""
    steps = recipe.epochs * feed.rounds(recipe.batch_size, full=True)
    optimiser = _optimiser(network, recipe)
    # Below 4 steps OneCycleLR divides by zero; no real run is that short.
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=max(steps, 4))
    network.train().to(memory_format=torch.channels_last)  # what convolutions are fastest in
    for inputs, labels in shuffled_epochs(feed, recipe, recipe.epochs, seed):
        train_step(network, optimiser, inputs, labels, mixed=recipe.mixed)
        rate.step()
    optimiser.zero_grad()  # the gradients' memory is for the next to use
    # As a network from a file: in another format its answers would differ in their last bits.
    network.eval().to(memory_format=torch.contiguous_format)


def shuffled_epochs(
    feed: CountingLoader, recipe: Recipe, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as the recipe has them, epoch after epoch, each in its own order."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from feed.shuffled(
            recipe.batch_size,
            generator,
            lambda x: augment(x, recipe.pad, recipe.flip, generator),
            full=True,
        )


def train_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    *,
    mixed: bool = False,
) -> None:
    """One step of cross-entropy."""
    optimiser.zero_grad()
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=mixed):
        answers = network(inputs)
    F.cross_entropy(answers.float(), labels).backward()
    optimiser.step()


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = network.parameters()
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, recipe.rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        parameters, recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=True,
    )  # fmt: skip
