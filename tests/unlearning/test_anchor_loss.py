"""Anchors: what they are made of, and what they add to a step."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.errors import PbuError
from pbu_cli.models.features import read_head
from pbu_cli.settings import DEEP, Preprocessing, Schedule
from pbu_cli.unlearning.anchor_loss import AnchorLoss, _scatter
from pbu_cli.unlearning.class_row import level
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.loop import unlearn
from pbu_cli.unlearning.model_inversion import (
    Anchors,
    _mismatches,
    shorter,
    synthesise_anchors,
    synthesise_forget_inputs,
)
from pbu_cli.unlearning.objective import discriminant

CLASSES, GONE = 4, 2
FORGOTTEN = torch.arange(CLASSES) == GONE
UNFITTED = torch.zeros(16), torch.zeros(())
HEAD = "3"


@pytest.fixture(scope="module")
def prepared() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that tells four noisy patterns apart, the images as it takes them, labels."""
    torch.manual_seed(0)
    labels = torch.arange(400) % CLASSES
    images = torch.randn(CLASSES, 2, 4, 4)[labels] + 0.7 * torch.randn(400, 2, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval(), images, labels


def made(prepared: tuple[nn.Module, Tensor, Tensor], count: int = 200) -> Anchors:
    model, images, labels = prepared
    starts = images[labels == GONE]
    return synthesise_anchors(model, HEAD, starts, ~FORGOTTEN, count=count, schedule=DEEP.schedule)


def test_anchors_are_of_the_classes_that_stay(prepared):
    anchors = made(prepared)
    assert anchors.inputs.shape == (200, 2, 4, 4)
    answers = anchors.answers.argmax(dim=1)
    assert (answers != GONE).float().mean() > 0.95
    assert set(answers.tolist()) >= set(range(CLASSES)) - {GONE}


def test_multiplying_in_bfloat16_moves_no_anchor_to_another_class(prepared, monkeypatch):
    taken = []
    for native in (True, False):
        monkeypatch.setattr(
            "pbu_cli.unlearning.model_inversion.multiplies_bfloat16", lambda device, n=native: n
        )
        taken.append(made(prepared))
    short, full = taken
    same = short.answers.argmax(dim=1) == full.answers.argmax(dim=1)
    assert same.float().mean() > 0.95
    assert not torch.equal(short.inputs, full.inputs)  # or nothing was multiplied in bfloat16
    assert torch.allclose(short.answers, prepared[0](short.inputs), atol=1e-5)


def test_a_network_that_insists_on_float32_is_not_asked_for_less(monkeypatch):
    class Insists(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            (product,) = x @ x.mT
            assert product.dtype == torch.float32
            return product

    monkeypatch.setattr(
        "pbu_cli.unlearning.model_inversion.multiplies_bfloat16", lambda device: True
    )
    x = torch.ones(1, 2, 2)
    with shorter(Insists(), x):
        Insists()(x)
    with shorter(nn.Linear(2, 2), x):
        assert nn.Linear(2, 2)(x).dtype == torch.bfloat16


def test_answers_and_features_are_those_of_the_trained_network(prepared):
    anchors, model = made(prepared), prepared[0]
    with torch.no_grad():
        assert torch.allclose(anchors.answers, model(anchors.inputs), atol=1e-5)
        assert torch.allclose(anchors.features, model[:3](anchors.inputs), atol=1e-5)
        starts = prepared[1][prepared[2] == GONE]
        assert torch.allclose(anchors.opposite, model[:3](starts), atol=1e-5)


def test_anchors_keep_the_range_and_the_statistics_of_what_they_start_from(prepared):
    anchors, starts = made(prepared), prepared[1][prepared[2] == GONE]
    low, high = starts.amin((0, 2, 3)), starts.amax((0, 2, 3))
    inputs = anchors.inputs.movedim(1, -1)
    assert bool(((inputs >= low - 1e-4) & (inputs <= high + 1e-4)).all())
    apart = (inputs.mean((0, 1, 2)) - starts.mean((0, 2, 3))).abs() / starts.std((0, 2, 3))
    assert apart.max() < 0.2


def test_making_them_is_deterministic_and_leaves_the_network_as_it_was(prepared):
    model = prepared[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(made(prepared, 40).inputs, made(prepared, 40).inputs)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_enters_a_batchnorm_is_as_its_statistics_have_it(prepared):
    """Those of all classes, which the images of one have not."""
    _, images, labels = prepared
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=None)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    with torch.no_grad():
        model.train()(images)
        norm.running_mean += norm.running_var.sqrt()
    model.eval()
    starts = images[labels == GONE]
    anchors = synthesise_anchors(model, "4", starts, ~FORGOTTEN, count=128, schedule=DEEP.schedule)
    imagined, _ = synthesise_forget_inputs(
        model, anchors, starts, FORGOTTEN, count=128, schedule=DEEP.schedule
    )
    apart = {
        name: (
            (model[0](inputs).mean((0, 2, 3)) - norm.running_mean) ** 2 / norm.running_var
        ).mean()
        for name, inputs in {
            "at first": starts,
            "anchors": anchors.inputs,
            "imagined": imagined,
        }.items()
    }
    assert apart["at first"] > 0.5
    assert apart["anchors"] < 0.2 * apart["at first"]
    assert apart["imagined"] > 0.5 * apart["at first"]  # they are of one class again


def test_what_has_a_batchnorms_statistics_is_no_mismatch_whatever_its_epsilon():
    """A channel of no more variance than the epsilon counts most."""
    norm = nn.BatchNorm1d(2, eps=1e-3, momentum=None)
    x = torch.randn(4000, 2) * torch.tensor([0.03, 2.0])
    norm.train()(x)
    with _mismatches([norm.eval()]) as heard:
        norm(x)
    assert heard[0].item() == pytest.approx(0, abs=1e-6)


def test_networks_of_tokens_and_of_vectors_will_do():
    torch.manual_seed(0)
    for shape in ((5, 6), (6,)):
        model = nn.Sequential(nn.Linear(6, 8), nn.Flatten(), nn.LazyLinear(CLASSES)).eval()
        starts = torch.randn(30, *shape)
        model(starts)
        anchors = synthesise_anchors(
            model, "2", starts, ~FORGOTTEN, count=16, schedule=DEEP.schedule
        )
        assert anchors.inputs.shape == (16, *shape)


def test_more_of_a_class_can_be_made_from_its_anchors(prepared):
    model, images, labels = prepared
    few = images[labels == GONE][:3]
    inputs, answers = synthesise_forget_inputs(
        model, made(prepared), few, FORGOTTEN, count=150, schedule=DEEP.schedule
    )
    assert inputs.shape == (150, 2, 4, 4)
    assert (answers.argmax(dim=1) == GONE).float().mean() > 0.85
    with torch.no_grad():
        assert torch.allclose(answers, model(inputs), atol=1e-5)
    low, high = few.amin((0, 2, 3)), few.amax((0, 2, 3))
    channels_last = inputs.movedim(1, -1)
    assert bool(((channels_last >= low - 1e-4) & (channels_last <= high + 1e-4)).all())
    # Not the few images over again: most are nearer to another of the made ones than to those.
    flat = inputs.flatten(1)
    among = torch.cdist(flat, flat).fill_diagonal_(torch.inf).amin(dim=1)
    assert (among < torch.cdist(flat, few.flatten(1)).amin(dim=1)).float().mean() > 0.5


def anchor_loss(
    prepared: tuple[nn.Module, Tensor, Tensor], schedule: Schedule = DEEP.schedule, **weights: float
) -> AnchorLoss:
    chosen = replace(DEEP.weights, **weights)
    return AnchorLoss(prepared[0], HEAD, made(prepared), FORGOTTEN, chosen, schedule)


def test_at_the_trained_weights_the_anchors_have_not_drifted(prepared):
    images = prepared[1][prepared[2] == GONE][:32]
    meeting = anchor_loss(prepared, zeta=0.0)
    answers, loss, drift, *_ = meeting.meet(images, *meeting.draw(len(images)))
    assert torch.allclose(answers, prepared[0](images), atol=1e-5)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert drift.item() == pytest.approx(0, abs=1e-6)
    assert anchor_loss(prepared).drift() == pytest.approx(0, abs=1e-6)


def test_the_pull_is_the_gradient_of_the_log_distance(prepared):
    """Against autograd through the Mahalanobis distance itself, its covariance held constant."""
    model, images, labels = prepared
    anchors = made(prepared)
    forget = images[labels == GONE][:32]
    features = model[:3](forget).detach().requires_grad_()

    meeting = anchor_loss(prepared, epsilon=0.0, zeta=1.0)
    meeting._recent = []  # of this batch alone
    theirs = anchors.features[:32]
    pull = meeting._pull(features, theirs, *UNFITTED)
    (found,) = torch.autograd.grad(pull, features)

    ours = features.detach().double().requires_grad_()
    theirs = theirs.double()
    centred = [group - group.mean(0) for group in (ours.detach(), theirs)]
    pooled = sum(group.T @ group / len(group) for group in centred) / 2
    pooled += 0.05 * pooled.diagonal().mean() * torch.eye(len(pooled), dtype=torch.float64)
    difference = ours.mean(0) - theirs.mean(0)
    distance = difference @ torch.linalg.inv(pooled) @ difference
    (wanted,) = torch.autograd.grad(distance.log(), ours)
    assert torch.allclose(found.double(), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("apart", "pushed"), [(0.9, False), (1.1, True)])
@pytest.mark.parametrize("share", [0.5, 1e-9])
def test_what_is_near_enough_is_not_pushed(prepared, apart, pushed, share):
    """A share of the squared distance at theta*, but no less than 2.5."""
    anchors = made(prepared)
    before = discriminant(anchors.opposite, anchors.features)[1].item()
    enough = max(2.5, share * before)
    assert (enough > 2.5) == (share == 0.5)
    torch.manual_seed(0)
    theirs = torch.randn(4000, 16)
    step = torch.zeros(16)
    step[0] = (1.05 * apart * enough) ** 0.5  # the covariance's diagonal is 1 and 5 % of that
    meeting = anchor_loss(prepared, replace(DEEP.schedule, apart=share), epsilon=0.0)
    meeting._recent = []
    found = meeting._pull(theirs.roll(1, 0) + step, theirs, *UNFITTED)
    assert bool(found != 0) == pushed


def test_one_anchor_gives_a_loss_that_is_finite(prepared):
    model, images, labels = prepared
    meeting = AnchorLoss(model, HEAD, made(prepared, 1), FORGOTTEN, DEEP.weights, DEEP.schedule)
    assert meeting.meet(images[labels == GONE][:8], *meeting.draw(8))[1].isfinite()


def test_no_pass_is_of_more_than_twice_the_batch_of_a_step(prepared):
    seen: list[int] = []
    model, images, labels = prepared
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    starts, schedule = images[labels == GONE], replace(DEEP.schedule, batch_size=4)
    anchors = synthesise_anchors(model, HEAD, starts, ~FORGOTTEN, count=20, schedule=schedule)
    synthesise_forget_inputs(model, anchors, starts, FORGOTTEN, count=20, schedule=schedule)
    meeting = AnchorLoss(model, HEAD, anchors, FORGOTTEN, DEEP.weights, schedule)
    meeting.meet(starts[:4], *meeting.draw(4))
    meeting.drift()
    handle.remove()
    assert max(seen) == 8


def test_statistics_are_of_channels_wherever_they_stand(monkeypatch):
    """A network on maps with the channels last makes of them what the same one makes of others."""
    monkeypatch.setattr(
        "pbu_cli.unlearning.model_inversion.multiplies_bfloat16", lambda device: False
    )
    torch.manual_seed(0)
    last = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 2, CLASSES)).eval()
    first = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 2, CLASSES)).eval()
    starts = torch.randn(30, 3, 4, 2) * torch.tensor([1.0, 5.0])
    with torch.no_grad():
        weight = last[1].weight.view(CLASSES, 3, 4, 2).movedim(3, 1)
        first[1].weight.copy_(weight.reshape(CLASSES, -1))
        first[1].bias.copy_(last[1].bias)
    found = [
        synthesise_anchors(
            model, "1", x, ~FORGOTTEN, count=16, schedule=DEEP.schedule, channels_last=at
        )
        for model, x, at in ((last, starts, True), (first, starts.movedim(3, 1), False))
    ]
    assert torch.allclose(found[0].inputs.movedim(3, 1), found[1].inputs, atol=1e-3)


