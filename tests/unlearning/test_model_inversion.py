"""Anchors and synthetic forget inputs: what the network predicts for them, and what they keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.settings import DEFAULT
from pbu_cli.unlearning.model_inversion import (
    _stratified,
    bfloat16_if_possible,
    class_shares,
    synthesise_anchors,
    synthesise_forget_inputs,
)
from tests.unlearning.patterns import (
    CLASSES,
    FORGOTTEN,
    GONE,
    HEAD,
    Patterns,
    anchor_loss_for,
    anchors_for,
)

MULTIPLIES_BFLOAT16 = "pbu_cli.unlearning.model_inversion.multiplies_bfloat16"


def test_anchors_are_predicted_as_the_retained_classes(patterns: Patterns) -> None:
    anchors = anchors_for(patterns)
    assert anchors.inputs.shape == (200, 2, 4, 4)
    predictions = anchors.logits.argmax(dim=1)
    assert (predictions != GONE).float().mean() > 0.95
    assert set(predictions.tolist()) >= set(range(CLASSES)) - {GONE}


def test_with_many_anchors_all_retained_classes_get_as_many() -> None:
    retained = torch.arange(10) != 3
    logits = torch.zeros(5, 10)
    logits[:, 4] = 9.0
    shares = class_shares(logits, retained, count=900)
    assert torch.allclose(shares, retained / 9)
    drawn = _stratified(900, shares, torch.Generator().manual_seed(0))
    assert drawn.bincount(minlength=10).tolist() == [100 * keeps for keeps in retained.tolist()]


def test_with_few_anchors_no_class_is_left_out_and_confused_ones_get_more() -> None:
    retained = torch.arange(1000) != 3
    logits = torch.zeros(5, 1000)
    logits[:, 4] = 30.0
    shares = class_shares(logits, retained, count=2048)
    drawn = _stratified(2048, shares, torch.Generator().manual_seed(0)).bincount(minlength=1000)
    assert drawn[3] == 0
    assert drawn[retained].min() >= 1
    assert drawn[4] in (1025, 1026)  # half of them, and its equal part of the other half


def test_shares_that_do_not_sum_to_one_in_rounding_draw_no_other_class() -> None:
    shares = torch.full((7,), 1 / 6)
    shares[-1] = 0.0
    drawn = _stratified(10_001, shares * (1 - 1e-6), torch.Generator().manual_seed(0))
    assert drawn.max() == 5


def test_multiplying_in_bfloat16_moves_no_anchor_to_another_class(
    patterns: Patterns, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for native in (True, False):
        monkeypatch.setattr(MULTIPLIES_BFLOAT16, lambda device, native=native: native)
        made.append(anchors_for(patterns))
    short, full = made
    same = short.logits.argmax(dim=1) == full.logits.argmax(dim=1)
    assert same.float().mean() > 0.95
    assert not torch.equal(short.inputs, full.inputs), "nothing was multiplied in bfloat16"
    assert torch.allclose(short.logits, patterns.model(short.inputs), atol=1e-5)


def test_a_network_that_requires_float32_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    class RequiresFloat32(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            (product,) = x @ x.mT
            assert product.dtype == torch.float32
            return product

    monkeypatch.setattr(MULTIPLIES_BFLOAT16, lambda device: True)
    x = torch.ones(1, 2, 2)
    with bfloat16_if_possible(RequiresFloat32(), x):
        RequiresFloat32()(x)
    with bfloat16_if_possible(nn.Linear(2, 2), x):
        assert nn.Linear(2, 2)(x).dtype == torch.bfloat16


def test_logits_and_features_are_those_of_the_trained_network(patterns: Patterns) -> None:
    anchors = anchors_for(patterns)
    with torch.no_grad():
        assert torch.allclose(anchors.logits, patterns.model(anchors.inputs), atol=1e-5)
        assert torch.allclose(anchors.features, patterns.features(anchors.inputs), atol=1e-5)
        of_forget = patterns.features(patterns.forget_images)
        assert torch.allclose(anchors.forget_features, of_forget, atol=1e-5)


def test_anchors_keep_the_range_and_the_statistics_of_their_seeds(patterns: Patterns) -> None:
    anchors, seeds = anchors_for(patterns), patterns.forget_images
    low, high = seeds.amin((0, 2, 3)), seeds.amax((0, 2, 3))
    inputs = anchors.inputs.movedim(1, -1)
    assert bool(((inputs >= low - 1e-4) & (inputs <= high + 1e-4)).all())
    apart = (inputs.mean((0, 1, 2)) - seeds.mean((0, 2, 3))).abs() / seeds.std((0, 2, 3))
    assert apart.max() < 0.2


def test_making_anchors_is_deterministic_and_leaves_the_network_as_it_was(
    patterns: Patterns,
) -> None:
    model = patterns.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(anchors_for(patterns, 40).inputs, anchors_for(patterns, 40).inputs)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_number_of_finished_inputs_is_reported(patterns: Patterns) -> None:
    seen: list[int] = []
    synthesise_anchors(
        patterns.model, HEAD, patterns.forget_images, ~FORGOTTEN,
        count=20, schedule=replace(DEFAULT.schedule, batch_size=4), done=seen.append,
    )  # fmt: skip
    assert seen == [8, 16, 20]


def test_the_input_of_a_batchnorm_has_its_running_statistics(patterns: Patterns) -> None:
    """They are those of all classes, which the images of one class do not have."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=None)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        model.train()(patterns.images)
        norm.running_mean += norm.running_var.sqrt()
    model.eval()
    seeds = patterns.forget_images
    anchors = synthesise_anchors(
        model, "4", seeds, ~FORGOTTEN, count=128, schedule=DEFAULT.schedule
    )
    synthetic, _ = synthesise_forget_inputs(
        model, anchors, seeds, FORGOTTEN, count=128, schedule=DEFAULT.schedule
    )

    def mismatch(inputs: Tensor) -> Tensor:
        mean = model[0](inputs).mean((0, 2, 3))
        return ((mean - norm.running_mean) ** 2 / norm.running_var).mean()

    assert mismatch(seeds) > 0.5
    assert mismatch(anchors.inputs) < 0.2 * mismatch(seeds)
    assert mismatch(synthetic) > 0.5 * mismatch(seeds)  # these are of one class again


