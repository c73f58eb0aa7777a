"""The one batched forward loop: same results for any batches, hooks and memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.models.hooks import capture_output
from pbu_cli.models.inference import predict


class Limited(nn.Module):
    """Its memory holds `most` inputs; where it fails, the first layer has been called already."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
        self.most = most
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"{len(x)} are too many")
        self.sizes.append(len(x))
        return self.second(z)


X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()


def test_logits_are_float32_in_order_without_gradients() -> None:
    model = Limited(20)
    found = predict(model, X.split(6))
    torch.testing.assert_close(found.logits, model(X).float())
    assert found.logits.dtype == torch.float32
    assert not found.logits.requires_grad
    assert (found.captured, found.other_counts) == ({}, {})
    assert model.sizes[:-1] == [6, 6, 6, 2]


def test_batches_are_made_one_at_a_time() -> None:
    model, made = Limited(20), []

    def batches() -> Iterator[Any]:
        for number, batch in enumerate(X.split(5)):
            assert len(model.sizes) == number
            made.append(number)
            yield batch

    predict(model, batches())
    assert made == [0, 1, 2, 3]


@pytest.mark.parametrize("most", [20, 7, 1])
def test_a_failed_pass_leaves_nothing_behind_in_what_was_captured(most: int) -> None:
    model = Limited(most)
    with capture_output(model, "first") as captured:
        found = predict(model, X.split(10), captured={"features": captured})
        assert captured == []
    assert max(model.sizes) <= most
    torch.testing.assert_close(found.captured["features"], model.first(X))
    torch.testing.assert_close(found.logits, model.second(model.first(X)).float())


def test_a_single_input_that_does_not_fit_is_an_error_and_empties_the_lists() -> None:
    model = Limited(0)
    with (
        capture_output(model, "first") as captured,
        pytest.raises(torch.OutOfMemoryError, match="1 are too many"),
    ):
        predict(model, [X], captured={"features": captured})
    assert captured == []


def test_what_was_captured_before_is_not_taken_for_a_result() -> None:
    model = Limited(20)
    with capture_output(model, "first") as captured:
        model(X)
        found = predict(model, [X], captured={"features": captured})
    assert len(found.captured["features"]) == 20


class Uneven(nn.Module):
    """Calls a layer as often as the batch has inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(x) for _ in x]).mean(0)


def test_names_that_do_not_capture_once_in_every_pass_are_counted() -> None:
    model, x = Uneven(), torch.randn(6, 3)
    with capture_output(model, "layer") as layer, capture_output(model, "unused") as unused:
        found = predict(model, [x[:1], x[1:4], x[4:]], captured={"layer": layer, "unused": unused})
    assert found.captured.keys() == {"layer"}
    assert len(found.captured["layer"]) == 1 + 3 * 3 + 2 * 2
    assert found.other_counts == {"layer": 3, "unused": 0}


def test_results_go_to_the_device_that_is_asked_for() -> None:
    model = Limited(20)
    with capture_output(model, "first") as captured:
        found = predict(model, [X], captured={"features": captured}, device="meta")
    assert found.logits.is_meta
    assert found.captured["features"].is_meta
