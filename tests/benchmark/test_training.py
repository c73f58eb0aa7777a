"""How originals are trained."""

from __future__ import annotations

import torch
from torch import nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.training import Recipe, recipe_for, train
from pbu_cli.data.augmentation import augment
from pbu_cli.settings import Preprocessing

UNIT = Preprocessing((2, 2), (0.5,), (0.5,))


def trained(seed: int, recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    pixels = torch.tensor([[[[0, 0], [255, 255]]], [[[255, 255], [0, 0]]]], dtype=torch.uint8)
    labels = torch.tensor([0, 1])
    train(
        network,
        CountingLoader(pixels.repeat(8, 1, 1, 1), labels.repeat(8), UNIT),
        recipe,
        seed=seed,
    )
    return network


def test_training_is_the_same_for_a_seed_and_ends_in_eval_mode_without_gradients():
    recipe = Recipe(epochs=3, batch_size=5, pad=1, flip=True)
    one, again, other = (trained(seed, recipe)[1].weight for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    network = trained(0, recipe)
    assert not network.training
    assert all(p.grad is None for p in network.parameters())


def test_both_optimisers_learn_two_images():
    for recipe in (Recipe(20, rate=0.1, batch_size=4), Recipe(40, 0.05, 4, optimiser="adamw")):
        network = trained(0, recipe)
        x = torch.tensor([[[[-1.0, -1.0], [1.0, 1.0]]], [[[1.0, 1.0], [-1.0, -1.0]]]])
        assert network(x).argmax(1).tolist() == [0, 1]


def test_mixed_precision_learns_too_and_leaves_float32_as_a_file_would():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                            nn.Linear(8, 2))  # fmt: skip
    pixels = torch.tensor([[[[0, 0], [255, 255]]], [[[255, 255], [0, 0]]]], dtype=torch.uint8)
    labels = torch.tensor([0, 1]).repeat(8)
    feed = CountingLoader(pixels.repeat(8, 1, 1, 1), labels, UNIT)
    train(network, feed, Recipe(20, rate=0.05, batch_size=8, mixed=True), seed=0)
    assert (network(next(feed.batches(16))[0]).argmax(1) == labels).all()
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()


def test_one_step_is_no_error():
    trained(0, Recipe(epochs=1, batch_size=16))


def test_varied_images_are_the_image_shifted_against_a_slow_oracle():
    image = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 3, 4)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    possible = {
        tuple(piece.flatten().tolist())
        for row in range(3)
        for column in range(3)
        for crop in [padded[0, 0, row : row + 3, column : column + 4]]
        for piece in (crop, crop.flip(1))
    }
    seen = augment(image.expand(500, -1, -1, -1), 1, True, torch.Generator().manual_seed(0))
    assert seen.dtype == torch.uint8
    assert {tuple(one.flatten().tolist()) for one in seen} == possible


def test_colours_move_together():
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    both = torch.cat([image, image + 100], dim=1).expand(50, -1, -1, -1)
    seen = augment(both, 1, True, torch.Generator().manual_seed(0)).int()
    inside = seen[:, 1] > 0
    assert torch.equal((seen[:, 1] - seen[:, 0])[inside], torch.full_like(seen[:, 1], 100)[inside])


def test_digits_are_not_mirrored_and_colour_is():
    assert not recipe_for("mnist", "resnet34", 1).flip
    assert not recipe_for("letters", "resnet34", 1).flip
    assert recipe_for("cifar10", "resnet20", 3).flip
    assert recipe_for("cifar10", "convnext_tiny", 3).optimiser == "adamw"
