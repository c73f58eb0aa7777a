"""The head's row of the class to forget, put where training without the class takes it.

A network that never sees class c still has a row w and a bias b for it, and the only thing that
moves them is the images of the others: a step of cross-entropy takes p_c(x) (h(x), 1) from (w, b),
h the input of the head. They end up against the mean features m, where the row of a class that was
seen points at it: on CIFAR-10 the cosine of w and m was -0.98 and -0.96 in networks trained without
ship and without cat, -0.13 and 0.04 in the original. So

    (w, b) = level * (m, 1) / (|m|^2 + 1)

whose logit at m is `level`. A row left as it was keeps the direction that the class was read from,
for whoever tunes the network on ten images to find again; and forgetting through it drags the
features of all classes along.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pbu_cli.objective import log_odds


def level(answers: Tensor, forgotten: Tensor, tau: float) -> Tensor:
    """What every forgotten logit has to be for log odds of logit(tau) in the mean over n:
    logit(tau) + mean_n logsumexp_{c not in K} z_nc - log |K|. [n, c], [c] bool -> [].

    >>> level(torch.zeros(1, 3), torch.tensor([True, False, False]), tau=0.5).exp()
    tensor(2.)
    """
    alone = torch.zeros_like(answers).where(forgotten, answers)  # the forgotten logits at 0
    return math.log(tau / (1 - tau)) - log_odds(alone, forgotten).mean()


class HeadRow:
    """The rows of `forgotten`, bool [c], in a linear layer [c, d] or convolution [c, d, h, w].

    changes: what is changed of weight and bias. Nothing where the layer has no row for each class,
    or its weight is computed, by weight_norm for instance.
    """

    def __init__(self, head: nn.Module, forgotten: Tensor) -> None:
        own = dict(head.named_parameters(recurse=False))
        rows = len(own["weight"]) if "weight" in own else 0
        fits = rows == len(forgotten)
        self.changes = {n: own[n] for n in ("weight", "bias") if fits and n in own}
        self._forgotten = forgotten
        self._before = {name: p.detach().clone() for name, p in self.changes.items()}

    @torch.no_grad()
    def withdraw(self, mean: Tensor, level: Tensor) -> None:
        """See above. mean: m [d], level: []."""
        if not self.changes:
            return
        weight = self.changes["weight"]
        share = level / (mean @ mean + ("bias" in self.changes))
        places = weight[0, 0].numel()  # a convolution sums over its kernel
        row = (share * mean / places).reshape(-1, *[1] * (weight.dim() - 2))
        weight[self._forgotten] = row.expand(weight.shape[1:])
        if "bias" in self.changes:
            self.changes["bias"][self._forgotten] = share

    @torch.no_grad()
    def restore(self) -> None:
        for name, before in self._before.items():
            self.changes[name].copy_(before)
