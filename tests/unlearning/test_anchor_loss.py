"""What anchors add to a step, the row that they move, and a run without them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.errors import PbuError
from pbu_cli.models.features import read_head
from pbu_cli.runtime.cuda_graph import CudaGraphRunner
from pbu_cli.settings import DEFAULT
from pbu_cli.unlearning.anchor_loss import AnchorLoss, NoAnchors
from pbu_cli.unlearning.channel_statistics import total_variance
from pbu_cli.unlearning.class_row import target_offset
from pbu_cli.unlearning.loop import Trainable, unlearn
from pbu_cli.unlearning.model_inversion import synthesise_anchors
from pbu_cli.unlearning.objective import discriminant
from tests.unlearning.patterns import (
    CLASSES,
    FORGOTTEN,
    GONE,
    HEAD,
    Patterns,
    anchor_loss_for,
    anchors_for,
    forget_set_of,
)

NO_DISCRIMINANT = torch.zeros(16), torch.zeros(())
NO_FISHER = replace(DEFAULT.weights, beta=0.0)


def separation_loss(loss: AnchorLoss, forget: Tensor, anchor: Tensor) -> Tensor:
    """The separation loss of these features, with the discriminant fitted to them alone."""
    loss._recent = []
    return loss._separation_loss(forget, anchor, *loss._refitted(forget, anchor))


def test_at_the_trained_weights_the_anchors_have_not_drifted(patterns: Patterns) -> None:
    images = patterns.forget_images[:32]
    loss = anchor_loss_for(patterns, zeta=0.0)
    found = loss.forward(images, *loss.sample(len(images)))
    assert torch.allclose(found.logits, patterns.model(images), atol=1e-5)
    assert found.loss.item() == pytest.approx(0, abs=1e-5)
    assert found.drift.item() == pytest.approx(0, abs=1e-6)
    assert anchor_loss_for(patterns).drift() == pytest.approx(0, abs=1e-6)


def test_the_separation_loss_has_the_gradient_of_the_log_distance(patterns: Patterns) -> None:
    """Against autograd through the Mahalanobis distance itself, its covariance held constant."""
    anchors = anchors_for(patterns)
    features = patterns.features(patterns.forget_images[:32]).detach().requires_grad_()
    loss = anchor_loss_for(patterns, anchors, epsilon=0.0, zeta=1.0)
    fast = separation_loss(loss, features, anchors.features[:32])
    (found,) = torch.autograd.grad(fast, features)

    forget = features.detach().double().requires_grad_()
    anchor = anchors.features[:32].double()
    centred = [group - group.mean(0) for group in (forget.detach(), anchor)]
    pooled = torch.stack([group.T @ group / len(group) for group in centred]).mean(dim=0)
    pooled += 0.05 * pooled.diagonal().mean() * torch.eye(len(pooled), dtype=torch.float64)
    difference = forget.mean(0) - anchor.mean(0)
    distance = difference @ torch.linalg.inv(pooled) @ difference
    (expected,) = torch.autograd.grad(distance.log(), forget)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("apart", "pushed"), [(0.8, False), (1.2, True)])
@pytest.mark.parametrize("share", [0.9, 1e-9])
def test_features_that_are_near_enough_are_not_pushed(
    patterns: Patterns, apart: float, pushed: bool, share: float
) -> None:
    """Near enough is the largest of a share of the squared distance at theta*, of 2.5, and of the
    distance along what the retained rows read."""
    anchors = anchors_for(patterns)
    before = discriminant(anchors.forget_features, anchors.features)[1].item()
    rows = patterns.model[-1].weight.detach()[~FORGOTTEN]
    rows = rows - rows.mean(dim=0)
    read = rows.T @ torch.linalg.pinv(rows).T  # the projection onto the span of the rows
    of_read = discriminant(anchors.forget_features @ read, anchors.features @ read)[1].item()
    enough = max(2.5, share * before, of_read)
    torch.manual_seed(0)
    anchor = torch.randn(4000, 16)
    step = torch.zeros(16)
    step[0] = (1.05 * apart * enough) ** 0.5  # the covariance's diagonal is 1 and 5 % of that
    schedule = replace(DEFAULT.schedule, apart=share)
    loss = anchor_loss_for(patterns, anchors, schedule, epsilon=0.0)
    found = separation_loss(loss, anchor.roll(1, 0) + step, anchor)
    assert bool(found != 0) == pushed


def test_one_anchor_gives_a_finite_loss(patterns: Patterns) -> None:
    loss = anchor_loss_for(patterns, anchors_for(patterns, 1))
    assert loss.forward(patterns.forget_images[:8], *loss.sample(8)).loss.isfinite()


def test_features_further_out_than_the_class_was_are_pulled_back(patterns: Patterns) -> None:
    anchors = anchors_for(patterns)
    loss, forget = anchor_loss_for(patterns, anchors), patterns.features(patterns.forget_images)
    mean = anchors.features.mean(0)
    assert loss._distance_hinge(mean + 0.9 * (forget - mean)).item() == 0
    # At 3 times the distance its square is 9 times as large, minus the 1 that it may be.
    assert loss._distance_hinge(mean + 3 * (forget - mean)).item() == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize(
    ("scale", "expected"), [(1.0, 0.0), (0.8**0.5, 0.0), (0.5, 5 * (1 - 0.25 / 0.75))]
)
def test_a_class_that_is_drawn_together_is_spread_again(
    patterns: Patterns, scale: float, expected: float
) -> None:
    """Its variance may fall to three quarters of what it was."""
    features = patterns.features(patterns.forget_images)
    closer = features.mean(0) + scale * (features - features.mean(0))
    found = anchor_loss_for(patterns)._variance_hinge(closer)
    assert found.item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("size", [2, 4, 64])
def test_the_variance_of_small_batches_is_that_of_all_on_average(size: int) -> None:
    features = torch.randn(64000, 3, generator=torch.Generator().manual_seed(0))
    found = torch.stack([total_variance(batch) for batch in features.split(size)]).mean()
    assert found.item() == pytest.approx(3, rel=0.02)


def test_one_forget_image_has_no_variance_to_keep(patterns: Patterns) -> None:
    anchors = synthesise_anchors(
        patterns.model, HEAD, patterns.forget_images[:1], ~FORGOTTEN,
        count=20, schedule=DEFAULT.schedule,
    )  # fmt: skip
    loss = anchor_loss_for(patterns, anchors)
    assert loss._variance_hinge(anchors.forget_features).item() == 0


def test_the_discriminant_is_fitted_again_every_few_steps_and_after_a_restart(
    patterns: Patterns,
) -> None:
    loss, images = anchor_loss_for(patterns), patterns.forget_images[:8]
    due = []
    for _ in range(7):
        due.append(loss.refit_due)
        loss.record_features(*loss.forward(images, *loss.sample(8)).features)
    assert due == [True, False, False, False, False, True, False]
    loss.restart()
    assert loss.refit_due
    assert len(loss._recent) == 1


def test_the_row_is_moved_and_comes_back(patterns: Patterns) -> None:
    model, images, labels = patterns.model, patterns.images, patterns.labels
    loss, before = anchor_loss_for(patterns), model(images)
    loss.apply(before[labels == GONE])
    assert loss.changes == ["3.weight", "3.bias"]
    after = model(images)
    assert torch.equal(after[:, ~FORGOTTEN], before[:, ~FORGOTTEN])
    assert after[:, GONE].max() < before[labels == GONE].logsumexp(dim=1).min()
    loss.undo()
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("norm", ["none", "never called", "inside", "at the end"])
def test_the_row_is_put_against_the_mean_features_of_the_other_classes(
    patterns: Patterns, norm: str
) -> None:
    """With a BatchNorm the class's images have the target offset, and the other classes, equally
    many, a lower one. Without one, or if all are in the frozen backbone, the anchors have it too.
    """
    torch.manual_seed(0)
    images, labels = patterns.images, patterns.labels
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES)]
    if norm == "never called":
        layers[1].backbone = nn.BatchNorm1d(3)
    elif norm != "none":
        layers.insert({"inside": 1, "at the end": 2}[norm], nn.LazyBatchNorm1d(momentum=None))
    model, head = nn.Sequential(*layers), str(len(layers) - 1)
    with torch.no_grad():
        model.train()(images)  # with equally many images of every class
    model.eval()
    anchors = synthesise_anchors(
        model, head, images[labels == GONE], ~FORGOTTEN, count=100, schedule=DEFAULT.schedule
    )
    loss = AnchorLoss(model, head, anchors, FORGOTTEN, DEFAULT.weights, DEFAULT.schedule)
    features, logits = read_head(model, head, [images])
    others, own = features[labels != GONE].mean(0), features[labels == GONE].mean(0)
    at = torch.stack([others, anchors.features.mean(0), own])
    mean_logit = model[-1](at).mean(dim=1)
    forget_logits = logits[labels == GONE]
    loss.apply(forget_logits)
    offset = target_offset(forget_logits, FORGOTTEN, DEFAULT.schedule.goal(CLASSES))
    of_others, of_anchors, of_class = ((model[-1](at)[:, GONE] - mean_logit) / offset).tolist()
    assert of_class == pytest.approx(1, rel=0.05)
    if norm in ("none", "never called"):
        assert of_anchors == pytest.approx(1, rel=0.05)
    else:
        ratio = (others @ others + 1) / (own @ others + 1)
        assert of_others == pytest.approx(ratio.item(), rel=0.15)


@pytest.mark.parametrize("names", [["1.weight"], ["3.weight", "3.bias"]])
def test_a_loss_that_is_not_finite_restores_the_row_too(
    patterns: Patterns, names: list[str]
) -> None:
    model = patterns.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = unlearn(
        model, forget_set_of(patterns), {}, Trainable(names), weights=NO_FISHER,
        schedule=replace(DEFAULT.schedule, steps_to_goal=1e-36),
        anchor_loss=anchor_loss_for(patterns),
    )  # fmt: skip
    with pytest.raises(PbuError, match="NaN or infinite"):
        list(run)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_where_the_logits_have_forgotten_the_features_still_forget(patterns: Patterns) -> None:
    """A network that --fast wrote is past the goal already: its odds leave no excess."""
    patterns = replace(patterns, model=copy.deepcopy(patterns.model))
    with torch.no_grad():
        patterns.model.get_parameter("3.bias")[GONE] -= 100
    weight = patterns.model.get_parameter("1.weight")
    before = weight.clone()
    list(unlearn(
        patterns.model, forget_set_of(patterns), {}, Trainable(["1.weight"]), weights=NO_FISHER,
        schedule=replace(DEFAULT.schedule, steps=20), anchor_loss=anchor_loss_for(patterns),
    ))  # fmt: skip
    assert (weight - before).abs().max() > 1e-3


def test_the_papers_objective_moves_no_row_in_advance(patterns: Patterns) -> None:
    """The row alone would reach its goal, and the run would stop there."""
    model = patterns.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(unlearn(
        model, forget_set_of(patterns), {}, Trainable(["1.weight"]),
        weights=replace(NO_FISHER, delta=0.0), schedule=DEFAULT.schedule,
        anchor_loss=anchor_loss_for(patterns),
    ))  # fmt: skip
    after = dict(model.state_dict())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    model.load_state_dict(before)
    assert moved == {"1.weight"}


def test_with_anchors_the_features_forget_and_the_other_classes_stay(patterns: Patterns) -> None:
    model, images, labels = patterns.model, patterns.images, patterns.labels
    gone = labels == GONE
    before, _ = read_head(model, HEAD, [images])
    theta_star = {name: value.clone() for name, value in model.state_dict().items()}
    list(unlearn(
        model, forget_set_of(patterns), {}, Trainable(["1.weight", "1.bias"]), weights=NO_FISHER,
        schedule=DEFAULT.schedule, anchor_loss=anchor_loss_for(patterns),
    ))  # fmt: skip
    after, logits = read_head(model, HEAD, [images])
    model.load_state_dict(theta_star)
    predictions = logits.argmax(dim=1)
    assert (predictions[gone] == GONE).float().mean() <= 0.01
    assert (predictions[~gone] == labels[~gone]).float().mean() > 0.97
    distances = [discriminant(h[gone], h[~gone])[1].item() for h in (before, after)]
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize(("anchors", "recorded"), [(True, 16), (False, 20)])
def test_only_steps_that_fit_the_discriminant_are_not_recorded(
    patterns: Patterns, monkeypatch: pytest.MonkeyPatch, anchors: bool, recorded: int
) -> None:
    calls: list[int] = []

    class CountingRunner(CudaGraphRunner):
        def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
            assert all(isinstance(tensor, Tensor) for tensor in inputs)
            calls.append(1)
            return super().__call__(*inputs)

    monkeypatch.setattr("pbu_cli.unlearning.loop.CudaGraphRunner", CountingRunner)
    theta_star = {name: value.clone() for name, value in patterns.model.state_dict().items()}
    list(unlearn(
        patterns.model, forget_set_of(patterns), {}, Trainable(["1.weight"]), weights=NO_FISHER,
        schedule=replace(DEFAULT.schedule, steps=20, most_drift=1e9),
        anchor_loss=anchor_loss_for(patterns) if anchors else None,
    ))  # fmt: skip
    patterns.model.load_state_dict(theta_star)
    assert len(calls) == recorded


def public_interface(cls: type) -> dict[str, Any]:
    """The public names of a class, with the signature or the kind of each.

    A property without a setter and a constant look the same to whoever reads them.
    """
    public = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    return {
        name: inspect.signature(value) if inspect.isfunction(value) else "read"
        for name, value in public.items()
    }


def test_no_anchors_has_the_interface_of_the_anchor_loss() -> None:
    assert public_interface(NoAnchors) == public_interface(AnchorLoss)


def test_no_anchors_adds_nothing_and_moves_nothing(patterns: Patterns) -> None:
    images, model = patterns.forget_images[:8], patterns.model
    none = NoAnchors(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    none.apply(model(images))
    found = none.forward(images, *none.sample(8))
    none.record_features(*found.features)
    none.undo()
    none.restart()
    assert torch.equal(found.logits, model(images))
    assert found.loss == 0
    assert none.judged_drift(torch.tensor(0.3), found.drift) == torch.tensor(0.3)
    assert none.drift() is None
    assert none.changes == []
    assert not none.refit_due
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
