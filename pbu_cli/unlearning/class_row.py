"""Move the head's row of the class to forget to where training without the class would put it.

A network that never sees class c still has a row w and a bias b for it. Only the images of the
other classes move them: one step of cross-entropy takes p_c(x) (h(x), 1) from (w, b), with h the
input of the head. So w ends up pointing against m, the mean features of the other classes, whereas
the row of a class that was seen points towards m. On CIFAR-10 the cosine of w and m was -0.98 and
-0.96 in networks trained without ship and without cat, and -0.13 and 0.04 in the original.

Softmax does not change if all rows are moved by the same vector. So what counts is (w, b) minus
(w', b'), the mean of theta*'s rows of all classes, which training does not move. `ClassRow.apply`
moves this difference along m, as far as

    (w - w') . m' + b - b' = min(target offset, 0)

with m' the mean features of the class's own images; how m is known is described at
`low_means`. The minimum with 0: if the logits of the retained classes are so far apart
that the mean of all logits is below the goal already, nothing pushes the row.

The logit is lower on the other classes than on the class, by the factor m . m / m' . m. This holds
too where a class was never seen: in two ResNet-34 that never saw an 8 the logits were -11.0 and
-4.8 on eights and -35.6 and -18.9 on other digits, and m' . m / m . m was 0.30 and 0.24. If the
target offset were that of the other classes, then to be forgotten the images of the class would
have to come closer to the other classes than they are in such a network.

A row that stays keeps the direction that the class was read from, so that someone who fine-tunes
the network on ten images finds it again. And forgetting through such a row moves the features of
all classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pbu_cli.models.features import equal_up_to_shift
from pbu_cli.unlearning.batchnorm_mean import batch_norms, trained_mean
from pbu_cli.unlearning.model_inversion import Anchors
from pbu_cli.unlearning.objective import log_odds

RIDGE = 1e-3  # relative to the mean diagonal of the equations for the row
MAX_RATIO = 4.0  # of the logit on the other classes to the logit on the class
SMALLEST = 1e-9
READ = 0.01  # of the largest singular value of the rows


def target_offset(logits: Tensor, forgotten: Tensor, goal: float) -> Tensor:
    """How far every forgotten logit has to be from the mean of all of theta*'s logits z so that the
    log odds are the goal on average over n: goal - log |K|
    + mean_n (logsumexp_{c not in K} z_nc - mean_c z_nc). [n, c], [c] bool -> [].

    >>> target_offset(torch.ones(1, 3), torch.tensor([True, False, False]), goal=0.0).exp()
    tensor(2.)
    """
    mean = logits.mean(dim=1, keepdim=True)
    return goal - log_odds(mean.where(forgotten, logits), forgotten).mean()


def low_means(
    model: nn.Module, head: str, anchors: Anchors, forgotten: Tensor, size: int
) -> Tensor:
    """The mean features at which the logit of the forgotten class is to be low, [k, d].

    Training without the class would put the row against the mean features of the other classes
    alone. BatchNorms tell this mean, if all classes had equally many images. Without a BatchNorm
    after the frozen backbone nothing holds the anchors to the training images, so they are poor
    stand-ins, and the mean features of the forget images are used beside those of the anchors.

    forgotten: bool [c]. size: the number of inputs in a forward pass.
    """
    forget_mean = anchors.forget_features.mean(dim=0)
    norms = batch_norms(model, anchors.inputs[:2])
    if not norms:
        return torch.stack([anchors.features.mean(dim=0), forget_mean])
    batches = [part for part in anchors.inputs.split(size) if len(part) > 1]  # one has no variance
    mean_of_all = trained_mean(model, head, norms, batches).to(forget_mean.device)
    share = forgotten.float().mean()
    return ((mean_of_all - share * forget_mean) / (1 - share))[None]


class ClassRow:
    """The rows of the classes `forgotten`, bool [c], in the module `head` of `model`.

    The head is a linear layer [c, d] or a 1x1 convolution. features: the head's input [n, d];
    logits: the network's logits [n, c] for the same inputs. The row stays as it is if another
    module shares the weight, or if the layer applied to the features does not give the logits, up
    to a shift of all logits alike. In that case the row means something else: its weight may be
    computed, or its output may be divided or cut off before it becomes a logit.

    changes: the parameters that `apply` changes, by `weight` and `bias`.
    """

    def __init__(
        self, model: nn.Module, head: str, forgotten: Tensor, features: Tensor, logits: Tensor
    ) -> None:
        own = dict(model.get_submodule(head).named_parameters(recurse=False))
        uses = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
        unshared = all(uses.count(id(parameter)) == 1 for parameter in own.values())
        usable = unshared and _gives(own.get("weight"), own.get("bias"), features, logits)
        self.changes = {name: own[name] for name in ("weight", "bias") if usable and name in own}
        self._forgotten = forgotten
        self._before = {name: p.detach().clone() for name, p in self.changes.items()}

    @torch.no_grad()
    def read_directions(self) -> Tensor | None:
        """An orthonormal basis of the features that the retained classes' rows read, [k, d]; None
        where the rows are not those of the logits.

        Their mean row is taken off, because softmax ignores what all logits share. Directions of
        less than READ of the largest singular value count as not read. With fewer classes than
        features most directions are free: 8 of 64 are read with ten classes, all with a hundred.
        """
        if "weight" not in self.changes:
            return None
        rows = self.changes["weight"].flatten(1)[~self._forgotten].float()
        centred = rows - rows.mean(dim=0)
        values, directions = torch.linalg.svd(centred, full_matrices=False)[1:]
        read: Tensor = directions[values > READ * values[:1]]
        return read

    @torch.no_grad()
    def apply(self, means: Tensor, own_mean: Tensor, offset: Tensor) -> None:
        """Move the row of the class (see the module's docstring).

        means: mean features of the other classes, [k, d]. own_mean: mean features of the class's
        own images, [d]. offset: the target offset, []. If there are several means, the row is the
        smallest combination of them that has the same logit at all of them. The row stays finite
        if the means are 0.
        """
        if not self.changes:
            return
        weight, bias = self.changes["weight"], self.changes.get("bias")
        gram = means @ means.T + (bias is not None)
        # The ridge makes equal means count as one, and means of 0 without a bias as none.
        gram.diagonal().add_((RIDGE * gram.diagonal().mean()).clamp(min=SMALLEST))
        shares = torch.linalg.solve(gram, torch.ones_like(means[:, 0]))
        direction = shares @ means
        at_class = own_mean @ direction + (shares.sum() if bias is not None else 0)
        depth = offset.clamp(max=0) / at_class.clamp(1 / MAX_RATIO, 1)
        mean_row = weight.mean(dim=0)
        weight[self._forgotten] = mean_row + (depth * direction).view(mean_row.shape)
        if bias is not None:
            bias[self._forgotten] = bias.mean() + depth * shares.sum()

    @torch.no_grad()
    def undo(self) -> None:
        """Put the row back to where it was before `apply`."""
        for name, before in self._before.items():
            self.changes[name].copy_(before)


@torch.no_grad()
def _gives(weight: Tensor | None, bias: Tensor | None, features: Tensor, logits: Tensor) -> bool:
    """Whether features [n, d] times a weight [c, d, ...], plus the bias, are the logits [n, c], up
    to a shift of all logits alike, which softmax ignores."""
    expected = (logits.shape[1], features.shape[1])
    if weight is None or weight.shape[:2] != expected or weight[0].numel() != expected[1]:
        return False
    computed = features @ weight.flatten(1).T + (0.0 if bias is None else bias)
    return equal_up_to_shift(computed, logits)