def test_inputs_may_be_tokens_or_vectors() -> None:
    torch.manual_seed(0)
    for shape in ((5, 6), (6,)):
        model = nn.Sequential(nn.Linear(6, 8), nn.Flatten(), nn.LazyLinear(CLASSES)).eval()
        seeds = torch.randn(30, *shape)
        model(seeds)
        anchors = synthesise_anchors(
            model, "2", seeds, ~FORGOTTEN, count=16, schedule=DEFAULT.schedule
        )
        assert anchors.inputs.shape == (16, *shape)


def test_more_inputs_of_a_class_can_be_made_from_anchors(patterns: Patterns) -> None:
    few = patterns.forget_images[:3]
    inputs, logits = synthesise_forget_inputs(
        patterns.model, anchors_for(patterns), few, FORGOTTEN, count=150, schedule=DEFAULT.schedule
    )
    assert inputs.shape == (150, 2, 4, 4)
    assert (logits.argmax(dim=1) == GONE).float().mean() > 0.85
    with torch.no_grad():
        assert torch.allclose(logits, patterns.model(inputs), atol=1e-5)
    low, high = few.amin((0, 2, 3)), few.amax((0, 2, 3))
    channels_last = inputs.movedim(1, -1)
    assert bool(((channels_last >= low - 1e-4) & (channels_last <= high + 1e-4)).all())
    # They are not copies of the few images: most are nearer to another synthetic input.
    flat = inputs.flatten(1)
    among = torch.cdist(flat, flat).fill_diagonal_(torch.inf).amin(dim=1)
    assert (among < torch.cdist(flat, few.flatten(1)).amin(dim=1)).float().mean() > 0.5


def test_no_pass_takes_more_than_twice_the_batch_of_a_step(patterns: Patterns) -> None:
    sizes: list[int] = []
    handle = patterns.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    seeds, schedule = patterns.forget_images, replace(DEFAULT.schedule, batch_size=4)
    anchors = anchors_for(patterns, 20, schedule)
    synthesise_forget_inputs(patterns.model, anchors, seeds, FORGOTTEN, count=20, schedule=schedule)
    loss = anchor_loss_for(patterns, anchors, schedule)
    loss.forward(seeds[:4], *loss.sample(4))
    loss.drift()
    handle.remove()
    assert max(sizes) == 8


def test_statistics_are_of_channels_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network with its channels last gets the same anchors."""
    monkeypatch.setattr(MULTIPLIES_BFLOAT16, lambda device: False)
    torch.manual_seed(0)
    heads = [nn.Linear(3 * 4 * 2, CLASSES) for _ in range(2)]
    last, first = (nn.Sequential(nn.Flatten(), head).eval() for head in heads)
    seeds = torch.randn(30, 3, 4, 2) * torch.tensor([1.0, 5.0])
    with torch.no_grad():
        weight = heads[0].weight.view(CLASSES, 3, 4, 2).movedim(3, 1)
        heads[1].weight.copy_(weight.reshape(CLASSES, -1))
        heads[1].bias.copy_(heads[0].bias)
    found = [
        synthesise_anchors(
            model, "1", x, ~FORGOTTEN, count=16, schedule=DEFAULT.schedule, channels_last=at
        )
        for model, x, at in ((last, seeds, True), (first, seeds.movedim(3, 1), False))
    ]
    assert torch.allclose(found[0].inputs.movedim(3, 1), found[1].inputs, atol=1e-3)
