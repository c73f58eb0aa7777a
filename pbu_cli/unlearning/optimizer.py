"""Adam on a loss plus a quadratic penalty, each parameter as soon as backward has its gradient.

    g = dL/dtheta + slope (theta - theta*),    then torch's fused Adam on g

A step is memory traffic: beside the gradient it reads or writes five tensors of theta's size. So
on a CPU a large parameter moves while its gradient is still in the cache, a piece at a time, and
the gradient is let go before the next one comes. Whether backward bears with that is found by
trying; where it does not, and for what is small, everything moves after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pbu_cli.unlearning.objective import penalised

PIECE = 1 << 18  # numbers that move at once; less costs more in calls than it saves in memory


@dataclass(frozen=True)
class _Piece:
    """What moves in one call of Adam, with its state. `rate` in that of the whole."""

    theta: list[Tensor]
    theta_star: list[Tensor]
    slopes: list[Tensor]
    rate: float
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]

    def restart(self) -> None:
        for state in (*self.means, *self.squares, *self.steps):
            state.zero_()

    def move(self, gradients: Sequence[Tensor], rate: Tensor, room: Tensor | None = None) -> None:
        # What torch.optim.Adam(fused=True) comes down to, a hundred times a step. A GPU reads the
        # rate where it lies, and is not waited for.
        own = rate * self.rate if rate.is_cuda else rate.item() * self.rate
        torch._foreach_add_(self.steps, 1)
        torch._fused_adam_(
            self.theta, penalised(gradients, self.theta, self.theta_star, self.slopes, room),
            self.means, self.squares, [], self.steps,
            lr=own, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0,
            amsgrad=False, maximize=False,
        )  # fmt: skip


def _piece(
    theta: list[Tensor], theta_star: list[Tensor], slopes: list[Tensor], rate: float
) -> _Piece:
    means, squares = ([torch.zeros_like(t) for t in theta] for _ in range(2))
    steps = [torch.zeros((), device=t.device) for t in theta]
    return _Piece(theta, theta_star, slopes, rate, means, squares, steps)


class PenalisedAdam:
    """The state of a descent from theta*.

    theta_star, slopes, rates: by parameter, for `penalised` and in the learning rate of a step.
    trial: anything that the model answers, to find out how its backward pass goes.
    """

    def __init__(
        self,
        theta: Sequence[nn.Parameter],
        theta_star: Sequence[Tensor],
        slopes: Sequence[Tensor],
        rates: Sequence[float],
        trial: Tensor,
    ) -> None:
        for parameter in theta:
            parameter.grad = None
        self._early: dict[nn.Parameter, list[_Piece]] = {}
        self._late: list[tuple[list[nn.Parameter], _Piece]] = []
        late: dict[float, list[int]] = {}
        slopes = list(slopes)
        bears = trial.device.type == "cpu" and bears_early_moves(trial, theta)
        for j, parameter in enumerate(theta):
            if slopes[j].stride() != parameter.stride():
                slopes[j] = torch.empty_like(parameter).copy_(slopes[j])
            large = parameter.numel() >= PIECE // 4
            if not (bears and large and _as_it_lies(parameter).is_contiguous()):
                late.setdefault(rates[j], []).append(j)
                continue
            parts = zip(
                *(_pieces(t) for t in (parameter.detach(), theta_star[j], slopes[j])), strict=True
            )
            self._early[parameter] = [_piece([t], [s], [w], rates[j]) for t, s, w in parts]
        early = [piece.theta[0] for pieces in self._early.values() for piece in pieces]
        self._room = trial.new_empty(max((t.numel() for t in early), default=0))
        for rate, chosen in late.items():
            parameters = [theta[j] for j in chosen]
            stars, weights = [theta_star[j] for j in chosen], [slopes[j] for j in chosen]
            self._late.append(
                (parameters, _piece([p.detach() for p in parameters], stars, weights, rate))
            )

    def step(self, loss: Tensor, rate: Tensor) -> None:
        """One step of Adam down the gradient of loss + penalty, which nobody keeps; `rate` []."""
        waiting = set(self._early)
        for parameters, _ in self._late:  # a recording that failed may have left what was not there
            for parameter in parameters:
                parameter.grad = None

        @torch.no_grad()
        def move(parameter: Tensor) -> None:
            assert isinstance(parameter, nn.Parameter)
            gradient, parameter.grad = _gradient(parameter), None
            waiting.discard(parameter)
            for piece, part in zip(self._early[parameter], _pieces(gradient), strict=True):
                piece.move([part], rate, self._room)

        with ExitStack() as hooks:
            for parameter in self._early:
                hooks.enter_context(parameter.register_post_accumulate_grad_hook(move))
            loss.backward()
        for parameter in waiting.copy():  # the loss does not depend on them
            move(parameter)
        for parameters, piece in self._late:
            with torch.no_grad():
                piece.move([_gradient(parameter) for parameter in parameters], rate)
            for parameter in parameters:
                parameter.grad = None

    def restart(self) -> None:
        """Forget the momentum: it is that of a way that was left."""
        for piece in [*(p for parts in self._early.values() for p in parts),
                      *(piece for _, piece in self._late)]:  # fmt: skip
            piece.restart()


def bears_early_moves(answers: Tensor, theta: Sequence[nn.Parameter]) -> bool:
    """Whether backward reads no parameter again once that one's gradient is there.

    Tried with NaN in its place from then on, which must not reach any other's gradient. A
    parameter whose gradient comes in parts does not bear it either. theta is left as it was.

    >>> w, v = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    >>> bears_early_moves(w * v, [w, v]), bears_early_moves(w.detach() * v + w, [w, v])
    (True, False)
    """
    before = [parameter.detach().clone() for parameter in theta]
    came: list[Tensor] = []

    def spoil(parameter: Tensor) -> None:
        came.append(parameter)
        parameter.data.fill_(math.nan)  # behind the back of autograd, which would raise

    try:
        with ExitStack() as hooks:
            for parameter in theta:
                hooks.enter_context(parameter.register_post_accumulate_grad_hook(spoil))
            answers.sum().backward()
        found = [parameter.grad for parameter in theta]
        return len(came) == len({id(parameter) for parameter in came}) and all(
            bool(gradient.isfinite().all()) for gradient in found if gradient is not None
        )
    finally:
        for parameter, value in zip(theta, before, strict=True):
            parameter.data.copy_(value)
            parameter.grad = None


def _as_it_lies(t: Tensor) -> Tensor:
    """t with its dimensions in the order of memory, if it is a kernel with its channels last.

    >>> last = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    >>> _as_it_lies(last).shape, _as_it_lies(last).is_contiguous()
    (torch.Size([2, 4, 5, 3]), True)
    """
    return t if t.dim() != 4 or t.is_contiguous() else t.movedim(1, -1)


def _pieces(t: Tensor) -> list[Tensor]:
    """t by some rows at a time, all of them together where they are few.

    >>> [len(part) for part in _pieces(torch.zeros(5, PIECE // 2))]
    [2, 2, 1]
    """
    return list(_as_it_lies(t).split(max(1, PIECE * len(t) // t.numel())))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
