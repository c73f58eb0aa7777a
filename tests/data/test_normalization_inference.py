"""The normalisation that a network was trained with is found from images of one class."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from pbu_cli.benchmark.demo_digits import PREPROCESSING, DemoFiles
from pbu_cli.data.normalization_inference import NORMALISATIONS, rank_normalisations
from pbu_cli.data.preprocessing import normalise
from pbu_cli.images.decoding import DecodedImages, decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.io.checkpoint import read
from pbu_cli.models.load import load_network
from pbu_cli.models.model_config import Description
from pbu_cli.settings import Preprocessing


def model_and_images(digits: DemoFiles, digit: int) -> tuple[nn.Module, DecodedImages]:
    """The network of the demo, and the training images of one digit."""
    network = load_network(read(digits.checkpoint), None, Description())
    return network.module, decode(list_groups([str(digits.train / str(digit))]), channels=1)


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("known", [True, False])
def test_the_training_normalisation_is_found_from_any_single_class(
    digits: DemoFiles, digit: int, known: bool
) -> None:
    model, images = model_and_images(digits, digit)
    labels = [digit if known else None]
    best = rank_normalisations(model, images.pixels, images.group, labels)[0]
    assert best.preprocessing == PREPROCESSING
    assert best.recognised > 90


def test_scores_do_not_depend_on_the_batch_size_and_the_mismatch_is_a_kl_divergence(
    digits: DemoFiles,
) -> None:
    model, images = model_and_images(digits, 8)
    pixels, groups = images.pixels[:64], images.group[:64]  # as many as all are scored on
    at_once, in_parts = (rank_normalisations(model, pixels, groups, [8], size) for size in (256, 7))
    for one, other in zip(at_once, in_parts, strict=True):
        assert (one.name, one.recognised) == (other.name, other.recognised)
        assert one.mismatch == pytest.approx(other.mismatch, rel=1e-4)
    normal = Preprocessing((8, 8), (0.5,), (0.5,))
    x = model.conv1(normalise(pixels, normal)).detach().transpose(0, 1)
    layer: Any = model.bn1
    fit = Normal(layer.running_mean, layer.running_var.sqrt())
    given = Normal(x.flatten(1).mean(1), x.flatten(1).std(1, correction=0))
    assert at_once[0].preprocessing == normal
    assert at_once[0].mismatch == pytest.approx(kl_divergence(given, fit).mean().item(), rel=1e-4)


@pytest.mark.parametrize(("close", "again"), [(0.0, 0), (72.0, 2), (math.inf, len(NORMALISATIONS))])
def test_normalisations_far_behind_after_a_few_images_are_not_scored_again(
    close: float, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.data.normalization_inference.CLOSE_POINTS", close)
    seen: list[int] = []

    class Bright(nn.Module):
        """Gives class 0 a larger logit, the closer an image's mean is to its mean in unit range."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            off = (x.mean((1, 2, 3)) - 0.5).abs() + self.bias
            return torch.stack([0.1 - off, torch.zeros_like(off)], dim=1)

    pixels = torch.linspace(100, 155, 300).byte().view(300, 1, 1, 1)
    ranking = rank_normalisations(Bright(), pixels, torch.zeros(300, dtype=torch.int64), [0])
    assert ranking[0].name == "unit range"
    assert {c.name for c in ranking} == set(NORMALISATIONS)
    assert seen == [64] * len(NORMALISATIONS) + [256] * again
    assert ranking == sorted(ranking, key=lambda c: -c.score)


class Broken(nn.Module):
    """Has a BatchNorm and raises after it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.norm(x)
        raise RuntimeError("broken")


def test_no_hook_is_left_where_the_model_raises() -> None:
    model = Broken().eval()
    pixels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="broken"):
        rank_normalisations(model, pixels, torch.zeros(3, dtype=torch.int64), [0])
    assert not model.norm._forward_pre_hooks


class Limited(Broken):
    """A network for which memory ends at seven images, after its BatchNorm has seen them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm(x).flatten(1)
        if len(z) > 7:
            raise torch.OutOfMemoryError(f"{len(z)} images are too many")
        return z


def test_images_of_a_pass_that_ran_out_of_memory_are_not_counted_twice() -> None:
    pixels = torch.randint(256, (30, 1, 4, 4), dtype=torch.uint8)
    groups = torch.zeros(30, dtype=torch.int64)
    few, many = (
        rank_normalisations(Limited().eval(), pixels, groups, [0], batch_size)
        for batch_size in (5, 20)
    )
    assert [c.name for c in few] == [c.name for c in many]
    assert [c.mismatch for c in few] == pytest.approx([c.mismatch for c in many], rel=1e-6)
