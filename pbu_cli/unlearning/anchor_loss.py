"""What anchors add to a step of the loop; `model_inversion` defines what an anchor is.

`AnchorLoss` has two purposes. It keeps the retained classes as they are, by holding logits and
features on the anchors. And it removes the class from the features, so that a linear probe cannot
tell forget features from anchor features. `NoAnchors` stands in for it in a run without anchors.

A *feature* is an input of the head. Index letters: n inputs, c classes, d features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.models.hooks import capture_input
from pbu_cli.models.inference import predict
from pbu_cli.settings import Schedule, Weights
from pbu_cli.unlearning.channel_statistics import total_variance
from pbu_cli.unlearning.class_row import ClassRow, low_means, target_offset
from pbu_cli.unlearning.model_inversion import Anchors, inputs_at_once
from pbu_cli.unlearning.objective import discriminant, restricted_log_softmax, stability

REFIT_EVERY = 5  # steps between two fits of the discriminant
RECENT_BATCHES = 8  # the discriminant is fitted to this many batches of features


class ForwardPass(NamedTuple):
    """What a step gets from the model.

    logits: for the forget inputs, [n, c]. loss: what the anchors add to the loss, []. drift: of the
    logits on the anchors, nats, []. features: forget features and anchor features, each [n, d], or
    nothing without anchors.
    """

    logits: Tensor
    loss: Tensor
    drift: Tensor
    features: tuple[Tensor, ...]


class AnchorLoss:
    """The anchors of a run, and the terms that they add to the loss of every step:

        epsilon * (KL(softmax z* || softmax z) on the anchors, among the retained classes
                   + 1/5 |h - h*|^2 / trace of the covariance of h*, on the anchors)
        + zeta * (separation loss + distance hinge + variance hinge)

    with z the logits, h the features, and a star for their values at theta*.

    Separation loss: relu(log(D / D_1)). D is the squared Mahalanobis distance between forget
    features and anchor features, by which a linear probe would tell them apart. It is
    `objective.discriminant` of recent batches, with the covariance S held constant. D_1 is
    `schedule.apart` times D at theta*, but at least `schedule.least_apart`, and at least D at
    theta* along the directions that the retained classes' rows of the head read: to change these
    would change the answers, and the answers of a network that never saw the class tell its images
    from others as well. D there was 2.5 of 16.1 with ten classes, all of 16.1 with a hundred.

    Distance hinge: relu(E / E_0 - 1). E is the mean squared distance of the forget features from
    the mean anchor feature, and E_0 is E at theta*. Directions of feature space that no image uses
    can be changed without moving an anchor, and in a DenseNet BatchNorm multiplies such a change:
    without this term forget images ended up a hundred times further out than any other image.

    Variance hinge: 5 relu(1 - V / V_1). V is the trace of the covariance of the forget features,
    and V_1 is `schedule.scatter` times V at theta*. A network that never saw the class spreads its
    images among those of the other classes (with 0.77 and 1.10 of the original's V, for ship and
    cat of a ResNet-20). The other terms draw the forget images together, to 0.56 of V with ship.
    Ten of them then tell an attacker about all: 68 % of ships were relearnt, with this term 53 to
    63 %, and 54 to 56 % in the network that never saw a ship.
    """

    moves_features = True  # so there is work left where the logits have forgotten the class

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
        self._goal, self._at_once = schedule.goal(len(forgotten)), inputs_at_once(schedule)
        forget_features = anchors.forget_features
        self._reference = restricted_log_softmax(anchors.logits, forgotten)
        self._mean = anchors.features.mean(dim=0)
        self._variance = total_variance(anchors.features)
        self._max_distance = (forget_features - self._mean).square().sum(dim=1).mean()
        self._min_variance = schedule.scatter * total_variance(forget_features)
        self._row = ClassRow(model, head, forgotten, anchors.features, anchors.logits)
        separation = discriminant(forget_features, anchors.features)[1]
        self._max_separation = (schedule.apart * separation).clamp(min=schedule.least_apart)
        read = self._row.read_directions()
        if read is not None:
            of_read = discriminant(forget_features @ read.T, anchors.features @ read.T)[1]
            self._max_separation = torch.maximum(self._max_separation, of_read)
        self._low_means = low_means(model, head, anchors, forgotten, self._at_once)
        self._generator = torch.Generator().manual_seed(schedule.seed)
        self.restart()

    def restart(self) -> None:
        """Reset the state that belongs to an abandoned attempt."""
        self._steps = 0
        self._recent = [(self._anchors.forget_features, self._anchors.features)]
        self._direction = torch.zeros_like(self._mean)
        self._separation = torch.zeros_like(self._max_separation)

    @property
    def changes(self) -> list[str]:
        """Names of the parameters that `apply` changes."""
        return [f"{self._head}.{name}" for name in self._row.changes]

    def apply(self, logits: Tensor) -> None:
        """Move the head's row of the class (`class_row`) before the first step.

        logits: those of the `ForgetSet`, [n, c].
        """
        offset = target_offset(logits, self._forgotten, self._goal)
        self._row.apply(self._low_means, self._anchors.forget_features.mean(dim=0), offset)

    def undo(self) -> None:
        """Undo `apply`."""
        self._row.undo()

    @torch.no_grad()
    def drift(self) -> float | None:
        """The drift of the model's logits on all anchors, nats."""
        logits = predict(self._model, self._anchors.inputs.split(self._at_once)).logits
        return stability(logits, self._reference, self._forgotten).item()

    def judged_drift(self, on_forget: Tensor, on_anchors: Tensor) -> Tensor:
        """The drift that a run is judged by, of the drifts on forget images and on anchors."""
        return on_anchors

    def sample(self, count: int) -> tuple[Tensor, ...]:
        """The tensors that `forward` takes besides forget inputs.

        They are the inputs of `count` random anchors, the log-softmax of their logits and their
        features at theta*, and the latest discriminant with its distance.
        """
        anchors = self._anchors
        index = torch.randint(len(anchors.inputs), (count,), generator=self._generator)
        # non_blocking, so that the CPU does not wait for the GPU.
        index = index.to(anchors.inputs.device, non_blocking=True)
        chosen = anchors.inputs[index], self._reference[index], anchors.features[index]
        return (*chosen, self._direction, self._separation)

    @property
    def refit_due(self) -> bool:
        """Whether the next `forward` fits the discriminant again, to its own features and recent
        ones. Such a call must not be recorded as a CUDA graph."""
        return self._steps % REFIT_EVERY == 0

    def forward(self, inputs: Tensor, *sample: Tensor) -> ForwardPass:
        """One forward pass of forget inputs [n, *shape] and of the anchors in `sample`."""
        anchor_inputs, reference, features_before, direction, separation = sample
        count = len(inputs)
        with capture_input(self._model, self._head) as captured:
            logits = self._model(torch.cat([inputs, anchor_inputs]))
        forget_features, anchor_features = captured[0].split(count)
        drift = stability(logits[count:], reference, self._forgotten)
        moved = (anchor_features - features_before).square().sum(dim=1).mean() / self._variance
        loss = self._weights.epsilon * (drift + moved / 5)
        if self.refit_due:
            direction, separation = self._refitted(forget_features, anchor_features)
        of_forget = (
            self._separation_loss(forget_features, anchor_features, direction, separation)
            + self._distance_hinge(forget_features)
            + self._variance_hinge(forget_features)
        )
        loss = loss + self._weights.zeta * of_forget
        return ForwardPass(logits[:count], loss, drift, (forget_features, anchor_features))

    def record_features(self, *features: Tensor) -> None:
        """Keep the features of the last `forward`, after its step."""
        forget_features, anchor_features = features
        newest = forget_features.clone(), anchor_features.clone()
        self._recent = [*self._recent, newest][-RECENT_BATCHES:]
        self._steps += 1

    def _refitted(self, forget: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminant and its distance, fitted to these features [n, d] and recent ones."""
        recent = [*self._recent, (forget.detach(), anchor.detach())][-RECENT_BATCHES:]
        groups = (torch.cat(group) for group in zip(*recent, strict=True))
        self._direction, self._separation = discriminant(*groups)
        return self._direction, self._separation

    def _separation_loss(
        self, forget: Tensor, anchor: Tensor, direction: Tensor, separation: Tensor
    ) -> Tensor:
        """A loss whose gradient is that of relu(log(D / D_1)).

        For D = v . S^-1 v, with v the difference of the means, the gradient of log D by v is
        2 S^-1 v / D. direction: S^-1 v, [d]; separation: D, [].
        """
        difference = forget.mean(dim=0) - anchor.detach().mean(dim=0)
        factor = torch.where(separation > self._max_separation, 2 / separation, 0.0)
        return factor * (difference @ direction)

    def _distance_hinge(self, forget: Tensor) -> Tensor:
        distance = (forget - self._mean).square().sum(dim=1).mean()
        return F.relu(distance / self._max_distance - 1)

    def _variance_hinge(self, forget: Tensor) -> Tensor:
        return 5 * F.relu(1 - total_variance(forget) / self._min_variance)


class NoAnchors:
    """The interface of `AnchorLoss` for a run without anchors: it adds 0 to the loss."""

    moves_features = False
    refit_due = False

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def restart(self) -> None:
        """There is no state."""

    @property
    def changes(self) -> list[str]:
        return []

    def apply(self, logits: Tensor) -> None:
        """The head's row stays as it is."""

    def undo(self) -> None:
        """Nothing was moved."""

    def drift(self) -> float | None:
        """There are no anchors to measure it on."""
        return None

    def judged_drift(self, on_forget: Tensor, on_anchors: Tensor) -> Tensor:
        return on_forget

    def sample(self, count: int) -> tuple[Tensor, ...]:
        return ()

    def forward(self, inputs: Tensor, *sample: Tensor) -> ForwardPass:
        logits = self._model(inputs)
        zero = logits.new_zeros(())
        return ForwardPass(logits, zero, zero, ())

    def record_features(self, *features: Tensor) -> None:
        """There is no discriminant to fit."""