def test_what_goes_further_out_than_the_class_was_is_pulled_back(prepared):
    model, images, labels = prepared
    meeting, forget = anchor_loss(prepared), model[:3](images[labels == GONE])
    middle = made(prepared).features.mean(0)
    assert meeting._outside(middle + 0.9 * (forget - middle)).item() == 0
    # At 3 times the distance its square is 9 times as much, less the 1 it may be.
    assert meeting._outside(middle + 3 * (forget - middle)).item() == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize(
    ("scale", "loss"), [(1.0, 0.0), (0.8**0.5, 0.0), (0.5, 5 * (1 - 0.25 / 0.75))]
)
def test_a_class_that_draws_together_is_spread_again(prepared, scale, loss):
    """Its scatter, in squares, may be three quarters of what it was."""
    model, images, labels = prepared
    features = model[:3](images[labels == GONE])
    closer = features.mean(0) + scale * (features - features.mean(0))
    assert anchor_loss(prepared)._gathered(closer).item() == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize("size", [2, 4, 64])
def test_the_scatter_of_a_small_batch_is_that_of_all_on_average(size):
    features = torch.randn(64000, 3, generator=torch.Generator().manual_seed(0))
    found = torch.stack([_scatter(batch) for batch in features.split(size)]).mean()
    assert found.item() == pytest.approx(3, rel=0.02)


