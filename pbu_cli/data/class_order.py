"""In which order folders of classes stand for the classes of a network.

A folder called `10` is class 10 by its name. In a network that was trained with torchvision's
ImageFolder it is class 2, the position of `10` among the sorted names `0`, `1`, `10`, `11`, `2`.
Folders may also be numbered from 1. Nothing in a checkpoint tells which, so that the network's
predictions are held against the order that is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.data.label_names import label_from_name

MIN_RATIO, MIN_GAIN = 2.0, 20.0  # of the better order's accuracy; the gain in points
MIN_CLASSES = 3  # that gain as much, or all that the orders disagree on if those are fewer
NAME, POSITION, ONE_BASED = "name", "position", "one-based"  # the values of --retain-order
POSITION_FROM_ONE = "position among numbers from 1"


@dataclass(frozen=True)
class BetterOrder:
    """An order that fits the predictions far better than the one that is used.

    recognised, used_recognised: percent of the images, as the mean over the `classes` classes on
    which the two orders disagree.
    """

    order: str
    recognised: float
    used_recognised: float
    classes: int

    def __str__(self) -> str:
        order = {
            NAME: "by their names",
            POSITION: "by their alphabetical position, as torchvision's ImageFolder numbers them",
            ONE_BASED: "by their numbers less one",
            POSITION_FROM_ONE: "by their alphabetical position among numbers from 1",
        }[self.order]
        return (
            f"the network recognises {self.used_recognised:.1f} % of the images of {self.classes}"
            f" folders as the classes that are used, and {self.recognised:.1f} % as those {order}"
        )


def class_orders(
    names: Sequence[str],
    class_names: Sequence[str] | None,
    num_classes: int,
    ids: Sequence[str] | None = None,
) -> dict[str, list[int]]:
    """Every order that gives each of `names` a class of its own, as one class a name.

    If there are fewer names than classes, the position is the one among all names that there would
    be: of all class names, or of all numbers.

    >>> orders = class_orders(["0", "10", "2"], None, 12)
    >>> orders["name"], orders["position"]
    ([0, 10, 2], [0, 2, 4])
    """
    by_name = [
        label_from_name(name, class_names, num_classes, strict=True, ids=ids) for name in names
    ]
    numbers = _numbers(names)
    found: dict[str, list[int | None]] = {NAME: by_name}
    if len(names) == num_classes:
        found[POSITION] = _positions(names, names)
    elif numbers is not None:
        texts = [str(number) for number in numbers]
        found[POSITION] = _positions(texts, [str(n) for n in range(num_classes)])
        found[POSITION_FROM_ONE] = _positions(texts, [str(n + 1) for n in range(num_classes)])
    elif class_names is not None and None not in by_name:
        known = [class_names[label] for label in by_name if label is not None]
        found[POSITION] = _positions(known, class_names)
    if numbers is not None:
        found[ONE_BASED] = [n - 1 if 1 <= n <= num_classes else None for n in numbers]
    return {
        order: [label for label in labels if label is not None]
        for order, labels in found.items()
        if None not in labels and len(set(labels)) == len(labels)
    }


def better_order(
    predictions: Tensor, used: Tensor, others: Mapping[str, Tensor]
) -> BetterOrder | None:
    """The order that fits the predictions far better than the one used, if there is one.

    predictions: int64 [n], the class predicted for each image. used: its class in the order that
    is used, int64 [n]. others: the same in other orders.

    Only the classes on which the orders disagree count. The accuracy, a mean over these classes,
    has to be twice as high in the other order, and higher by 20 points, for at least three classes
    too: a network that is merely bad fits no order.
    """
    found = []
    for order, labels in others.items():
        classes = used[used != labels].unique().tolist()
        shares = [
            (_share(predictions, labels, used == c), _share(predictions, used, used == c))
            for c in classes
        ]
        gaining = sum(one >= two + MIN_GAIN for one, two in shares)
        if len(classes) < 2 or gaining < min(MIN_CLASSES, len(classes)):
            continue
        one, two = torch.tensor(shares, dtype=torch.float64).mean(dim=0).tolist()
        if one >= two + MIN_GAIN and one >= MIN_RATIO * two:
            found.append(BetterOrder(order, one, two, len(classes)))
    return max(found, key=lambda better: better.recognised, default=None)


def _share(predictions: Tensor, labels: Tensor, chosen: Tensor) -> float:
    """Percent of the chosen images that are predicted as their label."""
    return 100 * (predictions[chosen] == labels[chosen]).double().mean().item()


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The numbers of names such as `7` or `class7`, if all are alike and none has a leading 0,
    with which the order of the names would be that of the numbers."""
    matches = [re.fullmatch(r"(\D*?)(0|[1-9][0-9]{0,8})", name) for name in names]
    if not all(matches) or len({match[1] for match in matches if match}) != 1:
        return None
    return [int(match[2]) for match in matches if match]


def _positions(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """The position of each name among the sorted names `among`; None where it is not there."""
    position = {name: k for k, name in enumerate(sorted(among, key=os.fsencode))}
    return [position.get(name) for name in names]
