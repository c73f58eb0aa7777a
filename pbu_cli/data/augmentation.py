"""Shifted and mirrored copies of images, and how well a network recognises the mirrored ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(pixels: Tensor, copies: int, seed: int) -> Tensor:
    """The images, followed by `copies` - 1 shifted copies of all of them.

    Each copy of each image is shifted by up to an eighth of its height and width, and the pixels at
    the edge are repeated. A few images represent a class better where each is seen in several
    positions. uint8 [n, k, h, w] -> [copies n, k, h, w].

    >>> shifted(torch.tensor([[[[1, 2]]]], dtype=torch.uint8), 3, seed=0).flatten()
    tensor([1, 2, 1, 2, 1, 2], dtype=torch.uint8)
    """
    n, _, h, w = pixels.shape
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (
        (torch.randint(-(size // 8), size // 8 + 1, (copies, n, 1), generator=generator))
        + torch.arange(size)
        for size in (h, w)
    )
    rows[0], columns[0] = torch.arange(h), torch.arange(w)  # the first copies are not shifted
    rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    index = (torch.arange(n)[:, None, None], slice(None))
    moved = [
        pixels[(*index, r[:, :, None], c[:, None, :])] for r, c in zip(rows, columns, strict=True)
    ]
    return torch.cat([images.movedim(-1, 1) for images in moved])


def recognised_mirrored(logits: Tensor, mirrored_logits: Tensor, labels: Tensor) -> float:
    """Share of mirrored images recognised, relative to the unmirrored ones.

    For each class it is the number of mirrored images recognised over the number of unmirrored
    images recognised. Returns the smallest share of all classes, 0 for a class with no image
    recognised. The share is about 1 for objects that have no left and right, and less for digits.
    logits and mirrored_logits [n, c], labels [n].

    >>> digits = torch.eye(3)
    >>> recognised_mirrored(digits, digits[[0, 0, 2]], torch.arange(3))
    0.0
    """
    recognised, also_mirrored = (
        torch.bincount(labels[z.argmax(dim=1) == labels], minlength=logits.shape[1])
        for z in (logits, mirrored_logits)
    )
    shares = also_mirrored * (recognised > 0) / recognised.clamp(min=1)
    return float(shares[labels.unique()].min())


def augment(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crops as in training: each image is shifted by up to `pad` pixels in both directions.

    The pixels beyond the edge are black. With `flip`, each image is mirrored with probability 1/2.
    uint8 [n, k, h, w] -> the same shape.

    >>> one = torch.tensor([[[[1, 2]]]], dtype=torch.uint8)
    >>> seen = {tuple(augment(one, 0, True, torch.Generator().manual_seed(s)).flatten().tolist())
    ...         for s in range(8)}
    >>> sorted(seen)
    [(1, 2), (2, 1)]
    """
    if not pad and not flip:
        return pixels
    n, _, h, w = pixels.shape
    rows = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator) + torch.arange(h)
    columns = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator) + torch.arange(w)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(pixels, (pad, pad, pad, pad))
    images = torch.arange(n)[:, None, None]
    return padded[images, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
