"""How a network is trained from random weights: one fixed recipe for each data set.

Nothing in this module knows of forgetting. The same function trains the original network, the
network that is retrained without the class, and the network of `pbu demo`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.data.augmentation import augment

# SGD trains these families badly. They get AdamW, with the rate and decay of their own papers.
ADAMW_FAMILIES = ("convnext", "vit", "swin", "maxvit")


# The repr of a recipe is digested into the name of the results folder, and its fields are written
# as JSON. The names of the class and of its fields must therefore stay as they are.
@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum, or AdamW, with a one-cycle learning rate.

    rate: the peak of the learning rate. pad: each image is shifted by up to `pad` pixels, and
    black moves in. flip: each image is mirrored with probability one half. mixed: forward and
    backward run in bfloat16 where torch's autocast supports it, with the weights in float32;
    this is about twice as fast on a CPU with bfloat16 instructions.
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


# Digits must not be mirrored, and networks generalise on them without augmentation.
RECIPES = {
    "mnist": Recipe(epochs=3, rate=0.05),
    "cifar10": Recipe(epochs=30, pad=4, flip=True, mixed=True),
    "cifar100": Recipe(epochs=60, pad=4, flip=True, mixed=True),
    "food101": Recipe(epochs=60, pad=16, flip=True, mixed=True),
}
GREY, COLOUR = Recipe(epochs=10, rate=0.05), Recipe(epochs=30, pad=4, flip=True, mixed=True)


def recipe_for(dataset: str, model: str, channels: int) -> Recipe:
    """The recipe of a data set, with the optimiser that suits the model.

    A data set without a recipe of its own gets GREY or COLOUR, by its number of channels.

    >>> recipe_for("mnist", "resnet34", 1).optimiser, recipe_for("mnist", "vit_b_16", 1).optimiser
    ('sgd', 'adamw')
    """
    recipe = RECIPES.get(dataset, GREY if channels == 1 else COLOUR)
    if model.startswith(ADAMW_FAMILIES):
        return replace(recipe, optimiser="adamw", rate=1e-3, weight_decay=0.05)
    return recipe


def train(
    network: nn.Module,
    loader: CountingLoader,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    drop_last: bool = True,
    memory_format: torch.memory_format = torch.channels_last,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train in place on all images of `loader`. The network ends in eval mode, without gradients.

    generator: draws the order of the images and their augmentation. drop_last: see
    `CountingLoader.batches_per_epoch`. memory_format: how maps lie in memory during training;
    convolutions are fastest with channels last. on_step: called with the number of steps done.
    """
    steps = recipe.epochs * loader.batches_per_epoch(recipe.batch_size, drop_last=drop_last)
    optimiser = _optimiser(network, recipe)
    # OneCycleLR divides by zero below 4 steps. Only tests train for so few.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.rate, total_steps=max(steps, 4)
    )
    network.train().to(memory_format=memory_format)
    epochs = shuffled_epochs(
        loader, recipe, recipe.epochs, generator=generator, drop_last=drop_last
    )
    for step, (inputs, labels) in enumerate(epochs, start=1):
        train_step(network, optimiser, inputs, labels, mixed=recipe.mixed)
        schedule.step()
        on_step(step)
    optimiser.zero_grad()  # frees the memory of the gradients
    # A network loaded from a file is contiguous. In another memory format the same weights would
    # give logits that differ in their last bits.
    network.eval().to(memory_format=torch.contiguous_format)


def shuffled_epochs(
    loader: CountingLoader,
    recipe: Recipe,
    epochs: int,
    *,
    generator: torch.Generator,
    drop_last: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of several epochs with the recipe's batch size and augmentation.

    Each epoch has its own order, drawn from `generator`.
    """
    for _ in range(epochs):
        yield from loader.shuffled(
            recipe.batch_size,
            generator,
            lambda pixels: augment(pixels, recipe.pad, recipe.flip, generator),
            drop_last=drop_last,
        )


def train_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    *,
    mixed: bool = False,
) -> None:
    """One optimiser step on the mean cross-entropy of a batch. mixed: see `Recipe`."""
    optimiser.zero_grad()
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=mixed):
        logits = network(inputs)
    F.cross_entropy(logits.float(), labels).backward()
    optimiser.step()


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = network.parameters()
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, recipe.rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        parameters, recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=True,
    )  # fmt: skip
