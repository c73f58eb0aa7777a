"""The loop: what it promises about the model that it works on, and when it ends."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.data.preprocessing import batches, image_logits
from pbu_cli.errors import PbuError
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.models.frozen_backbone import extract, find_split_point, from_features
from pbu_cli.settings import DEFAULT, FORGOTTEN, Preprocessing, Schedule, Weights
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.loop import CHECK_EVERY, Progress, Trainable, unlearn
from pbu_cli.unlearning.objective import log_odds
from pbu_cli.unlearning.stopping import BACK_OFF_FACTOR

Trained = tuple[nn.Module, Tensor, Tensor]  # a network, images and labels
UNIT = Preprocessing((6, 6), (0.5,), (0.25,))
CLASSES = 4


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A small CNN with BatchNorm that tells apart four kinds of noisy images, and the images."""
    torch.manual_seed(0)
    patterns = torch.randint(0, 256, (CLASSES, 1, 6, 6)).float()
    labels = torch.arange(400) % CLASSES
    noise = 40 * torch.randn(400, 1, 6, 6)
    pixels = (patterns[labels] * 0.6 + 50 + noise).clamp(0, 255).to(torch.uint8)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, CLASSES),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(15):
        for x, y in batches(pixels, labels, UNIT, 50, torch.device("cpu")):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    model.eval()
    assert (image_logits(model, pixels, UNIT).argmax(1) == labels).float().mean() > 0.98
    return model, pixels, labels


def forget_set(model: nn.Module, pixels: Tensor, labels: Tensor, *classes: int) -> ForgetSet:
    chosen = torch.isin(labels, torch.tensor(classes))
    mask = torch.zeros(CLASSES, dtype=torch.bool)
    mask[list(classes)] = True
    logits = image_logits(model, pixels[chosen], UNIT)
    return ForgetSet(pixels[chosen], labels[chosen], mask, UNIT, logits)


def forgotten(
    trained: Trained,
    *classes: int,
    weights: Weights | None = None,
    schedule: Schedule | None = None,
) -> tuple[nn.Module, list[Progress]]:
    model, pixels, labels = trained
    model = copy.deepcopy(model)
    images = forget_set(model, pixels, labels, *classes)
    names = [name for name, _ in model.named_parameters() if not name.startswith(("0", "1"))]
    data = batches(images.pixels, images.labels, UNIT, 50, torch.device("cpu"))
    fisher = fisher_diagonal(model, data, parameters=names)
    head = [name for name in names if name.startswith("6")]
    run = unlearn(
        model, images, fisher, Trainable(names, head),
        weights=weights or Weights(), schedule=schedule or Schedule(),
    )  # fmt: skip
    return model, list(run)


def accuracies(
    model: nn.Module, pixels: Tensor, labels: Tensor, *classes: int
) -> tuple[float, float]:
    right = image_logits(model, pixels, UNIT).argmax(1) == labels
    gone = torch.isin(labels, torch.tensor(classes))
    return (
        100 * right[gone].float().mean().item(),
        100 * right[~gone].float().mean().item(),
    )


def test_the_class_is_forgotten_and_the_others_stay(trained: Trained) -> None:
    model, records = forgotten(trained, 2)
    a_df, a_dr = accuracies(model, *trained[1:], 2)
    assert a_df <= 1
    assert a_dr >= accuracies(*trained, 2)[1] - 1
    assert records[-1].decision.action == "stop"


def test_two_classes_are_forgotten_at_once(trained: Trained) -> None:
    model, _ = forgotten(trained, 0, 3)
    a_df, a_dr = accuracies(model, *trained[1:], 0, 3)
    assert a_df <= 1
    assert a_dr >= 98


