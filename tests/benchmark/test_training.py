"""How originals are trained."""

from __future__ import annotations

import torch
from torch import nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.training import Recipe, recipe_for, train
from pbu_cli.settings import Preprocessing

UNIT = Preprocessing((2, 2), (0.5,), (0.5,))


def trained(seed: int, recipe: Recipe) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    pixels = torch.tensor([[[[0, 0], [255, 255]]], [[[255, 255], [0, 0]]]], dtype=torch.uint8)
    labels = torch.tensor([0, 1])
    train(
        network,
        CountingLoader(pixels.repeat(8, 1, 1, 1), labels.repeat(8), UNIT),
        recipe,
        generator=torch.Generator().manual_seed(seed),
    )
    return network


def test_training_is_the_same_for_a_seed_and_ends_in_eval_mode_without_gradients() -> None:
    recipe = Recipe(epochs=3, batch_size=5, pad=1, flip=True)
    one, again, other = (trained(seed, recipe).get_parameter("1.weight") for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    network = trained(0, recipe)
    assert not network.training
    assert all(p.grad is None for p in network.parameters())


def test_both_optimisers_learn_two_images() -> None:
    for recipe in (Recipe(20, rate=0.1, batch_size=4), Recipe(40, 0.05, 4, optimiser="adamw")):
        network = trained(0, recipe)
        x = torch.tensor([[[[-1.0, -1.0], [1.0, 1.0]]], [[[1.0, 1.0], [-1.0, -1.0]]]])
        assert network(x).argmax(1).tolist() == [0, 1]


def test_mixed_precision_learns_too_and_leaves_float32_as_a_file_would() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                            nn.Linear(8, 2))  # fmt: skip
    pixels = torch.tensor([[[[0, 0], [255, 255]]], [[[255, 255], [0, 0]]]], dtype=torch.uint8)
    labels = torch.tensor([0, 1]).repeat(8)
    loader = CountingLoader(pixels.repeat(8, 1, 1, 1), labels, UNIT)
    recipe = Recipe(20, rate=0.05, batch_size=8, mixed=True)
    train(network, loader, recipe, generator=torch.Generator().manual_seed(0))
    assert (network(next(loader.batches(16))[0]).argmax(1) == labels).all()
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()


def test_steps_are_counted_with_and_without_the_last_incomplete_batch() -> None:
    for drop_last, steps in ((True, 4), (False, 6)):  # 2 epochs of 2 or 3 batches of 14 images
        done: list[int] = []
        pixels, labels = torch.zeros(14, 1, 2, 2, dtype=torch.uint8), torch.arange(14) % 2
        train(
            nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
            CountingLoader(pixels, labels, UNIT),
            Recipe(2, rate=0.1, batch_size=6),
            generator=torch.Generator(),
            drop_last=drop_last,
            on_step=done.append,
        )
        assert done == list(range(1, steps + 1))


def test_one_step_is_no_error() -> None:
    trained(0, Recipe(epochs=1, batch_size=16))


def test_digits_are_not_mirrored_and_colour_is() -> None:
    assert not recipe_for("mnist", "resnet34", 1).flip
    assert not recipe_for("letters", "resnet34", 1).flip
    assert recipe_for("cifar10", "resnet20", 3).flip
    assert recipe_for("cifar10", "convnext_tiny", 3).optimiser == "adamw"
