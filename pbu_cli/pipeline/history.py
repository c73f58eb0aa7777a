"""What earlier runs have made the network forget: read before a run, and written by it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pbu_cli.errors import PbuError, printable
from pbu_cli.evaluation.metrics import accuracy, prediction_shares
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.settings import FORGOTTEN

ANSWERS_KEPT = 20  # predicted classes, the commonest ones, that an output's metadata name


class AlreadyForgotten(PbuError):
    """The network has forgotten every class that was asked for, so that nothing is left to do."""

    exit_code = 0


def check_not_forgotten(inputs: UnlearningInputs) -> None:
    """Raise AlreadyForgotten where the metadata and the images say that nothing is left to do.

    The metadata have to call every class of the images forgotten, and the network may recognise as
    few images as a run that ends well leaves.
    """
    loaded = inputs.loaded
    classes = sorted(set(inputs.image_labels.tolist()))
    recognised = accuracy(inputs.logits.argmax(dim=1).cpu(), inputs.image_labels)
    if set(classes) <= set(loaded.description.forgotten) and recognised <= FORGOTTEN:
        names = ", ".join(map(loaded.class_name, classes))
        raise AlreadyForgotten(
            f"{printable(loaded.checkpoint.path)}: already forgotten: {names}"
            f" ({loaded.description.sources['forgotten']}; {recognised:.2f} % of"
            f" {len(inputs.image_labels)} images recognised); nothing was written: pass --again to"
            " run all the same"
        )


def answers_entry(
    loaded: LoadedModel, labels: Tensor, predictions: Tensor
) -> dict[str, dict[str, float]]:
    """What the output's metadata say of the predictions for the images of each forgotten class.

    labels, predictions: int64 [n]. The values are percent of the images, to one decimal place. They
    show a later run that its images are of a class that was forgotten.
    """
    answers: dict[str, Any] = {
        str(label): {str(c): share for c, share in before.items()}
        for label, before in loaded.description.answers.items()
    }
    for label in sorted(set(labels.tolist())):
        shares = prediction_shares(predictions[labels == label], loaded.network.num_classes)
        commonest = list(shares.items())[:ANSWERS_KEPT]
        answers[str(label)] = {str(c): round(share, 1) for c, share in commonest}
    return answers
