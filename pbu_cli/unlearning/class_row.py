"""The head's row of the class to forget, put where training without the class takes it.

A network that never sees class c still has a row w and a bias b for it, and the only thing that
moves them is the images of the others: a step of cross-entropy takes p_c(x) (h(x), 1) from (w, b),
h the input of the head. They end up against the mean features m of the others, where the row of a
class that was seen points at it: on CIFAR-10 the cosine of w and m was -0.98 and -0.96 in networks
trained without ship and without cat, -0.13 and 0.04 in the original. Softmax knows no difference
between rows and rows that are all moved alike, so what counts is (w, b) less (w', b'), the mean of
theta*'s rows of all classes, which training does not move. That is taken along m, as far as

    (w - w') . m' + b - b' = min(level, 0)

with m' the mean features of the class's own images (`anchors.AnchorLoss` says whence m is known). The
0: where the logits that stay are so far apart that the mean of all is below the goal already,
nothing pushes. The others' logit is lower by m . m to m' . m, which is so where a class was never
seen: in two ResNet-34 that never saw an 8 the logits were -11.0 and -4.8 on eights, -35.6 and -18.9
on other digits, and m' . m / m . m was 0.30 and 0.24. Were the level theirs, the images of the
class would have to come closer to them to be forgotten than they are in such a network.

A row left as it was keeps the direction that the class was read from, for whoever tunes the network
on ten images to find again; and forgetting through it drags the features of all classes along.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pbu_cli.unlearning.objective import log_odds

RIDGE = 1e-3
FURTHEST = 4.0  # levels, for the logit of the others
SMALLEST = 1e-9


def level(answers: Tensor, forgotten: Tensor, tau: float) -> Tensor:
    """How far from the mean of all of theta*'s logits z every forgotten one has to be for log odds
    of logit(tau) in the mean over n: logit(tau) - log |K|
    + mean_n (logsumexp_{c not in K} z_nc - mean_c z_nc). [n, c], [c] bool -> [].

    >>> level(torch.ones(1, 3), torch.tensor([True, False, False]), tau=0.5).exp()
    tensor(2.)
    """
    middle = answers.mean(dim=1, keepdim=True)
    return math.log(tau / (1 - tau)) - log_odds(middle.where(forgotten, answers), forgotten).mean()


class ClassRow:
    """The rows of `forgotten`, bool [c], in the module `head` of `model`, a linear layer [c, d] or
    a 1x1 convolution.

    features [n, d], answers [n, c]: what goes into the layer, and the network's logits. Where the
    layer does not make the one of the other, but for what softmax does not see, the row means
    something else and stays as it is: its weight may be computed, or its output be divided or cut
    off before it is a logit. It stays too where another module has the same weight.
    changes: what is changed of weight and bias.
    """

    def __init__(
        self, model: nn.Module, head: str, forgotten: Tensor, features: Tensor, answers: Tensor
    ) -> None:
        own = dict(model.get_submodule(head).named_parameters(recurse=False))
        everywhere = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
        alone = all(everywhere.count(id(parameter)) == 1 for parameter in own.values())
        known = alone and _gives(own.get("weight"), own.get("bias"), features, answers)
        self.changes = {name: own[name] for name in ("weight", "bias") if known and name in own}
        self._forgotten = forgotten
        self._before = {name: p.detach().clone() for name, p in self.changes.items()}

    @torch.no_grad()
    def apply(self, means: Tensor, own: Tensor, level: Tensor) -> None:
        """See above. means: [k, d], own: [d], level: []. Of several means the row takes the least
        combination that is level at all. It stays finite where they are 0.
        """
        if not self.changes:
            return
        weight, bias = self.changes["weight"], self.changes.get("bias")
        among = means @ means.T + (bias is not None)
        # Equal means are one, and without a bias those of 0 are none.
        among.diagonal().add_((RIDGE * among.diagonal().mean()).clamp(min=SMALLEST))
        shares = torch.linalg.solve(among, torch.ones_like(means[:, 0]))
        along = shares @ means
        reached = own @ along + (shares.sum() if bias is not None else 0)
        depth = level.clamp(max=0) / reached.clamp(1 / FURTHEST, 1)
        middle = weight.mean(dim=0)
        weight[self._forgotten] = middle + (depth * along).view(middle.shape)
        if bias is not None:
            bias[self._forgotten] = bias.mean() + depth * shares.sum()

    @torch.no_grad()
    def restore(self) -> None:
        for name, before in self._before.items():
            self.changes[name].copy_(before)


@torch.no_grad()
def _gives(weight: Tensor | None, bias: Tensor | None, features: Tensor, answers: Tensor) -> bool:
    """Whether features [n, d] times a weight [c, d, ...], with the bias, are the answers [n, c], or
    the same for softmax."""
    expected = (answers.shape[1], features.shape[1])
    if weight is None or weight.shape[:2] != expected or weight[0].numel() != expected[1]:
        return False
    logits = features @ weight.flatten(1).T + (0.0 if bias is None else bias)
    ours, theirs = (z - z.mean(dim=1, keepdim=True) for z in (logits, answers))
    return torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max()))
