"""`--batch-size` bounds every forward pass of `evaluate --audit`, the attacker's steps included."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torchvision.models import ResNet

from pbu_cli.audit.relearning_attack import ATTACKERS, Attacker, RelearningSettings, tune
from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.evaluation import statistics
from tests.conftest import Ran


@contextmanager
def pass_sizes() -> Iterator[Counter[int]]:
    """How many passes of a ResNet took how many images."""
    sizes: Counter[int] = Counter()

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, ResNet):
            sizes[len(args[0])] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.slow
def test_no_pass_of_an_audit_exceeds_the_batch_size(
    pbu: Callable[..., Ran], digits: DemoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "evaluate", digits.checkpoint, "--original", digits.checkpoint,
        "--forget", digits.test / "8", "--retain", digits.test, "--members", digits.train / "8",
        "--audit", "--batch-size", "7", "--json", "-q",
    ]  # fmt: skip
    short = partial(RelearningSettings, draws=1, attackers=ATTACKERS[:1], steps=(0, 1))
    monkeypatch.setattr("pbu_cli.audit.run.RelearningSettings", short)
    usual = statistics.bootstrap.__kwdefaults__
    monkeypatch.setattr(statistics.bootstrap, "__kwdefaults__", usual | {"resamples": 50})
    with pass_sizes() as sizes:
        done = pbu(*command)
    assert done.code == 0, done.err
    networks = json.loads(done.out)["audit"]["networks"]
    assert all(network["relearning"] and network["membership"] for network in networks)
    assert max(sizes) == 7, sizes


@pytest.mark.parametrize("size", [1, 3, 9, 10])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_an_attackers_step_is_the_same_for_any_batch_size(
    optimiser: Literal["sgd", "adam"], size: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double().eval()
    held = torch.randn(10, 3, dtype=torch.float64), torch.arange(10) % 4
    found, whole = (
        list(tune(model, Attacker(optimiser, 1e-2), held, settings))[-1][1].state_dict()
        for settings in (
            RelearningSettings(steps=(5,), batch_size=size),
            RelearningSettings(steps=(5,)),
        )
    )
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value)
        assert size < 10 or torch.equal(found[name], value)
