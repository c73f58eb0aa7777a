"""Published data sets, read in the layout in which torchvision unpacks them.

Files are not trusted: only regular files of a bounded size are read, images go through `data`, and
a pickle is loaded only if its digest is that of the published file. torchvision itself only
downloads.
"""

from __future__ import annotations

from torch import Tensor

Pixels = tuple[Tensor, Tensor]  # uint8 [n, k, h, w], and labels int64 [n]
Splits = tuple[tuple[str, ...], list[Pixels]]  # the classes by label; training and test split
