"""Adam on a loss plus a quadratic penalty; each parameter moves as soon as it has its gradient.

    g = dL/dtheta + curvature (theta - theta*),    then torch's fused Adam on g

The curvature is the second derivative of the penalty, 2 w_i for the weights w_i of
`objective.penalty_weights`.

A step is limited by memory traffic: beside the gradient it reads or writes five tensors of theta's
size. So on a CPU a large parameter is updated during the backward pass, while its gradient is still
in the cache. The update is done in chunks, and the gradient is released before the next one is
computed. Whether the backward pass allows such early updates is found by trying. If it does not,
and for small parameters, the update is done after the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pbu_cli.unlearning.objective import penalised

# Numbers in a chunk. Smaller chunks cost more in calls than they save in memory traffic.
CHUNK_SIZE = 1 << 18


@dataclass(frozen=True)
class Chunk:
    """The tensors that one call of Adam updates, with Adam's state.

    rate: a factor on the learning rate of the step. means, squares: Adam's moments. steps: Adam's
    step counts.
    """

    theta: list[Tensor]
    theta_star: list[Tensor]
    curvatures: list[Tensor]
    rate: float
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]

    @classmethod
    def of(
        cls,
        theta: list[Tensor],
        theta_star: list[Tensor],
        curvatures: list[Tensor],
        rate: float,
    ) -> Chunk:
        """A chunk at Adam's first step."""
        means, squares = ([torch.zeros_like(t) for t in theta] for _ in range(2))
        steps = [torch.zeros((), device=t.device) for t in theta]
        return cls(theta, theta_star, curvatures, rate, means, squares, steps)

    def restart(self) -> None:
        for state in (*self.means, *self.squares, *self.steps):
            state.zero_()

    def update(
        self, gradients: Sequence[Tensor], rate: Tensor, scratch: Tensor | None = None
    ) -> None:
        """One step of Adam. scratch: a buffer for `penalised`."""
        # A GPU reads the rate from its own memory; `item` would wait for the GPU.
        own = rate * self.rate if rate.is_cuda else rate.item() * self.rate
        # The calls that torch.optim.Adam(fused=True) makes. Its overhead would add up, because one
        # step of the run may update a hundred chunks.
        torch._foreach_add_(self.steps, 1)
        torch._fused_adam_(
            self.theta, penalised(gradients, self.theta, self.theta_star, self.curvatures, scratch),
            self.means, self.squares, [], self.steps,
            lr=own, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0,
            amsgrad=False, maximize=False,
        )  # fmt: skip


