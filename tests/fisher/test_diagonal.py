"""The Fisher diagonal against a batch-of-one loop, for every kind of layer, use and layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.fisher.dispatch import PER_IMAGE
from tests.fisher.fisher_oracle import (
    LABELS,
    check,
    close,
    empirical,
    errors,
    fisher_loop,
    randomised,
    strategies_of,
)
from tests.fisher.networks import FAMILIES, images, small, vit
from tests.fisher.unusual_modules import UNUSUAL_USES, Net


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    model = randomised(make())
    check(model, images(size))
    assert PER_IMAGE not in strategies_of(model, images(size)).values()


@pytest.mark.parametrize("use", UNUSUAL_USES)
def test_unusual_use(use: str) -> None:
    torch.manual_seed(0)
    model = randomised(Net(UNUSUAL_USES[use]()))
    check(model, images(6))


# Which parameters


@pytest.mark.parametrize(
    "names",
    [
        ["heads.head.bias"],
        ["encoder.layers.encoder_layer_2.self_attention.in_proj_weight"],
        ["class_token", "encoder.layers.encoder_layer_1.mlp.0.weight"],
        [],
    ],
)
def test_only_the_parameters_asked_for(names: list[str]) -> None:
    """With nothing below to train, torch would run its fused attention, which hides the layers."""
    model, x = vit(), images(16)
    expected = fisher_loop(model, x, LABELS, "empirical")
    found = empirical(model, x, parameters=names)
    assert set(found) == set(names)
    if names:
        assert close(found, {name: expected[name] for name in found})


def test_unknown_parameter_is_refused_by_name() -> None:
    with pytest.raises(InvalidUsage, match=r"'fc\.wieght'"):
        empirical(small(), images(32), parameters=["fc.weight", "fc.wieght"])


# Batches


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad(switch: Callable[[], Any]) -> None:
    model, x = small(), images(32)
    expected = empirical(model, x)
    with switch():
        assert close(empirical(model, x), expected)


def test_batches_of_any_length_and_layout() -> None:
    model, x = small(), images(32)
    expected = fisher_loop(model, x, LABELS, "empirical")
    wide = x.repeat(1, 1, 1, 2)[..., ::2].contiguous(memory_format=torch.channels_last)
    expected_wide = fisher_loop(model, wide, LABELS, "empirical")
    batches = [(x[n : n + 1], LABELS[n : n + 1]) for n in range(3)]
    assert close(fisher_diagonal(model, iter([*batches, (x[:0], LABELS[:0])])), expected)
    assert close(empirical(model, x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
    assert close(empirical(model.to(memory_format=torch.channels_last), wide), expected_wide)


def total(loops: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([loop[name] for loop in loops]).sum(0) for name in loops[0]}


@pytest.mark.parametrize("sizes", [(32, 48), (2, 32, 2), (32, 2)])
def test_images_of_several_sizes(sizes: tuple[int, ...]) -> None:
    model = small()
    found = fisher_diagonal(model, [(images(size), LABELS) for size in sizes])
    loops = [fisher_loop(model, images(size), LABELS, "empirical") for size in sizes]
    assert close(found, total(loops))


def test_batches_that_ask_the_model() -> None:
    model = small().eval()
    sizes = (2, 32, 2)
    asked = ((x, model(x).argmax(dim=1)) for x in map(images, sizes))
    found = fisher_diagonal(model, asked)
    loops = [fisher_loop(model, x, model(x).argmax(dim=1), "empirical") for x in map(images, sizes)]
    assert close(found, total(loops))


# Monte Carlo


def test_mc_is_seeded_and_does_not_depend_on_the_batches() -> None:
    model, x = small(), images(32)
    options: dict[str, Any] = {"estimator": "mc", "draws": 3, "seed": 7}
    whole = empirical(model, x, **options)
    parts = fisher_diagonal(model, [(x[:1], LABELS[:1]), (x[1:], LABELS[1:])], **options)
    assert close(parts, whole)
    assert not close(empirical(model, x, estimator="mc", draws=3, seed=8), whole, 1e-3)


def test_mc_approaches_exact() -> None:
    torch.manual_seed(0)
    model, x = randomised(Net(nn.Conv2d(4, 4, 3))), images(6)
    found = empirical(model, x, estimator="mc", draws=1000)
    assert errors(found, fisher_loop(model, x, LABELS, "exact"))[0] < 0.05


# Precision


@pytest.mark.parametrize("name", FAMILIES)
def test_single_precision_is_no_worse_than_the_loop(name: str) -> None:
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    model, x = randomised(make()), images(size)
    expected = fisher_loop(model, x, LABELS, "empirical")
    model.float()
    looped = fisher_loop(model, x.float(), LABELS, "empirical")
    found = empirical(model, x.float())
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(value.is_contiguous() and float(value.min()) >= 0 for value in found.values())
    error, error_of_loop = (
        errors({key: value.double() for key, value in each.items()}, expected)[0]
        for each in (found, looped)
    )
    rounding = torch.finfo(torch.float32).eps
    assert error < 2 * max(error_of_loop, rounding)  # the loop's error may be below one rounding


def test_half_precision_sums_in_single() -> None:
    torch.manual_seed(0)
    model, x = randomised(Net(nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)))), images(6)
    expected = fisher_loop(model, x, LABELS, "empirical")
    found = empirical(model.bfloat16(), x.bfloat16())
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert errors({name: value.double() for name, value in found.items()}, expected)[0] < 0.1


def test_under_autocast() -> None:
    torch.manual_seed(0)
    model, x = randomised(Net(nn.Conv2d(4, 4, 3))), images(6)
    expected = fisher_loop(model, x, LABELS, "empirical")
    with torch.autocast("cpu", torch.bfloat16):
        found = empirical(model.float(), x.float())
    assert errors({name: value.double() for name, value in found.items()}, expected)[0] < 0.1


# Results that are refused


def test_not_finite_images_are_refused() -> None:
    x = images(32)
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(PbuError, match=r"not finite, 'conv1\.weight'"):
        empirical(small(), x)


@pytest.mark.parametrize("labels", [[0, 4, 1], [0, -1, 1]])
def test_labels_without_a_class_are_refused(labels: list[int]) -> None:
    with pytest.raises(PbuError, match="4 classes"):
        fisher_diagonal(small(), [(images(32), torch.tensor(labels))])


def test_no_draws_are_refused() -> None:
    with pytest.raises(InvalidUsage, match="got 0"):
        empirical(small(), images(32), estimator="mc", draws=0)


@pytest.mark.gpu
@pytest.mark.gpu
@pytest.mark.parametrize("builder", ["resnet18", "densenet121", "convnext_tiny"])
def test_a_gpu_takes_the_rules_and_gives_what_the_loop_does(builder: str) -> None:
    """At 64 pixels, so that BatchNorm sees maps large enough for its own kernel."""
    torch.manual_seed(0)
    model = randomised(models.get_model(builder, num_classes=5)).double()
    x, labels = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    expected = fisher_loop(model, x, labels, "empirical")
    model, x, labels = model.float().cuda(), x.float().cuda(), labels.cuda()
    assert PER_IMAGE not in strategies_of(model, x).values()
    found = {n: t.double().cpu() for n, t in fisher_diagonal(model, [(x, labels)]).items()}
    assert errors(found, expected)[0] < 1e-3
