"""The unlearning loop: from theta*, minimise the objective on the forget images until told to stop.

The model is in eval mode throughout, so that BatchNorm uses its running statistics and never
updates them. The loop yields what it measures and prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pbu_cli.errors import PbuError, printable
from pbu_cli.models.hooks import gradients_for
from pbu_cli.models.kernels.kernel_cropping import NO_CROPS, Crops
from pbu_cli.runtime.cuda_graph import CudaGraphRunner
from pbu_cli.runtime.device import keep_freed_memory
from pbu_cli.settings import Schedule, Weights
from pbu_cli.unlearning import objective
from pbu_cli.unlearning.anchor_loss import AnchorLoss, NoAnchors
from pbu_cli.unlearning.forget_set import ForgetSet, shuffled_batches
from pbu_cli.unlearning.learning_rate import calibrated_rate, rate_share
from pbu_cli.unlearning.optimizer import PenalisedAdam
from pbu_cli.unlearning.step import Step, Window, adapted_alpha
from pbu_cli.unlearning.stopping import BACK_OFF_FACTOR, Check, Decision, decide

CHECK_EVERY = 5  # steps; at each check the CPU waits for the device once


@dataclass(frozen=True)
class Trainable:
    """Which parameters of a model train.

    parameters: their names. head: the names of the head's parameters, whose learning rate is
    `schedule.head_rate` times that of the others. crops: the crops of the model's kernels, if they
    are cropped.
    """

    parameters: Sequence[str]
    head: Sequence[str] = ()
    crops: Crops = field(default_factory=lambda: NO_CROPS)


@dataclass(frozen=True)
class Progress:
    """One check of a run: what was measured and what follows from it.

    learning_rate: the full rate, of which `rate_share` acted at this step. alpha: the weight of
    forgetting that acted at this step.
    """

    check: Check
    decision: Decision
    learning_rate: float
    alpha: float


def unlearn(
    model: nn.Module,
    images: ForgetSet,
    fisher: dict[str, Tensor],
    trainable: Trainable,
    *,
    weights: Weights,
    schedule: Schedule,
    anchor_loss: AnchorLoss | NoAnchors | None = None,
) -> Iterator[Progress]:
    """Train the `trainable` parameters of `model`, in place, until the forget set is forgotten.

    fisher: the Fisher diagonal of every parameter that trains, at any scale, and of whole kernels
    where the model's kernels are cropped; it may be empty if beta is 0. anchor_loss: if it is
    given, every step uses as many anchors as forget images. The head's row of the class is then
    moved first, whether the head trains or not, unless delta is 0.

    Yields a Progress every CHECK_EVERY steps and after the last step; the decision of the last one
    says why the run stopped. Raises PbuError if the loss becomes NaN or infinite; theta* is then
    restored.
    """
    keep_freed_memory()
    model.eval()
    named = dict(model.named_parameters())
    with gradients_for(model, [named[name] for name in trainable.parameters]):
        anchor_loss = anchor_loss or NoAnchors(model)
        run = _Run(model, images, fisher, trainable, weights, schedule, anchor_loss)
        batches = shuffled_batches(len(images), schedule, images.labels.device)
        for step, index in enumerate(batches, start=1):
            run.step(step, index)
            if step % CHECK_EVERY and step < schedule.steps:
                continue
            progress = run.check(step)
            run.follow(progress.decision)
            yield progress
            if progress.decision.action in ("give up", "stop"):
                break


class _Run:
    """The state of a run of `unlearn`.

    _last_valid: theta at the newest check whose drift was within the limit. _alpha, _last_alpha:
    the weight of forgetting in the next step and in the last one.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ForgetSet,
        fisher: dict[str, Tensor],
        trainable: Trainable,
        weights: Weights,
        schedule: Schedule,
        anchor_loss: AnchorLoss | NoAnchors,
    ) -> None:
        self._images, self._trainable = images, trainable
        self._anchor_loss = anchor_loss
        self._weights, self._schedule = weights, schedule
        self._device = images.labels.device
        named = dict(model.named_parameters())
        self._theta = [named[name] for name in trainable.parameters]
        head = set(trainable.head)
        factors = [schedule.head_rate if name in head else 1.0 for name in trainable.parameters]
        bounded = weights.delta > 0
        self._reference = objective.restricted_log_softmax(images.logits, images.forgotten)
        # The rate is calibrated before the class's row is moved, because the moved row leaves less
        # excess to lose.
        self._rate = calibrated_rate(
            model, images, self._theta, factors, schedule,
            from_even_odds=bounded and anchor_loss.moves_features,
        )  # fmt: skip
        # The paper's objective would be reached by moving the row alone, and the run would stop.
        if bounded:
            anchor_loss.apply(images.logits)
        self._theta_star, self._last_valid = _copy(self._theta), _copy(self._theta)
        self._optimizer = self._make_optimizer(model, fisher, factors)
        self._work = Step(anchor_loss, self._optimizer, images.forgotten, weights, schedule)
        self._recorded = CudaGraphRunner(self._work)
        self._history: list[Check] = []
        self._failed_at = torch.zeros((), dtype=torch.int64, device=self._device)  # 0: none failed
        self._start()

    def _make_optimizer(
        self, model: nn.Module, fisher: dict[str, Tensor], factors: list[float]
    ) -> PenalisedAdam:
        names, crops = self._trainable.parameters, self._trainable.crops
        theta: dict[str, Tensor] = dict(zip(names, self._theta, strict=True))
        penalty = objective.penalty_weights(fisher, theta, self._weights, crops)
        curvatures = [2 * penalty[name] for name in names]
        some = self._images.inputs(torch.arange(min(2, len(self._images)), device=self._device))
        # No variable keeps these logits: their autograd graph would tie later steps to this stream.
        return PenalisedAdam(self._theta, self._theta_star, curvatures, factors, model(some))

    def _start(self) -> None:
        self._window = Window(self._schedule, len(self._images), self._device)
        self._alpha = torch.full((), self._weights.alpha, device=self._device)
        self._last_alpha = self._alpha

    def step(self, step: int, index: Tensor) -> None:
        """Take step number `step`, on the forget images at `index`. Nothing waits for a GPU."""
        work = self._work if self._anchor_loss.refit_due else self._recorded
        rate = _scalar(self._rate * rate_share(step, self._schedule), self._device)
        loss, odds, drift, *features = work(
            self._images.inputs(index), self._images.labels[index], self._reference[index],
            self._alpha, rate, *self._anchor_loss.sample(len(index)),
        )  # fmt: skip
        self._anchor_loss.record_features(*features)
        failed = (self._failed_at == 0) & ~loss.isfinite()
        self._failed_at = torch.where(failed, step, self._failed_at)
        self._window.add(odds, drift)
        self._last_alpha = self._alpha
        self._alpha = adapted_alpha(
            self._alpha, self._window.recognised(), self._weights, self._schedule
        )

    def check(self, step: int) -> Progress:
        """Measure and decide. One transfer from the device brings all numbers."""
        numbers = [self._failed_at.float(), self._window.recognised(), self._window.drift()]
        failed_at, recognised, drift, alpha = torch.stack([*numbers, self._last_alpha]).tolist()
        if failed_at:
            self._fail(int(failed_at))
        self._history.append(Check(step, 100 * recognised, drift))
        decision = decide(
            self._history, steps=self._schedule.steps, bounded=self._weights.delta > 0,
            most_drift=self._schedule.most_drift,
        )  # fmt: skip
        return Progress(self._history[-1], decision, self._rate, alpha)

    def follow(self, decision: Decision) -> None:
        """Do what was decided: start over, restore, or keep theta as the last valid state."""
        if decision.action == "back off":
            _restore(self._theta, self._theta_star)
            self._optimizer.restart()
            self._anchor_loss.restart()
            self._start()
            self._rate *= BACK_OFF_FACTOR
        elif decision.action == "give up":
            _restore(self._theta, self._last_valid)
        else:
            torch._foreach_copy_(
                self._last_valid, [parameter.detach() for parameter in self._theta]
            )

    def _fail(self, step: int) -> None:
        """Restore theta* and raise PbuError: the loss is not finite since `step`."""
        names = self._trainable.parameters
        broken = [n for n, p in zip(names, self._theta, strict=True) if not p.isfinite().all()]
        share = f"{len(broken)} of {len(names)} tensors"
        where = f", and with it {share}, first {printable(broken[0])}" if broken else ""
        _restore(self._theta, self._theta_star)
        self._anchor_loss.undo()
        raise PbuError(
            f"the loss became NaN or infinite at step {step}{where}; nothing was written: lower"
            " --alpha, or check the checkpoint"
        )


def _scalar(value: float, device: torch.device) -> Tensor:
    """`value` with all its digits on the CPU, or in a GPU's memory, where its kernels read it."""
    if device.type == "cuda":
        return torch.full((), value, device=device)
    return torch.tensor(value, dtype=torch.float64)


def _copy(theta: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in theta]


@torch.no_grad()
def _restore(theta: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(theta, values, strict=True):
        parameter.copy_(value)
