"""Anchors: inputs that stand for the classes that stay, made from the network itself.

Forget images say little about the other classes, and no other image may be read. But the network
can be asked what it takes for one of them. Starting at the forget inputs, train_step over x

    cross-entropy(f(x), t) + mean_l mean_k ((m_lk - m*_lk) / s*_lk)^2 + (s_lk / s*_lk - 1)^2

with t one of the classes that stay, or a mixture of two, and m, s the means and deviations over a
batch of what enters the channels of each BatchNorm l behind the trunk, m*, s* its statistics, which
are those of all that the network was trained on. Where there is none they are those of x's
channels, m*, s* at the start, with a weight of 3. These are no data: they come from theta*. x is
what enters the layers that train, so behind a frozen trunk it is a feature map, no image ever
exists, and the trunk costs nothing.

The same is then done the other way round, from anchors towards the class that is to go, for what
else the network would recognise as one of it: what is forgotten on the images given alone comes
back on others, the sooner the fewer they were.

Source: after DeepInversion (Yin et al., "Dreaming to Distill", CVPR 2020, arXiv 1912.08795), there
over pixels, from noise, and with an image prior, which behind the trunk was worth nothing here.
Held to its start alone, an anchor in a network with BatchNorm overdoes what its class is told by:
in a ResNet-20 their features deviated 1.27 and 1.47 times as far as those of images (without ship,
without cat), held to its statistics 1.16 and 1.21 times.

Index letters: n inputs, l layers, k channels, c classes, d features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.models.hooks import capture_input
from pbu_cli.settings import Schedule, Weights
from pbu_cli.unlearning.batchnorm_mean import batch_norms, trained_mean
from pbu_cli.unlearning.class_row import ClassRow, level
from pbu_cli.unlearning.model_inversion import EPSILON, Anchors, inputs_at_once
from pbu_cli.unlearning.objective import discriminant, restricted_log_softmax, stability

REFIT = 5  # steps between two looks for what tells forget images from anchors
RECENT = 8  # batches of either that are looked at


class AnchorLoss:
    """The anchors beside the forget images in every step, and what they add to the loss:

        epsilon * (KL(softmax z* || softmax z) on the anchors, among the classes that stay
                   + 1/5 |h - h*|^2 / trace of the covariance of h*)
        + zeta * (relu(log(D / D_1)) + relu(E / E_0 - 1) + 5 relu(1 - V / V_1))

    with h the input of the head and D the squared Mahalanobis distance of the forget images and
    the anchors in it, by which a linear probe would tell them apart (`objective.discriminant`, of
    the recent ones and with S held constant). D_1 is `schedule.apart` times D at theta*, at least
    `schedule.least_apart`: a network that never saw the class does not place its images among the
    others either, and all the less the more they look like none of them.

    E is the mean squared distance of forget images from the mean anchor, E_0 that at theta*. What
    no image has used can be changed without moving an anchor, and in a DenseNet BatchNorm
    multiplies that: without this, forget images ended up a hundred times further out than any.

    V is the scatter of the forget images, the trace of their features' covariance, and V_1
    `schedule.scatter` times that at theta*. A network that never saw the class spreads its images
    among the others (0.77 and 1.10 of the scatter in the original, ship and cat of a ResNet-20).
    The other terms draw them together, to 0.56 with ship, and ten of them then tell an attacker of
    the rest: relearnt were 68 % of ships, with this term 53 to 63, in that network 54 to 56.

    `withdraw` moves the head's row of the class first (`head_row`).
    """

    def __init__(
        self,
        model: nn.Module,
        head: str,
        anchors: Anchors,
        forgotten: Tensor,
        weights: Weights,
        schedule: Schedule,
    ) -> None:
        self._model, self._head, self._anchors = model, head, anchors
        self._forgotten, self._weights = forgotten, weights
        self._middle = anchors.features.mean(dim=0)
        self._reach = (anchors.opposite - self._middle).square().sum(dim=1).mean()
        self._row = ClassRow(model, head, forgotten, anchors.features, anchors.answers)
        self._means = _low_at(model, head, anchors, forgotten, inputs_at_once(schedule))
        self._scatter = schedule.scatter * _scatter(anchors.opposite)
        distance = discriminant(anchors.opposite, anchors.features)[1]
        self._apart = (schedule.apart * distance).clamp(min=schedule.least_apart)
        self._tau, self._together = schedule.tau, inputs_at_once(schedule)
        self._reference = restricted_log_softmax(anchors.answers, forgotten)
        self._spread = _scatter(anchors.features)
        self._draw = torch.Generator().manual_seed(schedule.seed)
        self.restart()

    def restart(self) -> None:
        """Forget what was seen on a way that was left."""
        self._steps = 0
        self._recent = [(self._anchors.opposite, self._anchors.features)]
        self._direction = torch.zeros_like(self._middle)
        self._distance = torch.zeros_like(self._apart)

    @property
    def changes(self) -> list[str]:
        """Names of the parameters that `withdraw` changes."""
        return [f"{self._head}.{name}" for name in self._row.changes]

    def apply(self, answers: Tensor) -> None:
        """Move the head's row of the class; `answers` are those of the `ForgetSet`."""
        goal = level(answers, self._forgotten, self._tau)
        self._row.apply(self._means, self._anchors.opposite.mean(dim=0), goal)

    def undo(self) -> None:
        """Undo `withdraw`."""
        self._row.restore()

    @torch.no_grad()
    def drift(self) -> float:
        """Of the model's answers to all anchors, nats."""
        answers = torch.cat(
            [self._model(part).float() for part in self._anchors.inputs.split(self._together)]
        )
        return stability(answers, self._reference, self._forgotten).item()

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """For `meet`: so many anchors by chance, their inputs, answers and features at theta*; and
        what told forget images from anchors when last looked for."""
        anchors = self._anchors
        index = torch.randint(len(anchors.inputs), (count,), generator=self._draw)
        index = index.to(anchors.inputs.device, non_blocking=True)  # a GPU is not waited for
        drawn = anchors.inputs[index], self._reference[index], anchors.features[index]
        return (*drawn, self._direction, self._distance)

    @property
    def fits(self) -> bool:
        """Whether the next `meet` looks again for what tells forget images from anchors, by its own
        and recent ones."""
        return self._steps % REFIT == 0

    def meet(
        self,
        inputs: Tensor,
        beside: Tensor,
        reference: Tensor,
        features: Tensor,
        direction: Tensor,
        distance: Tensor,
    ) -> tuple[Tensor, ...]:
        """The model's answers to forget inputs [n, *shape], [n, c]; what to add to the loss; the
        drift of the answers to the anchors that `draw` gave, nats; and for `see`, the input of the
        head for both. Where it `fits` it does more, and is nothing to record (`replay.py`).
        """
        count = len(inputs)
        with capture_input(self._model, self._head) as heard:
            answers = self._model(torch.cat([inputs, beside]))
        ours, theirs = heard[0].split(count)
        drift = stability(answers[count:], reference, self._forgotten)
        moved = (theirs - features).square().sum(dim=1).mean() / self._spread
        loss = self._weights.epsilon * (drift + moved / 5)
        pull = self._pull(ours, theirs, direction, distance)
        apart = pull + self._outside(ours) + self._gathered(ours)
        return answers[:count], loss + self._weights.zeta * apart, drift, ours, theirs

    def see(self, ours: Tensor, theirs: Tensor) -> None:
        """Keep what `meet` gave last, after its step."""
        self._recent = [*self._recent, (ours.clone(), theirs.clone())][-RECENT:]
        self._steps += 1

    def _pull(self, ours: Tensor, theirs: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
        if self.fits:
            recent = [*self._recent, (ours.detach(), theirs.detach())][-RECENT:]
            groups = (torch.cat(part) for part in zip(*recent, strict=True))
            direction, distance = self._direction, self._distance = discriminant(*groups)
        difference = ours.mean(dim=0) - theirs.detach().mean(dim=0)
        # The gradient of log D for D = difference . S^-1 difference.
        slope = torch.where(distance > self._apart, 2 / distance, 0.0)
        return slope * (difference @ direction)

    def _outside(self, ours: Tensor) -> Tensor:
        return F.relu((ours - self._middle).square().sum(dim=1).mean() / self._reach - 1)

    def _gathered(self, ours: Tensor) -> Tensor:
        return 5 * F.relu(1 - _scatter(ours) / self._scatter)


def _scatter(features: Tensor) -> Tensor:
    """Trace of the covariance of features [n, d], as a sample tells it, never 0. -> []."""
    return features.var(dim=0, correction=min(1, len(features) - 1)).sum() + EPSILON


def _low_at(model: nn.Module, head: str, anchors: Anchors, forgotten: Tensor, size: int) -> Tensor:
    """The mean features against which the class's row is put, [k, d].

    Training without the class puts it against those of the others alone. BatchNorm tells what they
    were, if classes were equally many. Where there is none behind the trunk the anchors, held to
    nothing else either, are poor stand-ins, and the mean of the forget images joins theirs.
    """
    own = anchors.opposite.mean(dim=0)
    norms = batch_norms(model, anchors.inputs[:2])
    if not norms:
        return torch.stack([anchors.features.mean(dim=0), own])
    rounds = [part for part in anchors.inputs.split(size) if len(part) > 1]  # one has no variance
    everything = trained_mean(model, head, norms, rounds).to(own.device)
    share = forgotten.float().mean()
    return ((everything - share * own) / (1 - share))[None]
