"""Which retained classes have lost accuracy, and how like the forgotten class each of them is.

A mean over 999 classes hides a class that is gone: it moves by a tenth of a point. So the change of
every class is measured, between the original and the checkpoint and on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pbu_cli.errors import printable
from pbu_cli.evaluation.compare import Comparison
from pbu_cli.evaluation.metrics import prediction_shares
from pbu_cli.evaluation.outputs import HEAD_MASK
from pbu_cli.inputs.loaded_model import LoadedModel

FEW_IMAGES = 20  # of a class; where there are fewer, one image is over 5 points


@dataclass(frozen=True)
class ClassLoss:
    """What a retained class has lost. The fields are keys of the JSON document.

    images: how many retained images are of the class. before, after: percent of them that the
    original and the checkpoint recognise. change: after - before, in percentage points; below 0 is
    a loss. head_mask, retrained: percent that the head mask recognises, which costs nothing, and
    the retrained network, which loses some classes by chance; None without it. likeness: percent
    of the forget images that the original predicts as this class where the forgotten logit is
    masked. cosine: of the head's rows of this and of the forgotten class, once the mean row of all
    classes is taken off; the largest of several forgotten classes; None without a linear head.
    """

    label: int
    name: str | None
    images: int
    before: float
    after: float
    change: float
    head_mask: float
    retrained: float | None
    likeness: float
    cosine: float | None


def class_losses(comparison: Comparison) -> tuple[ClassLoss, ...]:
    """Every retained class, the one that lost most first; empty without original or retained
    images."""
    retained, outputs = comparison.retained, comparison.outputs
    if retained is None or "original" not in outputs:
        return ()
    count = comparison.prepared.loaded.network.num_classes
    images = retained.labels.bincount(minlength=count).tolist()
    before, after, masked = (
        recognised_by_class(outputs[name].retain_predictions, retained.labels, count).tolist()
        for name in ("original", "checkpoint", HEAD_MASK)
    )
    retrained = None
    if "retrained" in outputs:
        predictions = outputs["retrained"].retain_predictions
        retrained = recognised_by_class(predictions, retained.labels, count).tolist()
    predicted = outputs[HEAD_MASK].forget_logits.argmax(dim=1).cpu()
    likeness = prediction_shares(predicted, count)
    cosines = row_cosines(comparison.loaded_models["original"], comparison.prepared.forgotten.cpu())
    names = comparison.prepared.loaded.description.label_names
    found = [
        ClassLoss(
            label=c,
            name=None if names is None else names[c],
            images=images[c],
            before=100 * before[c] / images[c],
            after=100 * after[c] / images[c],
            change=100 * (after[c] - before[c]) / images[c],
            head_mask=100 * masked[c] / images[c],
            retrained=None if retrained is None else 100 * retrained[c] / images[c],
            likeness=likeness.get(c, 0.0),
            cosine=None if cosines is None else cosines[c],
        )
        for c in range(count)
        if images[c]
    ]
    return tuple(sorted(found, key=lambda loss: (loss.change, loss.label)))


def recognised_by_class(predictions: Tensor | None, labels: Tensor, count: int) -> Tensor:
    """How many images of each class are recognised. int64 [n], [n] -> int64 [count].

    >>> import torch
    >>> recognised_by_class(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
    tensor([1, 1, 0])
    """
    assert predictions is not None
    return labels[predictions == labels].bincount(minlength=count)


def centred_cosines(rows: Tensor, forgotten: Tensor) -> Tensor:
    """Cosine of each row and the forgotten row, less the mean row: [c, d], bool [c] -> [c].

    The mean row moves all logits of an image alike, so that softmax ignores it. Of several
    forgotten rows the largest cosine counts. 0 for a row that is the mean row.

    >>> import torch
    >>> rows = torch.tensor([[2.0, 1], [0, 1], [1, 1]])   # less the mean: [1, 0], [-1, 0], [0, 0]
    >>> centred_cosines(rows, torch.tensor([True, False, False]))
    tensor([ 1., -1.,  0.], dtype=torch.float64)
    """
    centred = rows.double() - rows.double().mean(dim=0)
    unit = nn.functional.normalize(centred, dim=1)
    return (unit @ unit[forgotten].T).amax(dim=1)


def row_cosines(original: LoadedModel, forgotten: Tensor) -> list[float] | None:
    """`centred_cosines` of the rows of a network's head; None for a head without a row a class."""
    network = original.network
    head = network.layout.head_layer
    layer = None if head is None else network.module.get_submodule(head)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return None
    rows = layer.weight.detach().cpu().flatten(1)
    if len(rows) != network.num_classes:
        return None
    found: list[float] = centred_cosines(rows, forgotten).tolist()
    return found


def few_images(losses: Sequence[ClassLoss]) -> str:
    """A sentence on the classes whose change is coarse, as they have few images; empty without."""
    few = [loss.images for loss in losses if loss.images < FEW_IMAGES]
    if not few:
        return ""
    return (
        f"{len(few)} of {len(losses)} classes have fewer than {FEW_IMAGES} images, down to"
        f" {min(few)}: one image of such a class is {100 / max(few):.1f} points or more"
    )


def worst_of_others(losses: Sequence[ClassLoss]) -> str:
    """What the worst class of the control and of the retrained network changes by: by so much a
    class changes for nothing, and by training again."""
    masked = min(one.head_mask - one.before for one in losses)
    text = f"the worst class of the head mask changes by {masked:+.2f} points"
    retrained = [one.retrained - one.before for one in losses if one.retrained is not None]
    return text + (f", of the retrained network by {min(retrained):+.2f}" if retrained else "")


def worst_class_basis(losses: Sequence[ClassLoss], files: tuple[str, str]) -> str:
    """What the value of `worst_class` is. files: the names of the checkpoint and the original."""
    if not losses:
        return "no retained image"
    worst = losses[0]
    name = f"{worst.label}" if worst.name is None else f"{worst.label} {worst.name}"
    text = (
        f"points from {files[1]} to {files[0]} of the class that lost most of {len(losses)}, class"
        f" {name}: {worst.before:.2f} to {worst.after:.2f} % of its {worst.images:,} retained"
        f" images, of which one is {100 / worst.images:.2f} points"
    )
    return printable("; ".join(part for part in (text, few_images(losses)) if part), 1000)
