"""Copies of images: shifted, mirrored, and whether a network recognises the mirrored ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(pixels: Tensor, copies: int, seed: int) -> Tensor:
    """The images, then `copies` - 1 times each of them shifted by up to an eighth of its height
    and width, the edge repeated. uint8 [n, k, h, w] -> [copies n, k, h, w].

    A few images stand for a class better where each is seen at several places.

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
    rows[0], columns[0] = torch.arange(h), torch.arange(w)
    rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    places = (torch.arange(n)[:, None, None], slice(None))
    moved = [
        pixels[(*places, r[:, :, None], c[:, None, :])] for r, c in zip(rows, columns, strict=True)
    ]
    return torch.cat([images.movedim(-1, 1) for images in moved])


def recognised_mirrored(answers: Tensor, mirrored: Tensor, labels: Tensor) -> float:
    """How many mirror images are given their class for each image that is, in the class where that
    is least: about 1 for things that have no left and right, less for digits. Logits [n, c] twice,
    labels [n].

    >>> digits = torch.eye(3)
    >>> recognised_mirrored(digits, digits[[0, 0, 2]], torch.arange(3))
    0.0
    """
    known, still = (
        torch.bincount(labels[found.argmax(dim=1) == labels], minlength=answers.shape[1])
        for found in (answers, mirrored)
    )
    return float((still * (known > 0) / known.clamp(min=1))[labels.unique()].min())


def augment(pixels: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to `pad` pixels both ways and, with `flip`, mirrored half of the
    time. uint8 [n, k, h, w] -> the same shape.

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
