"""Training images in batches, with a count of the images handed out.

The benchmark reports how many images a method reads. The loader counts them, so that the number
does not depend on what a method says about itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pbu_cli.data.preprocessing import batches, normalise
from pbu_cli.settings import Preprocessing


class CountingLoader:
    """uint8 pixels [n, k, h, w] and int64 labels [n] on the CPU; batches are moved to `device`.

    count_images: called with the number of images in each batch before the batch is handed out.

    >>> counts = []
    >>> pixels, labels = torch.zeros(5, 1, 1, 1, dtype=torch.uint8), torch.arange(5)
    >>> unit = Preprocessing((1, 1), (0.0,), (1.0,))
    >>> loader = CountingLoader(pixels, labels, unit, count_images=counts.append)
    >>> [y.tolist() for _, y in loader.batches(2)], counts
    ([[0, 1], [2, 3], [4]], [2, 2, 1])
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        preprocessing: Preprocessing,
        device: torch.device | str = "cpu",
        count_images: Callable[[int], None] = lambda images: None,
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.preprocessing, self.device = preprocessing, torch.device(device)
        self.count_images = count_images

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> CountingLoader:
        """The images at these indices or under this mask, with the same counter."""
        return CountingLoader(
            self.pixels[index],
            self.labels[index],
            self.preprocessing,
            self.device,
            self.count_images,
        )

    def batches_per_epoch(self, size: int, *, drop_last: bool = False) -> int:
        """How many batches `shuffled` yields.

        A last batch of one image is always dropped, because BatchNorm in training mode cannot
        compute a variance from one image. With `drop_last` every incomplete batch is dropped,
        unless it is the only batch: BatchNorm's running statistics would otherwise depend on the
        few images that happen to come last.
        """
        rest = len(self) % size
        return len(self) // size + (rest > 1 and not (drop_last and len(self) > size))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over all images in order, as (normalised inputs, labels)."""
        if not len(self):
            return
        for inputs, labels in batches(
            self.pixels, self.labels, self.preprocessing, size, self.device
        ):
            self.count_images(len(labels))
            yield inputs, labels

    def shuffled(
        self,
        size: int,
        generator: torch.Generator,
        transform: Callable[[Tensor], Tensor] = lambda pixels: pixels,
        *,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of `batches_per_epoch` batches, in an order drawn from `generator`.

        transform: applied to the uint8 pixels of each batch before they are normalised.
        """
        order = torch.randperm(len(self), generator=generator)
        count = self.batches_per_epoch(size, drop_last=drop_last)
        for index in order.split(size)[:count]:
            pixels = transform(self.pixels[index]).to(self.device)
            self.count_images(len(index))
            yield normalise(pixels, self.preprocessing), self.labels[index].to(self.device)
