"""The optimiser against torch's plain Adam on the penalised loss, all of it through autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pbu_cli.unlearning.optimizer import PenalisedAdam, allows_early_updates


class Peculiar(nn.Module):
    """A network with one peculiarity, named by `kind`, that early updates have to cope with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.spare = nn.Parameter(torch.randn(6, 6))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.norm(self.first(x)).tanh()
        if self.kind == "tied":
            x = self.first(x).tanh()
        if self.kind == "detached":  # read by backward after the gradient of `second` is there
            x = x @ self.second.weight.detach()
        if self.kind == "data":  # the same behind the back of autograd
            x = x @ self.second.weight.data
        if self.kind == "checkpointed":  # its gradient comes in two parts
            run = torch.utils.checkpoint.checkpoint
            x = run(self.second, run(self.second, x, use_reentrant=True).tanh(), use_reentrant=True)
        if self.kind == "sometimes" and self.calls % 2:
            x = x @ self.spare
        return self.second(x)


KINDS = ["plain", "tied", "detached", "data", "checkpointed", "sometimes"]


def oracle(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], curvatures: list[Tensor],
    rates: list[float], lrs: list[float],
) -> None:  # fmt: skip
    theta = list(model.parameters())
    star = [p.detach().clone() for p in theta]
    groups = [{"params": [p], "rate": rate} for p, rate in zip(theta, rates, strict=True)]
    optimiser = torch.optim.Adam(groups, 1.0, foreach=False, fused=False)
    for lr in lrs:
        penalty = sum(
            (w / 2 * (p - s) ** 2).sum() for w, p, s in zip(curvatures, theta, star, strict=True)
        )
        optimiser.zero_grad()
        (loss(model(x)) + penalty).backward()
        for group in optimiser.param_groups:
            group["lr"] = lr * group["rate"]
        optimiser.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 20, 1 << 18])
def test_it_is_adam_on_the_penalised_loss(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.unlearning.optimizer.CHUNK_SIZE", size)
    torch.manual_seed(0)
    slow = Peculiar(kind).double()
    fast = copy.deepcopy(slow)
    x = torch.randn(5, 6, dtype=torch.float64)
    curvatures = [torch.rand_like(p) for p in slow.parameters()]
    rates = [200.0 if p.ndim == 1 else 1.0 for p in slow.parameters()]
    lrs = [1e-3, 1e-3, 2e-3, 1e-4, 1e-3]

    def loss(logits: Tensor) -> Tensor:
        return logits.square().mean() + logits.sum()

    slow.calls = 1  # the optimiser starts with a trial
    oracle(slow, x, loss, curvatures, rates, lrs)
    theta = list(fast.parameters())
    star = [p.detach().clone() for p in theta]
    run = PenalisedAdam(theta, star, curvatures, rates, fast(x[:2]))
    for p, s in zip(theta, star, strict=True):
        assert torch.equal(p, s), "the trial left something behind"
    for lr in lrs:
        run.step(loss(fast(x)), torch.tensor(lr, dtype=torch.float64))
    for p, q, s in zip(slow.parameters(), theta, star, strict=True):
        torch.testing.assert_close(q - s, p - s, rtol=1e-8, atol=1e-13)
        assert q.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_reads_a_parameter_again_allows_no_early_updates(kind: str) -> None:
    model = Peculiar(kind)
    logits = model(torch.randn(2, 6))
    allowed = allows_early_updates(logits, list(model.parameters()))
    assert allowed == (kind in ("plain", "tied", "sometimes"))


def test_after_a_restart_there_is_no_momentum() -> None:
    theta = [nn.Parameter(torch.ones(3))]
    run = PenalisedAdam(theta, [torch.ones(3)], [torch.zeros(3)], [1.0], theta[0] * 1)
    run.step(theta[0].sum(), torch.tensor(0.1))
    first = theta[0].detach().clone()
    with torch.no_grad():
        theta[0].fill_(1)
    run.restart()
    run.step(theta[0].sum(), torch.tensor(0.1))
    assert torch.equal(theta[0], first)
    run.step(theta[0].sum() * 0, torch.tensor(0.1))
    assert not torch.equal(theta[0], first), "momentum goes on"


def test_gradients_left_by_a_failed_recording_are_ignored() -> None:
    theta = [nn.Parameter(torch.ones(3))]
    run = PenalisedAdam(theta, [torch.ones(3)], [torch.zeros(3)], [1.0], theta[0] * 1)
    theta[0].grad = torch.full((3,), -1e9)
    run.step(theta[0].sum(), torch.tensor(0.1))
    torch.testing.assert_close(theta[0].detach(), torch.full((3,), 0.9))


def test_parameters_with_their_channels_last_move_as_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pbu_cli.unlearning.optimizer.CHUNK_SIZE", 8)
    torch.manual_seed(0)
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = nn.Conv2d(3, 4, 3).to(memory_format=order)
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-1, 1, 108).view(4, 3, 3, 3))
        curvatures = [torch.linspace(0, 1, 108).view(4, 3, 3, 3)]
        x = torch.linspace(-1, 2, 150).view(2, 3, 5, 5)
        star = [model.weight.detach().clone()]
        theta = [model.get_parameter("weight")]
        run = PenalisedAdam(theta, star, curvatures, [1.0], model(x))
        for _ in range(3):
            run.step(model(x).square().mean(), torch.tensor(1e-2))
        found.append(model.weight.detach().clone())
    torch.testing.assert_close(found[0], found[1])
