"""Hooks are removed and flags restored in every case; what is captured is what the module saw."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.models.hooks import (
    averaged,
    capture_input,
    capture_output,
    forward_hooks,
    gradients_for,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_removed_even_if_the_model_raises(fails: bool) -> None:
    model = network()
    if fails:
        model.append(Failing())
    try:
        with capture_input(model, "2"), capture_output(model, "0"):
            assert hooks_of(model) == 2
            model(torch.ones(1, 3))
        assert not fails
    except ZeroDivisionError:
        assert fails
    assert hooks_of(model) == 0


def test_no_hook_is_left_if_a_later_one_cannot_be_registered() -> None:
    model = network()
    pairs: Any = [(model[0], print), (None, print)]
    with pytest.raises(AttributeError), forward_hooks(inputs=pairs):
        pass
    assert hooks_of(model) == 0


def test_hooks_see_input_and_output_and_change_neither() -> None:
    model, x = network(), torch.randn(2, 3)
    plain = model(x)
    inputs, outputs = list[Any](), list[Any]()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append((module, args, kwargs))

    def after(module: nn.Module, output: Any) -> None:
        outputs.append((module, output))

    with forward_hooks(inputs=[(model[0], before)], outputs=[(model[2], after)]):
        assert torch.equal(model(x), plain)
        model[0](input=x)
    assert [(module, kwargs.keys()) for module, _, kwargs in inputs] == [
        (model[0], set()), (model[0], {"input"}),
    ]  # fmt: skip
    ((module, output),) = outputs
    assert module is model[2]
    assert torch.equal(output, plain)


def test_captured_input_is_what_enters_the_module_and_carries_gradients() -> None:
    model, x = network(), torch.randn(2, 3)
    with capture_input(model, "2") as captured:
        logits = model(x)
    (features,) = captured
    assert torch.equal(model[2](features), logits)
    features.sum().backward()
    assert model[0].weight.grad is not None


def test_captured_output_is_not_changed_by_a_layer_that_works_in_place() -> None:
    model, x = network(), torch.randn(5, 3)
    expected = model[0](x).clone()
    with capture_output(model, "0") as captured:
        model(x)
    assert torch.equal(captured[0], expected)
    assert bool((expected < 0).any())


def test_maps_tokens_and_vectors_are_averaged_into_new_memory() -> None:
    maps = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(averaged(maps, 1), maps.mean((2, 3)))
    assert averaged(maps, 8).shape == (2, 3 * 4 * 6)
    torch.testing.assert_close(
        averaged(maps, 2)[:, :2], maps[:, 0, :2].unflatten(2, (2, 3)).mean((1, 3))
    )
    tokens = torch.randn(2, 5, 3)
    torch.testing.assert_close(averaged(tokens, 1), tokens.mean(1))
    vectors = torch.randn(2, 3)
    assert torch.equal(averaged(vectors, 1), vectors)
    assert averaged(vectors, 1).data_ptr() != vectors.data_ptr()


def test_only_the_chosen_parameters_get_gradients_and_flags_are_restored_after_an_error() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    found: list[str] = []
    with suppress(ZeroDivisionError), gradients_for(model, [model.get_parameter("0.bias")]):
        found = [name for name, p in model.named_parameters() if p.requires_grad]
        raise ZeroDivisionError
    assert found == ["0.bias"]
    assert [parameter.requires_grad for parameter in model.parameters()] == before
