"""Training images, handed out in batches and counted: what a method has seen is measured, not
declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pbu_cli.data.preprocessing import batches, normalise
from pbu_cli.settings import Preprocessing


class CountingLoader:
    """uint8 pixels [n, k, h, w] and labels [n] on the CPU, whose batches go to `device`.

    `seen` hears of every batch how many images it has.

    >>> heard = []
    >>> pixels, labels = torch.zeros(5, 1, 1, 1, dtype=torch.uint8), torch.arange(5)
    >>> feed = CountingLoader(pixels, labels, Preprocessing((1, 1), (0.0,), (1.0,)), seen=heard.append)
    >>> [y.tolist() for _, y in feed.batches(2)], heard
    ([[0, 1], [2, 3], [4]], [2, 2, 1])
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        preprocessing: Preprocessing,
        device: torch.device | str = "cpu",
        seen: Callable[[int], None] = lambda images: None,
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.preprocessing, self.device, self.seen = preprocessing, torch.device(device), seen

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, index: Tensor) -> CountingLoader:
        """Some of the images, by index or mask, counted in the same place."""
        return CountingLoader(
            self.pixels[index], self.labels[index], self.preprocessing, self.device, self.seen
        )

    def rounds(self, size: int, *, full: bool = False) -> int:
        """How many batches `shuffled` makes of an epoch.

        An image that would be alone in its batch is left out: BatchNorm in training mode has no
        variance of it. With `full` every smaller batch is, unless it is the only one: BatchNorm's
        running statistics would be those of the few images that happened to come last.
        """
        rest = len(self) % size
        return len(self) // size + (rest > 1 and not (full and len(self) > size))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised inputs and labels, once through, in order."""
        if not len(self):
            return
        for inputs, labels in batches(
            self.pixels, self.labels, self.preprocessing, size, self.device
        ):
            self.seen(len(labels))
            yield inputs, labels

    def shuffled(
        self,
        size: int,
        generator: torch.Generator,
        varied: Callable[[Tensor], Tensor] = lambda pixels: pixels,
        *,
        full: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in an order drawn from `generator`, as many batches as `rounds` says; pixels
        `varied` before they are normalised."""
        order = torch.randperm(len(self), generator=generator)
        for index in order.split(size)[: self.rounds(size, full=full)]:
            pixels = varied(self.pixels[index]).to(self.device)
            self.seen(len(index))
            yield normalise(pixels, self.preprocessing), self.labels[index].to(self.device)
