"""Relearning on networks so small that it is known what an attacker can do with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pbu_cli.audit.relearning_attack import (
    Attacker,
    RelearningSettings,
    relearn,
    relearn_once,
    tune,
)

LabelledImages = tuple[torch.Tensor, torch.Tensor]
FORGOTTEN = torch.tensor([True, False, False])
ONE_DRAW = RelearningSettings(draws=1)


def clouds(n: int = 300, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Three clouds in the plane, of which class 0 is forgotten: forget and retained images with
    labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[4.0, 4.0], [-4.0, 4.0], [0.0, -4.0]])
    labels = torch.arange(n) % 3
    x = centres[labels] + torch.randn(n, 2, generator=generator)
    forgotten = labels == 0
    return (x[forgotten], labels[forgotten]), (x[~forgotten], labels[~forgotten])


def linear(weight: list[list[float]], bias: list[float]) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3))
    model[0].weight.data = torch.tensor(weight)
    model[0].bias.data = torch.tensor(bias)
    return model.eval()


HIDDEN = linear([[4.0, 4.0], [-4.0, 4.0], [0.0, -4.0]], [-1000.0, -16.0, -8.0])
# This one uses the height alone, so that class 0 looks like class 1.
BLIND = linear([[0.0, 0.0], [0.0, 4.0], [0.0, -4.0]], [-50.0, 0.0, 0.0])


def test_a_class_hidden_by_its_bias_is_back_without_a_step() -> None:
    found = relearn(HIDDEN, *clouds(), FORGOTTEN)
    assert found.curve[0] > 99
    assert found.best == max(found.curve.values())
    assert 99 < found.interval[0] <= found.best <= found.interval[1]


def test_a_head_that_does_not_know_the_class_has_to_learn_it() -> None:
    found = relearn(BLIND, *clouds(), FORGOTTEN)
    assert found.curve[0] < 30
    assert found.best > 90
    assert all("bias alone" not in way for way in found.ways)


def test_the_interval_is_of_the_mean_over_draws() -> None:
    found = relearn(BLIND, *clouds(), FORGOTTEN, RelearningSettings(steps=(0, 10)))
    low, high = found.interval
    assert found.lowest < low < found.best < high < found.highest
    alone = relearn(BLIND, *clouds(), FORGOTTEN, RelearningSettings(draws=1, steps=(0, 10)))
    assert alone.interval == (alone.best, alone.best)  # one draw tells nothing about others


def test_the_attacked_network_stays_as_it_is_and_gets_no_gradients() -> None:
    model = copy.deepcopy(BLIND)
    relearn(model, *clouds(), FORGOTTEN, ONE_DRAW)
    for name, value in model.state_dict().items():
        assert torch.equal(value, BLIND.state_dict()[name])
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_decides_which_images_are_trained_on_and_too_few_are_unknown() -> None:
    forget, retain = clouds()
    runs = [relearn(BLIND, forget, retain, FORGOTTEN, ONE_DRAW, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].curve != runs[2].curve
    assert relearn(BLIND, (forget[0][:19], forget[1][:19]), retain, FORGOTTEN) is None


def test_an_attacker_that_ruins_the_retained_classes_gains_nothing() -> None:
    """At this rate one step is enough to lose the retained classes."""
    forget, retain = clouds()
    held = forget[0][:10], forget[1][:10]
    settings = RelearningSettings(attackers=(Attacker("sgd", 1e6),), steps=(0, 1, 2))
    curve, way = relearn_once(BLIND, held, forget, retain, FORGOTTEN, settings)
    assert way == "bias alone"
    assert curve[0] == curve[1] == curve[2]


def test_the_curve_never_falls_and_images_may_be_prepared_batch_by_batch() -> None:
    forget, retain = clouds()
    plain = relearn(BLIND, forget, retain, FORGOTTEN)
    values = list(plain.curve.values())
    assert values == sorted(values)
    halved = (forget[0] / 2, forget[1]), (retain[0] / 2, retain[1])
    assert relearn(BLIND, *halved, FORGOTTEN, prepare=lambda x: 2 * x) == plain


def test_a_masked_network_has_to_keep_its_masked_accuracy() -> None:
    """Unmasked, the class is predicted for all retained images: A_Dr - 5 would allow any bias."""
    model = copy.deepcopy(BLIND)
    model[0].bias.data[0] = 1000
    forget, retain = clouds()
    bias_alone = RelearningSettings(attackers=())
    a_df = {
        masked: relearn_once(model, forget, forget, retain, FORGOTTEN, bias_alone, masked=masked)[
            0
        ][0]
        for masked in (False, True)
    }
    assert a_df[False] == 100
    assert a_df[True] < 30


def test_tuning_leaves_running_statistics_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    forget, _ = clouds()
    held = forget[0][:10], forget[1][:10]
    ((_, tuned),) = tune(model, Attacker("adam", 1e-2), held, RelearningSettings(steps=(3,)))
    before, after = model.state_dict(), tuned.state_dict()
    assert torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_no_pass_takes_more_images_than_the_batch_size_and_the_result_is_the_same() -> None:
    forget, retain = clouds()
    sizes = []
    model = copy.deepcopy(BLIND)

    def prepare(images: Any) -> Any:
        sizes.append(len(images))
        return images

    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    settings = RelearningSettings(draws=1, steps=(0, 1, 4), batch_size=4)
    in_parts = relearn(model, forget, retain, FORGOTTEN, settings, prepare=prepare)
    # The ten images of the attacker are prepared at once, and pass the network in parts.
    assert sizes.count(10) == 1
    assert max(size for size in sizes if size != 10) == 4
    at_once = relearn(
        BLIND, forget, retain, FORGOTTEN, RelearningSettings(draws=1, steps=(0, 1, 4))
    )
    assert list(in_parts.curve.values()) == pytest.approx(list(at_once.curve.values()), abs=2.5)


def test_by_default_five_attackers_and_eight_draws_are_averaged() -> None:
    settings = RelearningSettings()
    assert (settings.draws, len(settings.attackers), max(settings.steps)) == (8, 5, 40)
