"""What a network does around the forget images: on copies of them with small random noise.

The noise is uniform: every pixel value on the scale 0 to 1 is moved by at most `RADIUS`, and what
leaves the scale is cut off. All networks see the same noise. It is random and not adversarial, so
that it is the same for every network and no network has an advantage.

Two sources look at these copies. Ha, Park and Yoon, "Unlearning's blind spots", ICML 2026, arXiv
2506.01318, ask how much was destroyed beside the class (over-unlearning, OU@eps). Hsu et al., "The
unseen threat: residual knowledge in machine unlearning under perturbed samples", NeurIPS 2025,
arXiv 2601.22359, ask whether the class is still recognised there (residual knowledge, r_tau).

Index letters: n images, c classes, r noisy copies of an image.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pbu_cli.data.preprocessing import model_inputs
from pbu_cli.evaluation.outputs import AUDIT_BATCH
from pbu_cli.evaluation.statistics import bootstrap
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.unlearning.objective import restricted_log_softmax

RADIUS = 8 / 255  # of the noise, on pixels from 0 to 1
COPIES = 4  # noisy copies of each image
MAX_IMAGES = 250  # forget images that are copied


def noisy_copies(pixels: Tensor, copies: int, radius: float, seed: int) -> Iterator[Tensor]:
    """Noisy copies of uint8 images [n, k, h, w]: float32 [k, h, w] each, on the scale 0 to 255.

    All copies of the first image come first, then those of the second. The noise of an image does
    not depend on how the images are batched.

    >>> black = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    >>> noise = torch.stack(list(noisy_copies(black, 1000, 0.1, seed=0)))
    >>> float(noise.min()), 25 < float(noise.max()) <= 25.5    # half of it is cut off at 0
    (0.0, True)
    """
    generator = torch.Generator().manual_seed(seed)
    for image in pixels:
        for _ in range(copies):
            noise = torch.rand(image.shape, generator=generator) * 2 - 1
            yield (image.cpu() + 255 * radius * noise).clamp_(0, 255)


def noisy_batches(pixels: Tensor, prepared: UnlearningInputs, seed: int) -> Iterator[Tensor]:
    """`COPIES` noisy copies of each image as an audit's batches of model inputs, on the device."""
    batch: list[Tensor] = []
    total = COPIES * len(pixels)
    for number, copy in enumerate(noisy_copies(pixels, COPIES, RADIUS, seed), start=1):
        batch.append(copy)
        if len(batch) == min(AUDIT_BATCH, prepared.batch_size) or number == total:
            yield model_inputs(torch.stack(batch), prepared.preprocessing, prepared.loaded.device)
            batch = []


def over_unlearning(logits: Tensor, original: Tensor, forgotten: Tensor) -> Tensor:
    """KL divergence of the distributions over the retained classes, by image: [n, c] -> [n], nats.

    KL(softmax z*_{c not in K} || softmax z_{c not in K}), where z* are the original's logits and K
    the forgotten classes, bool [c]. It is 0 for the head mask: only what changes among the retained
    classes counts. OU@eps is its mean over noisy copies of the forget images. The source's code has
    the Jensen-Shannon divergence from the result's whole softmax instead, on copies with noise or
    after three steps of an attack. There what is left of the class counts as over-unlearning too.

    >>> z = torch.tensor([[9.0, 0, 0]])
    >>> y = torch.tensor([[0.0, 3, 1]]).log()   # probabilities .75 and .25 of the retained classes
    >>> gone = torch.tensor([True, False, False])
    >>> over_unlearning(y, z, gone)   # .5 log(.5 / .75) + .5 log(.5 / .25)
    tensor([0.1438], dtype=torch.float64)
    """
    own = restricted_log_softmax(logits.double(), forgotten)
    reference = restricted_log_softmax(original.double(), forgotten)
    # Both are 0 at the forgotten classes, which therefore add nothing.
    return (reference.exp() * (reference - own)).sum(dim=1).clamp_min(0.0)


def recognised(logits: Tensor, labels: Tensor, copies: int) -> Tensor:
    """Share of its noisy copies that are predicted as the image's own class: [n], 0 to 1.

    logits [n copies, c], all copies of an image after each other; int64 labels [n].

    >>> recognised(torch.eye(2)[[0, 1, 1, 1]], torch.tensor([0, 1]), copies=2)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    predictions = logits.argmax(dim=1).cpu().view(len(labels), copies)
    return (predictions == labels[:, None]).double().mean(dim=1)


def residual_knowledge(
    shares: Tensor, retrained: Tensor, *, seed: int = 0
) -> tuple[float, tuple[float, float]] | None:
    """r_tau: the share of noisy copies that are recognised, over the retrained network's share.

    shares, retrained: of each image's copies, from `recognised`, [n]. About 1 is wanted: above it
    the network knows more around the images than one that never saw them. None where the retrained
    network recognises no copy at all, as is usual where its head kept a row for the class that was
    never trained. The interval is a bootstrap over the images, in which the divisor is one copy of
    one image at least, so that it stays finite.

    The source averages the ratios of single images. A class has many images of which the retrained
    network recognises no copy, and whose ratio is not defined. So this is the ratio of the means.

    >>> residual_knowledge(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.25]))[0]
    2.0
    >>> residual_knowledge(torch.tensor([0.5, 1.0]), torch.zeros(2)) is None
    True
    """
    divisor = float(retrained.double().mean())
    if divisor == 0:
        return None
    least = 1 / (COPIES * len(shares))

    def ratio(pairs: Tensor) -> Tensor:
        means = pairs.mean(dim=-2)
        return means[..., 0] / means[..., 1].clamp_min(least)

    pairs = torch.stack([shares, retrained], dim=1).double()
    return float(shares.double().mean()) / divisor, bootstrap((pairs,), ratio, seed=seed)


def per_image(values: Tensor, copies: int) -> Tensor:
    """The mean over the copies of each image: [n copies] -> [n]."""
    return values.view(-1, copies).mean(dim=1)


def chosen_images(count: int, seed: int) -> Tensor:
    """Which of `count` images are copied: at most `MAX_IMAGES`, int64, drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:MAX_IMAGES].sort().values
