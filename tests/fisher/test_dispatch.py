"""Each parameter gets the fastest strategy that is right; a model without gradients is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from pbu_cli.errors import PbuError
from pbu_cli.fisher.dispatch import PER_IMAGE, UNUSED, VIA_AUTOGRAD
from tests.fisher.fisher_oracle import check, empirical, randomised, strategies_of
from tests.fisher.networks import images
from tests.fisher.unusual_modules import UNUSUAL_USES, Do, Net

STRATEGIES = {
    "shared module": {"body.conv.weight": VIA_AUTOGRAD, "stem.weight": "conv"},
    "used inside and outside": {"body.conv.weight": VIA_AUTOGRAD, "body.conv.bias": "conv"},
    "used unseen": {"body.conv.weight": PER_IMAGE, "body.conv.bias": "conv"},
    "unused": {"body.idle.weight": UNUSED, "body.bare": UNUSED, "head.bias": "linear"},
    "mha": {"body.mha.in_proj_weight": "linear", "body.mha.out_proj.weight": "linear"},
    "mha cross": {"body.mha.in_proj_weight": VIA_AUTOGRAD, "body.mha.out_proj.weight": "linear"},
    "class token": {"body.token": "expand", "body.position": "shift"},
    "windows": {"body.conv.weight": "conv", "body.norm.weight": "group norm"},
    "outer and inner": {"body.lin.weight": "linear"},
    "image by image": {"body.conv.weight": PER_IMAGE},
    "transposed": {"body.weight": PER_IMAGE, "body.bias": PER_IMAGE},
    "matmul": {"body.p": "matmul", "stem.weight": "conv"},
    "addcmul": {"body.p": "scale and shift", "body.q": "scale and shift"},
    "attention with a bias": {"body.bias": "expand"},
    "attention with a bias for its windows": {"body.bias": "expand"},
    "attention to one key": {"body.q.weight": "linear", "body.q.bias": "linear"},
    "batch norm before tokens": {"body.bn.weight": "batch norm", "body.conv.weight": "conv"},
    "weight norm": {"body.parametrizations.weight.original0": VIA_AUTOGRAD},
    "gate": {"body.a.weight": "conv", "body.b": "scale"},
}


@pytest.mark.parametrize("use", STRATEGIES)
def test_strategy(use: str) -> None:
    torch.manual_seed(0)
    found = strategies_of(randomised(Net(UNUSUAL_USES[use]())), images(6))
    assert {name: found[name] for name in STRATEGIES[use]} == STRATEGIES[use]


def test_checkpointed_layers_go_image_by_image() -> None:
    torch.manual_seed(0)
    model = randomised(models.DenseNet(4, (2, 2), 4, num_classes=4, memory_efficient=True))
    check(model, images(32))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch statistics": (
        lambda: Net(nn.BatchNorm2d(4, track_running_stats=False)),
        "other images of the batch",
    ),
    "randomness": (lambda: Net(Do(lambda self, x: F.dropout(x, 0.5))), "from call to call"),
    "no logits": (lambda: Do(lambda self, x: (x, x)), "got tuple"),
    "a map of logits": (lambda: nn.Conv2d(3, 4, 1), r"got shape \(2, 4, 6, 6\)"),
    "NaN": (lambda: Net(Do(lambda self, x: x * self.p, p=torch.tensor(torch.nan))), "not finite"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused(why: str) -> None:
    make, message = REFUSED[why]
    with pytest.raises(PbuError, match=message):
        empirical(make().double(), images(6))
