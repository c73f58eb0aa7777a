"""What a run will need, against what its parts are known to take."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pbu_cli.errors import PbuError
from pbu_cli.inputs import needs
from pbu_cli.inputs.needs import Cost, Needs, check_needs, measured
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.network import Network
from pbu_cli.settings import DEFAULT, FAST, Preprocessing


@pytest.fixture
def some() -> UnlearningInputs:
    """A small network with ten black images, of which nothing is loaded or decoded."""
    body = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten()]
    module = nn.Sequential(*body, nn.Linear(4, 5)).eval()
    network = Network(module, "own", None, 5, 3, None, "", "--arch")
    loaded: Any = SimpleNamespace(network=network, device=torch.device("cpu"))
    images: Any = SimpleNamespace(pixels=torch.zeros(10, 3, 8, 8, dtype=torch.uint8))
    trained = ["0.weight", "0.bias"]
    unit = Preprocessing((8, 8), (0.5,) * 3, (0.25,) * 3)
    return UnlearningInputs(
        loaded,
        unit,
        images,
        torch.ones(10).long(),
        torch.zeros(10, 5),
        128,
        trained,
        [],
        None,
        None,
    )


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that do not depend on how busy the machine is."""
    monkeypatch.setattr(needs, "measured", lambda inputs: Cost(0.01, 0.005, 1_000_000))


def test_the_cost_of_an_input_is_measured_and_changes_nothing(some: UnlearningInputs) -> None:
    module = some.loaded.network.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    found = measured(some)
    assert found.training > 0
    assert found.inversion > 0
    assert found.held > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_steps_anchors_and_the_fisher_diagonal_add_up(some: UnlearningInputs) -> None:
    cost = Cost(0.01, 0.005, 1_000_000)
    found = needs.needs(some, DEFAULT, cost, made=2048)
    steps, fisher, anchors = 300 * 128 * 0.01, 2 * 10 * 0.01, 20 * 2048 * 0.005
    assert found.seconds == pytest.approx(steps + fisher + anchors)
    fast = needs.needs(some, FAST, cost, made=0)
    assert fast.seconds == pytest.approx(100 * 64 * 0.01 + fisher)
    assert fast.of_anchors == 0
    assert found.more - found.of_anchors > 128 * 1_000_000


def test_the_features_of_mirrored_images_count(
    some: UnlearningInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet-50 of 500 images at 224 pixels took 5.1 GB where 3.8 were announced without them."""
    monkeypatch.setattr(needs, "bytes_held", lambda split_point, images: 1000 * images)
    split: Any = SimpleNamespace()
    some = replace(some, split_point=split)
    plain = replace(DEFAULT, schedule=replace(DEFAULT.schedule, mirror=0.0))
    cost = Cost(0.01, 0.005, 1_000_000)
    with_them, without = (needs.needs(some, each, cost, made=20) for each in (DEFAULT, plain))
    assert with_them.more - without.more == 4 * 10 * 1000
    assert with_them.of_mirrored == 4 * 10 * 1000


def test_mirrored_images_that_memory_does_not_hold_are_no_reason_to_refuse(
    some: UnlearningInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not join then."""
    monkeypatch.setattr(needs, "needs", lambda *_, **__: Needs(10e9, 1e9, 99, of_mirrored=7e9))
    monkeypatch.setattr(needs, "spare_memory", lambda device: 4e9)
    assert check_needs(some, DEFAULT, made=2048) is not None


def test_a_run_of_more_than_a_minute_is_announced(some: UnlearningInputs) -> None:
    found = check_needs(some, DEFAULT, made=2048)
    assert found is not None
    assert found.text.endswith("GB and 10 minutes (300 steps, 2,048 anchors)")
    short = replace(FAST, schedule=replace(FAST.schedule, steps=10))
    assert check_needs(some, short, made=0) is None


@pytest.mark.parametrize(
    ("of_anchors", "advice"), [(9e9, "--anchors 2048, or --fast"), (1e9, "--batch-size, or fewer")]
)
def test_a_run_that_memory_does_not_hold_is_refused(
    some: UnlearningInputs, monkeypatch: pytest.MonkeyPatch, of_anchors: float, advice: str
) -> None:
    monkeypatch.setattr(needs, "needs", lambda *_, **__: Needs(10e9, of_anchors, 99))
    monkeypatch.setattr(needs, "spare_memory", lambda device: 4e9)
    with pytest.raises(PbuError, match=rf"takes 10\.0 GB more.*4\.0 GB are free.*{advice}"):
        check_needs(some, DEFAULT, made=2048)
