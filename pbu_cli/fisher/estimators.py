"""Output vectors: what to backpropagate so that squared gradients sum to the Fisher information.

For one image with logits z [C], p = softmax(z) and J = dz/dtheta, every estimator is

    diag F = sum over output vectors v of (J^T v)^2

    empirical    v = e_s - p, for the image's own label s
    exact        C - 1 vectors with sum v v^T = diag(p) - p p^T = E_y[(e_y - p)(e_y - p)^T]
    monte_carlo  v = (e_y - p) / sqrt(K), for K labels y drawn from p; its mean is `exact`

Letters: n image, j class, k draw. Sources: Kunstner, Balles, Hennig, "Limitations of the
empirical Fisher approximation", arXiv 1905.12558; Tanabe, Sagae, "An exact Cholesky decomposition
and the generalized inverse of the variance-covariance matrix of the multinomial distribution",
J. R. Statist. Soc. B 54, 1992.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pbu_cli.errors import ImageError


def empirical(logits: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """logits [n, j], labels [n] -> one output vector [n, j], the gradient of log p(labels).

    >>> [v.tolist() for v in empirical(torch.zeros(1, 2), torch.tensor([1]))]
    [[[-0.5, 0.5]]]
    """
    yield _one_hot_minus(logits.softmax(1), labels)


def exact(logits: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """logits [n, j] -> C - 1 output vectors [n, j]. The labels are not used.

    Vector j is column j of the Cholesky factor. It sets class j against all later classes together,

        v = sqrt(p_j q_j / (p_j + q_j)) (e_j - p_{>j} / q_j),    q_j = sum_{i > j} p_i.

    It is computed in logarithms, so that a class of probability 1e-300 still counts.

    >>> [v.tolist() for v in exact(torch.zeros(1, 2), torch.tensor([0]))]  # sqrt(1/4) (1, -1)
    [[[0.5, -0.5]]]
    """
    log_p = logits.log_softmax(1)
    lowest = torch.finfo(log_p.dtype).min  # replaces log 0, since -inf - -inf is NaN
    for j in range(log_p.shape[1] - 1):
        log_after = log_p[:, j + 1 :].logsumexp(1, keepdim=True).clamp_min(lowest)
        log_from_j = log_p[:, j:].logsumexp(1, keepdim=True).clamp_min(lowest)
        v = torch.zeros_like(log_p)
        v[:, j] = 1
        v[:, j + 1 :] = -(log_p[:, j + 1 :] - log_after).exp()
        yield v * ((log_p[:, j : j + 1] + log_after - log_from_j) / 2).exp()


def monte_carlo(logits: Tensor, uniform: Tensor) -> Iterator[Tensor]:
    """logits [n, j], uniform [n, k] in [0, 1) -> K output vectors [n, j].

    Draw k of image n is the class at which the cumulative probability exceeds uniform[n, k].

    >>> [v.tolist() for v in monte_carlo(torch.zeros(1, 2), torch.tensor([[0.7]]))]
    [[[-0.5, 0.5]]]
    """
    p = logits.softmax(1)
    # MPS has no float64, and CUDA does not sum in a fixed order.
    on_device = p.is_cuda and not torch.are_deterministic_algorithms_enabled()
    cumulative = (p if on_device else p.cpu()).double().cumsum(1)
    thresholds = uniform.to(cumulative)
    labels = torch.searchsorted(cumulative / cumulative[:, -1:], thresholds, right=True)
    for k in range(uniform.shape[1]):
        yield _one_hot_minus(p, labels[:, k].to(p.device)) / uniform.shape[1] ** 0.5


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise ImageError if a label is not one of the model's classes.

    >>> check_labels(torch.tensor([0, 2]), 2)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    pbu_cli.errors.ImageError: labels go from 0 to 2, but the model has 2 classes, 0 to 1; ...
    """
    low, high = torch.stack(labels.aminmax()).tolist() if len(labels) else (0, 0)
    if not 0 <= low <= high < classes:
        raise ImageError(
            f"labels go from {low} to {high}, but the model has {classes} classes, 0 to"
            f" {classes - 1}; give the label of the class to forget"
        )


def _one_hot_minus(p: Tensor, labels: Tensor) -> Tensor:
    """e_y - p. The entry 1 - p_y is summed from the other classes, which keeps its digits where p_y
    is close to 1."""
    others = p.scatter(1, labels[:, None], 0)
    return (-others).scatter(1, labels[:, None], others.sum(1, keepdim=True))