class PenalisedAdam:
    """Adam's state for a run that starts at theta*.

    theta_star, curvatures, rates: one for each parameter in `theta`; `rates` are factors on the
    learning rate of a step. trial: any logits of the model. A backward pass from them shows
    whether parameters can be updated early.
    """

    def __init__(
        self,
        theta: Sequence[nn.Parameter],
        theta_star: Sequence[Tensor],
        curvatures: Sequence[Tensor],
        rates: Sequence[float],
        trial: Tensor,
    ) -> None:
        for parameter in theta:
            parameter.grad = None
        self._early: dict[nn.Parameter, list[Chunk]] = {}
        self._late: list[tuple[list[nn.Parameter], Chunk]] = []
        late: dict[float, list[int]] = {}  # by rate: the parameters' numbers
        curvatures = list(curvatures)
        early_allowed = trial.device.type == "cpu" and allows_early_updates(trial, theta)
        for j, parameter in enumerate(theta):
            if curvatures[j].stride() != parameter.stride():
                curvatures[j] = torch.empty_like(parameter).copy_(curvatures[j])
            large = parameter.numel() >= CHUNK_SIZE // 4
            if not (early_allowed and large and _in_memory_order(parameter).is_contiguous()):
                late.setdefault(rates[j], []).append(j)
                continue
            parts = map(_split, (parameter.detach(), theta_star[j], curvatures[j]))
            self._early[parameter] = [
                Chunk.of([t], [s], [w], rates[j]) for t, s, w in zip(*parts, strict=True)
            ]
        sizes = (chunk.theta[0].numel() for chunks in self._early.values() for chunk in chunks)
        self._scratch = trial.new_empty(max(sizes, default=0))
        for rate, chosen in late.items():
            parameters = [theta[j] for j in chosen]
            stars, weights = [theta_star[j] for j in chosen], [curvatures[j] for j in chosen]
            chunk = Chunk.of([p.detach() for p in parameters], stars, weights, rate)
            self._late.append((parameters, chunk))

    def step(self, loss: Tensor, rate: Tensor) -> None:
        """One step of Adam on loss + penalty with the learning rate `rate`, [].

        No gradient is kept.
        """
        waiting = set(self._early)
        for parameters, _ in self._late:  # a CUDA graph that could not be recorded leaves gradients
            for parameter in parameters:
                parameter.grad = None

        @torch.no_grad()
        def update_early(parameter: Tensor) -> None:
            assert isinstance(parameter, nn.Parameter)
            gradient, parameter.grad = _gradient(parameter), None
            waiting.discard(parameter)
            for chunk, part in zip(self._early[parameter], _split(gradient), strict=True):
                chunk.update([part], rate, self._scratch)

        with ExitStack() as hooks:
            for parameter in self._early:
                hooks.enter_context(parameter.register_post_accumulate_grad_hook(update_early))
            loss.backward()
        for parameter in waiting.copy():  # the loss does not depend on them, the penalty does
            update_early(parameter)
        for parameters, chunk in self._late:
            with torch.no_grad():
                chunk.update([_gradient(parameter) for parameter in parameters], rate)
            for parameter in parameters:
                parameter.grad = None

    def restart(self) -> None:
        """Reset Adam's state, which belongs to an abandoned attempt."""
        for chunk in self._chunks():
            chunk.restart()

    def _chunks(self) -> Iterator[Chunk]:
        for chunks in self._early.values():
            yield from chunks
        for _, chunk in self._late:
            yield chunk


def allows_early_updates(logits: Tensor, theta: Sequence[nn.Parameter]) -> bool:
    """Whether the backward pass reads no parameter again once its gradient is there.

    The trial sets each parameter to NaN as soon as it has its gradient; the NaN must not reach the
    gradient of another parameter. A parameter whose gradient comes in several parts does not allow
    early updates either. At the end theta has its values again.

    >>> w, v = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    >>> allows_early_updates(w * v, [w, v]), allows_early_updates(w.detach() * v + w, [w, v])
    (True, False)
    """
    before = [parameter.detach().clone() for parameter in theta]
    accumulated: list[Tensor] = []

    def spoil(parameter: Tensor) -> None:
        accumulated.append(parameter)
        # Through `data`, because autograd raises if it notices that a tensor it needs was changed.
        parameter.data.fill_(math.nan)

    try:
        with ExitStack() as hooks:
            for parameter in theta:
                hooks.enter_context(parameter.register_post_accumulate_grad_hook(spoil))
            logits.sum().backward()
        gradients = [parameter.grad for parameter in theta]
        once_each = len(accumulated) == len({id(parameter) for parameter in accumulated})
        return once_each and all(
            bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None
        )
    finally:
        for parameter, value in zip(theta, before, strict=True):
            parameter.data.copy_(value)
            parameter.grad = None


def _in_memory_order(t: Tensor) -> Tensor:
    """t with its dimensions in the order of memory, if t is a kernel with its channels last.

    >>> last = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    >>> _in_memory_order(last).shape, _in_memory_order(last).is_contiguous()
    (torch.Size([2, 4, 5, 3]), True)
    """
    return t if t.dim() != 4 or t.is_contiguous() else t.movedim(1, -1)


def _split(t: Tensor) -> list[Tensor]:
    """t in groups of rows, with at most CHUNK_SIZE numbers if one row is no larger than that.

    >>> [len(part) for part in _split(torch.zeros(5, CHUNK_SIZE // 2))]
    [2, 2, 1]
    """
    return list(_in_memory_order(t).split(max(1, CHUNK_SIZE * len(t) // t.numel())))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
