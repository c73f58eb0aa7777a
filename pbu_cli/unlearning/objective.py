r"""The objective and its gradient.

With theta* the trained weights, S_n the forget images with labels s_n, K the set of forgotten
classes and z the logits, minimise over theta

    alpha * forgetting + delta * stability
        + sum_i (beta * F_i / mean(F) + gamma) * (theta_i - theta*_i)^2

The paper's objective is `delta = 0`, with forgetting = mean_n log P(s_n | x_n, theta). With
`delta > 0` forgetting is bounded below (`excess_odds`), and the stability term is added. To second
order this term is the quadratic form of the conditional Fisher information; it is computed exactly,
on the function instead of on the weights.

Source: Panda, Sourav, Prathosh, "Partially Blinded Unlearning", AAAI 2025, arXiv 2403.16246.

Index letters: n images, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pbu_cli.models.kernels.kernel_cropping import NO_CROPS, Crops
from pbu_cli.settings import Weights

SHRINKAGE = 0.05


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """mean_n log softmax(z_n)[s_n], the paper's forgetting term. logits [n, c], labels [n] -> [].

    It has no lower bound: if it runs on, it destroys the model.

    >>> log_likelihood(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 0])).exp()
    tensor(0.2500)
    """
    return -F.cross_entropy(logits, labels)


def log_odds(logits: Tensor, forgotten: Tensor) -> Tensor:
    """o_n = logsumexp_{c in K} z_nc - logsumexp_{c not in K} z_nc. [n, c], [c] bool -> [n].

    The second part is held constant, so that forgetting lowers the forgotten logits and does not
    raise the others.

    >>> log_odds(torch.zeros(1, 4), torch.tensor([True, False, False, False])).exp()
    tensor([0.3333])
    """
    # Masks fill the logits. To select them, the CPU would wait for the GPU to count the mask.
    others = logits.detach().masked_fill(forgotten, -math.inf).logsumexp(dim=1)
    return logits.masked_fill(~forgotten, -math.inf).logsumexp(dim=1) - others


def excess_odds(odds: Tensor, goal: float) -> Tensor:
    """mean_n relu(o_n - goal): 0 where no image's log odds are above the goal. [n] -> [].

    >>> excess_odds(torch.tensor([0.0, -9.0]), goal=0.0)
    tensor(0.)
    """
    return F.relu(odds - goal).mean()


def restricted_log_softmax(logits: Tensor, forgotten: Tensor) -> Tensor:
    """log softmax over the retained classes, 0 at the forgotten ones. [n, c], [c] bool -> [n, c].

    >>> restricted_log_softmax(torch.zeros(1, 3), torch.tensor([True, False, False])).exp()
    tensor([[1.0000, 0.5000, 0.5000]])
    """
    restricted = F.log_softmax(logits.masked_fill(forgotten, -math.inf), dim=1)
    return restricted.masked_fill(forgotten, 0.0)


def stability(logits: Tensor, reference: Tensor, forgotten: Tensor) -> Tensor:
    """mean_n KL(softmax z*_{c not in K} || softmax z_{c not in K}), nats. [n, c] -> [].

    `reference` is the restricted log-softmax at theta*, [n, c]. The result is 0 at theta*. To
    second order it is half the quadratic form of the Fisher information conditional on "not K".

    >>> gone = torch.tensor([True, False, False])
    >>> z = torch.tensor([[3.0, 1.0, 2.0]])
    >>> stability(z, restricted_log_softmax(z, gone), gone)
    tensor(0.)
    """
    restricted = restricted_log_softmax(logits, forgotten)
    return F.kl_div(restricted, reference, reduction="batchmean", log_target=True)


def penalty_weights(
    fisher: dict[str, Tensor],
    theta: dict[str, Tensor],
    weights: Weights,
    crops: Crops = NO_CROPS,
) -> dict[str, Tensor]:
    """beta * F / mean(F) + gamma, per parameter, with the mean over all parameters that train.

    theta: the parameters that train; where a kernel is cropped, its used region. fisher: the Fisher
    diagonal of these parameters, of whole kernels, so that the mean includes the unused weights. It
    may be empty if beta is 0. If it is zero everywhere, the result is gamma, not 0/0.
    """
    if not fisher or weights.beta == 0:
        return {name: torch.full_like(value, weights.gamma) for name, value in theta.items()}
    count = sum(fisher[name].numel() for name in theta)
    mean = sum(fisher[name].cpu().double().sum().item() for name in theta) / count
    scale = weights.beta / mean if mean > 0 else 0.0
    used = {name: crops[name].of(fisher[name]) if name in crops else fisher[name] for name in theta}
    return {name: value * scale + weights.gamma for name, value in used.items()}


@torch.no_grad()
def discriminant(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher's linear discriminant w = S^-1 (m - m') of two groups [n, d] and [n', d], and the
    squared Mahalanobis distance (m - m') . w of their means m and m'. -> [d], [].

    S is the mean of the two covariances, plus 5 % of their mean variance on the diagonal. Without
    these 5 %, two groups of so few samples would look separable by chance. For two normally
    distributed groups a linear probe is right in a share Phi(sqrt(distance) / 2) of cases.

    >>> group = torch.tensor([[-1.0], [1.0]])
    >>> w, distance = discriminant(group + 2, group)
    >>> round(distance.item(), 3)  # 2^2 / (1 + 0.05)
    3.81
    """
    means = one.mean(dim=0), other.mean(dim=0)
    centred = one - means[0], other - means[1]
    difference = means[0] - means[1]
    if len(one) + len(other) < one.shape[1]:
        direction = _solved_wide(centred, difference)
    else:
        covariances = [group.T @ group / len(group) for group in centred]
        pooled = (covariances[0] + covariances[1]) / 2
        shrinkage = SHRINKAGE * pooled.diagonal().mean() + torch.finfo(pooled.dtype).tiny
        pooled.diagonal().add_(shrinkage)
        # Not `solve`, which waits for the GPU to see whether it succeeded.
        direction = torch.linalg.solve_ex(pooled, difference)[0]
    return direction, direction @ difference