def test_one_forget_image_has_no_scatter_to_keep(prepared):
    model, images, labels = prepared
    one = images[labels == GONE][:1]
    anchors = synthesise_anchors(model, HEAD, one, ~FORGOTTEN, count=20, schedule=DEEP.schedule)
    meeting = AnchorLoss(model, HEAD, anchors, FORGOTTEN, DEEP.weights, DEEP.schedule)
    assert meeting._gathered(anchors.opposite).item() == 0


def test_the_row_is_withdrawn_and_comes_back(prepared):
    model, images, labels = prepared
    meeting, before = anchor_loss(prepared), model(images)
    meeting.apply(before[labels == GONE])
    assert meeting.changes == ["3.weight", "3.bias"]
    after = model(images)
    assert torch.equal(after[:, ~FORGOTTEN], before[:, ~FORGOTTEN])
    assert after[:, GONE].max() < before[labels == GONE].logsumexp(dim=1).min()
    meeting.undo()
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("norm", ["none", "never met", "inside", "at the end"])
def test_the_row_is_put_against_the_mean_features_of_the_others(prepared, norm):
    """As BatchNorm tells them, classes being equally many, so that the class's images are at the
    level; where none is met, as where they all are in the frozen trunk, so that anchors are too."""
    torch.manual_seed(0)
    images, labels = prepared[1:]
    layers = [nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES)]
    if norm == "never met":
        layers[1].trunk = nn.BatchNorm1d(3)
    elif norm != "none":
        layers.insert({"inside": 1, "at the end": 2}[norm], nn.LazyBatchNorm1d(momentum=None))
    model, last = nn.Sequential(*layers), str(len(layers) - 1)
    with torch.no_grad():
        model.train()(images)  # a class as often as another
    model.eval()
    gone = images[labels == GONE]
    anchors = synthesise_anchors(model, last, gone, ~FORGOTTEN, count=100, schedule=DEEP.schedule)
    meeting = AnchorLoss(model, last, anchors, FORGOTTEN, DEEP.weights, DEEP.schedule)
    features, answers = read_head(model, last, [images])
    others, own = features[labels != GONE].mean(0), features[labels == GONE].mean(0)
    goal, theirs = answers[labels == GONE], anchors.features.mean(0)
    at = torch.stack([others, theirs, own])
    middle = model[-1](at).mean(dim=1)
    meeting.apply(goal)
    low = (model[-1](at)[:, GONE] - middle) / level(goal, FORGOTTEN, DEEP.schedule.tau)
    low = low.tolist()
    assert low[2] == pytest.approx(1, rel=0.05)
    if norm in ("none", "never met"):
        assert low[1] == pytest.approx(1, rel=0.05)
    else:
        ratio = (others @ others + 1) / (own @ others + 1)
        assert low[0] == pytest.approx(ratio.item(), rel=0.15)


