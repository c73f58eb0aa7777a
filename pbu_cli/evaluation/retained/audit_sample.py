"""Which of the retained images an audit reads: all, or a sample of every class.

An audit fits classifiers to features and tunes networks on pixels, so that it holds its images in
memory. The accuracies need no sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_IMAGES = 10_000  # about the test split of CIFAR-10
MAX_BYTES = 2 << 30  # of uint8 pixels; 10,000 images of 224x224 take 1.5 GB


def sample_size(count: int, bytes_each: int) -> int:
    """How many of `count` images an audit reads.

    >>> sample_size(9000, 3 * 32 * 32), sample_size(49950, 3 * 224 * 224)
    (9000, 10000)
    >>> sample_size(49950, 3 * 512 * 512)
    2730
    """
    return min(count, MAX_IMAGES, max(1, MAX_BYTES // bytes_each))


def stratified_sample(labels: Tensor, size: int, seed: int) -> Tensor:
    """The indices of `size` of the images, in their order: int64 [n] -> int64 [size].

    The images of each class are shuffled and the classes put in a row, of which every (n / size)-th
    image is taken. So a class with n_c images has n_c size / n of them in the sample, rounded up or
    down. `seed` decides which. All images, where `size` is n.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified_sample(labels, 3, seed=0)]
    tensor([0, 0, 1])
    """
    count = len(labels)
    if size >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(count, generator=generator)
    row = shuffled[labels[shuffled].argsort(stable=True)]
    return row[torch.arange(size) * count // size].sort().values