def test_only_the_trained_parameters_move_and_no_buffer_does(trained: Trained) -> None:
    model, _ = forgotten(trained, 1)
    before = trained[0].state_dict()
    for name, value in model.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == name.startswith(("4", "6")), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_result_and_another_seed_does_not(trained: Trained) -> None:
    states = [
        forgotten(trained, 1, schedule=Schedule(seed=seed, steps=20))[0].state_dict()["6.weight"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("steps", [100, 1000])
def test_the_papers_objective_stops_by_itself_with_the_network_alive(
    trained: Trained, steps: int
) -> None:
    model, records = forgotten(trained, 2, weights=Weights(delta=0), schedule=Schedule(steps=steps))
    last = records[-1]
    assert last.decision.action == "stop"
    assert last.check.step < steps
    assert last.check.recognised <= FORGOTTEN
    assert accuracies(model, *trained[1:], 2)[1] > 90


def test_without_its_stopping_rule_the_papers_objective_destroys_the_network(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is why the rule exists; if this test fails, the tests of the rule show nothing."""
    monkeypatch.setattr("pbu_cli.unlearning.stopping.FORGOTTEN", -1)
    schedule = Schedule(steps=1000, most_drift=math.inf)
    model, _ = forgotten(trained, 2, weights=Weights(delta=0), schedule=schedule)
    assert accuracies(model, *trained[1:], 2)[1] < 80


def test_more_steps_of_the_bounded_objective_destroy_nothing(trained: Trained) -> None:
    model, _ = forgotten(trained, 2, schedule=Schedule(steps=1000))
    a_df, a_dr = accuracies(model, *trained[1:], 2)
    assert a_df <= 1
    assert a_dr >= accuracies(*trained, 2)[1] - 1


def drifting(
    trained: Trained,
) -> tuple[nn.Module, Iterator[Progress]]:
    """A run of the paper's objective on the head, which drifts until something stops it."""
    model = copy.deepcopy(trained[0])
    names = ["6.weight", "6.bias"]
    run = unlearn(
        model, forget_set(model, *trained[1:], 2), {}, Trainable(names, names),
        weights=Weights(beta=0, delta=0), schedule=Schedule(steps=1000),
    )  # fmt: skip
    return model, run


def test_restraint_keeps_the_class_from_being_refused_harder_than_asked(trained: Trained) -> None:
    goal = math.log(0.01 / 0.99)
    harder = []
    for restraint in (0.0, 1.0):
        schedule = replace(DEFAULT.schedule, tau=0.01, restraint=restraint)
        model, _ = forgotten(trained, 2, schedule=schedule)
        pixels, labels = trained[1:]
        odds = log_odds(image_logits(model, pixels[labels == 2], UNIT), torch.arange(CLASSES) == 2)
        harder.append((goal - odds).relu().mean().item())
    assert harder[0] > 1.3 * harder[1]


def test_backing_off_starts_over_from_the_trained_weights_more_slowly(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.unlearning.stopping.FORGOTTEN", -1)
    model, run = drifting(trained)
    records = []
    for record in run:
        records.append(record)
        if record.decision.action == "back off":
            assert record.check.drift > Schedule.most_drift
            assert torch.equal(model[6].weight, trained[0][6].weight)
            break
    again = next(run)
    assert again.learning_rate == pytest.approx(BACK_OFF_FACTOR * records[-1].learning_rate)
    assert again.check.drift < Schedule.most_drift


def test_giving_up_returns_to_the_newest_weights_within_the_limit(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.unlearning.stopping.FORGOTTEN", -1)
    monkeypatch.setattr("pbu_cli.unlearning.stopping.MAX_BACK_OFFS", 0)
    model, run = drifting(trained)
    sound = None
    for record in run:
        if record.decision.action == "give up":
            assert record.check.drift > Schedule.most_drift
            assert sound is not None
            assert torch.equal(model[6].weight, sound)
            return
        sound = model[6].weight.detach().clone()
    pytest.fail("it never gave up")


def test_features_in_place_of_images_give_the_same_weights(trained: Trained) -> None:
    names = ["4.weight", "4.bias", "6.weight", "6.bias"]
    states = []
    for cached in (False, True):
        model = copy.deepcopy(trained[0])
        images = forget_set(model, *trained[1:], 2)
        x = images.inputs(torch.arange(len(images)))
        split_point = find_split_point(model, names, x[:2]) if cached else None
        if split_point is not None:
            images = replace(images, features=extract(model, split_point, [x])[0])
        with from_features(model, split_point):
            for _ in unlearn(
                model, images, {}, Trainable(names, names[2:]),
                weights=Weights(beta=0), schedule=Schedule(steps=30),
            ):  # fmt: skip
                pass
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_checks_come_every_few_steps_and_at_the_end(trained: Trained) -> None:
    _, records = forgotten(trained, 2, schedule=Schedule(steps=12))
    assert [record.check.step for record in records] == [CHECK_EVERY, 2 * CHECK_EVERY, 12]


def test_a_loss_that_is_not_finite_is_an_error_and_restores_the_weights(trained: Trained) -> None:
    model, pixels, labels = copy.deepcopy(trained[0]), *trained[1:]
    before = copy.deepcopy(model.state_dict())
    run = unlearn(
        model, forget_set(model, pixels, labels, 2), {}, Trainable(["6.weight"]),
        weights=Weights(beta=0), schedule=Schedule(steps_to_goal=1e-36),
    )  # fmt: skip
    words = r"NaN or infinite at step [1-5], and with it 1 of 1 tensors, first 6\.weight"
    with pytest.raises(PbuError, match=words):
        list(run)
    assert torch.equal(model.state_dict()["6.weight"], before["6.weight"])


def test_progress_carries_the_alpha_that_acted(trained: Trained) -> None:
    """It never falls below its start, and here it rises until the class is forgotten."""
    model, records = forgotten(
        trained, 2, weights=Weights(alpha=0.01, delta=1.0), schedule=Schedule(steps=40)
    )
    alphas = [record.alpha for record in records]
    assert accuracies(model, *trained[1:], 2)[0] < 100
    assert min(alphas) >= 0.01 * (1 - 1e-6)
    assert max(alphas) <= Schedule.ceiling * 0.01 * (1 + 1e-6)
    assert alphas[0] == pytest.approx(0.01 * 1.1 ** (CHECK_EVERY - 1), rel=1e-5)


def test_the_last_alpha_is_above_its_start_where_the_class_was_hard_to_forget(
    trained: Trained,
) -> None:
    """So hard that the ceiling is reached, from where alpha cannot rise any further."""
    weights = Weights(alpha=1e-6, delta=100.0)
    _, records = forgotten(trained, 2, weights=weights, schedule=Schedule(steps=100))
    assert records[-1].check.recognised > FORGOTTEN
    assert records[-1].alpha == pytest.approx(Schedule.ceiling * 1e-6, rel=1e-5)


def test_alpha_starts_over_with_the_run(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbu_cli.unlearning.stopping.FORGOTTEN", -1)
    monkeypatch.setattr("pbu_cli.unlearning.step.FORGOTTEN", -1)  # so alpha rises at every step
    _, run = drifting(trained)
    for record in run:
        assert record.alpha == pytest.approx(1.1 ** (record.check.step - 1), rel=1e-5)
        if record.decision.action == "back off":
            break
    assert next(run).alpha == pytest.approx(1.1 ** (CHECK_EVERY - 1), rel=1e-5)


def test_one_image_is_enough_to_run(trained: Trained) -> None:
    model, pixels, labels = copy.deepcopy(trained[0]), *trained[1:]
    images = forget_set(model, pixels[labels == 2][:1], labels[labels == 2][:1], 2)
    names = ["6.weight", "6.bias"]
    run = unlearn(
        model, images, {}, Trainable(names, names),
        weights=Weights(beta=0), schedule=Schedule(),
    )  # fmt: skip
    assert list(run)[-1].check.recognised == 0
