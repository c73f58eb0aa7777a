"""The prefix that a wrapper has put before the names of a network's tensors.

`DataParallel` writes `module.`, `torch.compile` `_orig_mod.`, a LightningModule the name of the
attribute that holds the network. A wrapper may have a few numbers of its own beside the network's,
such as `n_averaged` of an `AveragedModel` or `criterion.weight` of a loss: these are left over.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

MAX_PARTS = 8  # parts of a prefix, each of which ends in a dot
LEFT_NAMES, LEFT_NUMBERS = 0.2, 0.1  # at most this share of names and of numbers is left over
FEW = 4  # numbers, such as the mean of the channels; with more only vectors are left over


def common_prefix(sizes: Mapping[str, Sequence[int]]) -> str:
    """The longest prefix of at most MAX_PARTS parts that all names share, or nearly all of them.

    sizes: the shape of each tensor by its name. Names may be left over where they are few and
    where none of them is a layer's weight, which has two dimensions or more: `features.` is no
    prefix of a network with the head `classifier.weight`.

    >>> common_prefix({"net.fc.weight": (2, 3), "net.fc.bias": (2,), "net.conv.weight": (3, 3)})
    'net.'
    """
    prefix, names = "", list(sizes)
    for _ in range(MAX_PARTS):
        longer = _longer(prefix, names, sizes)
        if longer is None:
            break
        prefix = longer
        names = [name for name in names if name.startswith(prefix)]
    return prefix


def left_over(names: Sequence[str], prefix: str) -> tuple[str, ...]:
    """The names that do not begin with the prefix."""
    return tuple(name for name in names if not name.startswith(prefix))


def _longer(prefix: str, names: list[str], sizes: Mapping[str, Sequence[int]]) -> str | None:
    """The prefix with the next part of nearly all names, None if there is none."""
    ends = Counter(name.find(".", len(prefix)) for name in names)
    if set(ends) == {-1}:
        return None
    parts = Counter(name[: end + 1] for name in names if (end := name.find(".", len(prefix))) >= 0)
    longer, count = parts.most_common(1)[0]
    if count == len(names):
        return longer
    rest = left_over(names, longer)
    numbers = sum(math.prod(sizes[name]) for name in names)
    few = len(rest) <= LEFT_NAMES * len(names)
    small = sum(math.prod(sizes[name]) for name in rest) <= LEFT_NUMBERS * numbers
    weightless = all(len(sizes[name]) < 2 or math.prod(sizes[name]) <= FEW for name in rest)
    return longer if few and small and weightless else None