def _solved_wide(centred: tuple[Tensor, Tensor], difference: Tensor) -> Tensor:
    """S^-1 v of `discriminant` without a matrix [d, d], for fewer samples than features.

    With S = x^T x + s it is (v - x^T (x x^T + s)^-1 x v) / s, by Woodbury's identity.
    """
    x = torch.cat([group / math.sqrt(2 * len(group)) for group in centred])
    s = SHRINKAGE * x.square().sum() / x.shape[1] + torch.finfo(x.dtype).tiny
    gram = x @ x.T
    gram.diagonal().add_(s)
    inner: Tensor = torch.linalg.solve_ex(gram, x @ difference)[0]
    return (difference - x.T @ inner) / s


@torch.no_grad()
def penalised(
    gradients: Sequence[Tensor],
    theta: Sequence[Tensor],
    theta_star: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    scratch: Tensor | None = None,
) -> list[Tensor]:
    """gradient_i + curvature_i (theta_i - theta*_i): the gradient of a loss plus the penalty.

    curvature_i = 2 w_i, the second derivative of the penalty for the weights w_i of
    `penalty_weights`. This is the closed form; the penalty never passes through autograd.

    The result is new memory, because autograd may give two parameters the same tensor as their
    gradient. If there is only one tensor, the result can be computed in a buffer `scratch` of at
    least its size, which stays in the cache.

    >>> one, three = torch.tensor(1.0), torch.tensor(3.0)
    >>> penalised([one], [three], [one], [one])
    [tensor(3.)]
    """
    if scratch is not None:
        (value,), (star,) = theta, theta_star
        result = torch.sub(value, star, out=scratch[: value.numel()].view_as(value))
        return [torch.addcmul(gradients[0], result, curvatures[0], out=result)]
    moved = torch._foreach_sub(list(theta), list(theta_star))
    return list(torch._foreach_addcmul(list(gradients), moved, list(curvatures)))