def forget_set(prepared: tuple[nn.Module, Tensor, Tensor]) -> ForgetSet:
    """The images of the class as features, which is all that the loop asks for."""
    model, images, labels = prepared
    gone = labels == GONE
    pixels = torch.zeros(int(gone.sum()), 2, 4, 4, dtype=torch.uint8)
    unit = Preprocessing((4, 4), (0.0,) * 2, (1.0,) * 2)
    answers = model(images[gone]).detach()
    return ForgetSet(pixels, labels[gone], FORGOTTEN, unit, answers, images[gone])


@pytest.mark.parametrize("trained", [["1.weight"], ["3.weight", "3.bias"]])
def test_a_loss_that_is_not_finite_restores_the_row_too(prepared, trained):
    model = prepared[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PbuError, match="NaN or infinite"):
        list(unlearn(
            model, forget_set(prepared), {}, trained=trained, head=[],
            weights=replace(DEEP.weights, beta=0.0), anchor_loss=anchor_loss(prepared),
            schedule=replace(DEEP.schedule, steps_to_goal=1e-36),
        ))  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_where_the_answers_have_forgotten_the_features_still_do(prepared):
    """What --fast wrote is past the goal already: its odds leave nothing to close."""
    model = copy.deepcopy(prepared[0])
    with torch.no_grad():
        model[3].bias[GONE] -= 100
    before = model[1].weight.clone()
    images = forget_set((model, *prepared[1:]))
    meeting = AnchorLoss(model, HEAD, made(prepared), FORGOTTEN, DEEP.weights, DEEP.schedule)
    list(unlearn(
        model, images, {}, trained=["1.weight"], head=[], anchor_loss=meeting,
        weights=replace(DEEP.weights, beta=0.0), schedule=replace(DEEP.schedule, steps=20),
    ))  # fmt: skip
    assert (model[1].weight - before).abs().max() > 1e-3


