"""Backward goes no further than it has to, and another computation than the planned is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.errors import PbuError
from tests.fisher.fisher_oracle import empirical
from tests.fisher.networks import images, small
from tests.fisher.unusual_modules import Do, Net


class Wall(torch.autograd.Function):
    """The identity, which backward must not reach."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise AssertionError("backward went below the first parameter")


def test_backward_stops_at_the_first_parameter() -> None:
    model = small()
    model.layer3.register_forward_pre_hook(lambda module, args: (Wall.apply(*args),))
    names = [name for name, _ in model.named_parameters() if name.startswith(("layer3", "fc"))]
    empirical(model, images(32), parameters=names)
    with pytest.raises(AssertionError, match="below"):
        empirical(model, images(32), parameters=["conv1.weight"])


@pytest.mark.parametrize("swap", [True, False])
def test_a_forward_pass_that_changes_is_refused(swap: bool) -> None:
    """Two layers that change places, or one that is left out, for large batches."""

    def moody(self: Any, x: Tensor) -> Any:
        if len(x) < 3:
            return self.b(self.a(x))
        return self.a(self.b(x)) if swap else self.a(x)

    torch.manual_seed(0)
    model = Net(Do(moody, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))).double()
    with pytest.raises(PbuError, match="the same for all images"):
        empirical(model, images(6))
