"""The prototypical relearning attack: the mean feature of a few images as the class's new row.

The attacker holds k images of the class. The mean p of their features, which are the input of the
head, replaces the class's row of the head: z_c = s |w| p.x / |p| + t, where |w| is the mean norm of
the retained classes' rows, s a scale and t a bias. No parameter is trained. The attack shows
whether the features of the class still lie together, away from those of the other classes.

The attacker chooses s and t so that the retained accuracy stays within five points of what it was,
as in `relearning_attack`, judged on the very images that count. Without retained images the attack
tells nothing: behind a ReLU, p.x is large for every image, so that with the mean bias of the
retained rows nearly every image is predicted as the class, by any network.

Source: Ha, Park and Yoon, "Unlearning's blind spots: over-unlearning and prototypical relearning
attack", ICML 2026, arXiv 2506.01318. Their code normalises p to length 1, sets the bias to 0 and
averages the new row with the old one. Here the old row is thrown away, because a method may have
left anything in it, and the cost is controlled.

Index letters: n images, d features, c classes, g forgotten classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pbu_cli.audit.bias_shift import best_bias
from pbu_cli.audit.estimates import Estimate, mean_estimate
from pbu_cli.audit.relearning_attack import MAX_COST
from pbu_cli.evaluation.metrics import accuracy

HELD = 1, 5, 10  # images of each class that the attacker holds
DRAWS = 20  # of these images
SCALES = 0.5, 1.0, 2.0, 4.0  # of the new row, relative to the retained rows
MAX_RETAINED = 2000  # retained images that are scored
MIN_SCORED = 10  # forget images of each class beside those held


@dataclass(frozen=True)
class Scored:
    """Images with what a network computes for them: features [n, d], logits [n, c], labels [n]."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    def only(self, chosen: Tensor) -> Scored:
        """Those that an index or a mask names."""
        return Scored(self.features[chosen], self.logits[chosen], self.labels[chosen])


def row_length(head: nn.Module, forgotten: Tensor, features: int) -> float | None:
    """The mean norm of the retained classes' rows; None for a head that has no such rows.

    The head needs a weight [c, d], or a convolution's [c, d, 1, 1], with d = `features`.
    """
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.numel() != len(forgotten) * features:
        return None
    rows = weight.detach().float().cpu().view(len(forgotten), features)
    return float(rows[~forgotten].norm(dim=1).mean())


def prototype_attack(
    forget: Scored,
    retain: Scored,
    forgotten: Tensor,
    length: float,
    *,
    held: int,
    seed: int = 0,
) -> Estimate | None:
    """A_Df in percent on the forget images that are not held; mean over the draws.

    forgotten: bool [c]; the attacker holds `held` images of each of these classes, which all need
    forget images. length: of the new rows at scale 1, from `row_length`. At most `MAX_RETAINED`
    retained images are scored, drawn by `seed`. The cost is counted from the A_Dr that the logits
    of `retain` have. The interval is a bootstrap over the draws.

    None where a class has fewer than `held` + 10 forget images.
    """
    classes = forgotten.nonzero()[:, 0]
    if min(int((forget.labels == c).sum()) for c in classes) < held + MIN_SCORED:
        return None
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(retain.labels), generator=generator)[:MAX_RETAINED]
    retain = retain.only(chosen)
    floor = accuracy(retain.logits.argmax(dim=1), retain.labels) - MAX_COST
    values = []
    for _ in range(DRAWS):
        used = _draw(forget.labels, classes, held, generator)
        prototypes = torch.stack([forget.features[used[c]].mean(dim=0) for c in classes.tolist()])
        rows = length * prototypes / prototypes.norm(dim=1, keepdim=True).clamp_min(1e-12)
        others = torch.ones(len(forget.labels), dtype=torch.bool)
        others[torch.cat(list(used.values()))] = False
        values.append(best_a_df(forget.only(others), retain, rows, forgotten, floor))
    return mean_estimate(torch.tensor(values, dtype=torch.double), seed)


def best_a_df(
    forget: Scored, retain: Scored, rows: Tensor, forgotten: Tensor, floor: float
) -> float:
    """The highest A_Df of all scales, each with the best bias that leaves A_Dr at `floor` percent.

    rows: of the forgotten classes, [g, d]; they replace the head's. There always is a bias: with
    minus infinity A_Dr is at least what it was.

    >>> head = torch.eye(2)
    >>> forget = Scored(torch.tensor([[0.0, 1], [0, 3]]), torch.zeros(2, 2), torch.tensor([0, 0]))
    >>> kept = Scored(torch.tensor([[3.0, 1]]), torch.tensor([[0.0, 1]]), torch.tensor([1]))
    >>> best_a_df(forget, kept, torch.tensor([[0.0, 1]]), torch.tensor([True, False]), 100)
    100.0
    """
    found = []
    for scale in SCALES:
        pairs = []
        for images in (forget, retain):
            logits = images.logits.clone()
            logits[:, forgotten] = scale * images.features @ rows.T
            pairs.append((logits, images.labels))
        found.append(best_bias(pairs[0], pairs[1], forgotten, floor))
    return max(found)


def _draw(
    labels: Tensor, classes: Tensor, held: int, generator: torch.Generator
) -> dict[int, Tensor]:
    """By class, which images the attacker holds."""
    used = {}
    for c in classes.tolist():
        own = (labels == c).nonzero()[:, 0]
        used[c] = own[torch.randperm(len(own), generator=generator)[:held]]
    return used