def test_the_papers_objective_moves_no_row_in_advance(prepared):
    """The row alone would reach it, and the run would stop there."""
    model = prepared[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in unlearn(
        model, forget_set(prepared), {}, trained=["1.weight"], head=[], anchor_loss=anchor_loss(prepared),
        weights=replace(DEEP.weights, beta=0.0, delta=0.0), schedule=DEEP.schedule,
    ):  # fmt: skip
        pass
    after = dict(model.state_dict())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    model.load_state_dict(before)
    assert moved == {"1.weight"}


def test_with_them_the_features_forget_and_the_other_classes_stay(prepared):
    model, images, labels = prepared
    gone = labels == GONE
    before, logits = read_head(model, HEAD, [images])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in unlearn(
        model, forget_set(prepared), {}, trained=["1.weight", "1.bias"], head=[],
        weights=replace(DEEP.weights, beta=0.0), schedule=DEEP.schedule, anchor_loss=anchor_loss(prepared),
    ):  # fmt: skip
        pass
    after, logits = read_head(model, HEAD, [images])
    model.load_state_dict(weights)
    answers = logits.argmax(dim=1)
    assert (answers[gone] == GONE).float().mean() <= 0.01
    assert (answers[~gone] == labels[~gone]).float().mean() > 0.97
    distances = [discriminant(h[gone], h[~gone])[1].item() for h in (before, after)]
    assert distances[1] < 0.5 * distances[0]
