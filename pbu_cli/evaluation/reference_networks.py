"""The networks of --original and --retrained: what they cannot be, and what speaks against them.

A comparison is worth as much as the network that is compared with. What makes it meaningless is an
error; what may have a reason is a warning of one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError, ImageError, printable
from pbu_cli.evaluation.metrics import accuracy_per_class
from pbu_cli.evaluation.scores import Scores
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.model_config import RECORD, Description
from pbu_cli.models.network import COUNTER
from pbu_cli.settings import InputOptions

RECOGNISED = 5.0  # percent of a class's images; a network that recognises fewer does not know it
KNOWN = 50.0  # percent of a class's images that the original recognises of a class it knows well
LOST = 0.2  # a class is lost if the checkpoint recognises at most this share of what it did


def require_equal(what: str, counts: Mapping[str, object]) -> None:
    """Raise CheckpointError where a network has not as many of `what` as the checkpoint."""
    expected = counts["checkpoint"]
    for name, count in counts.items():
        if count != expected:
            raise CheckpointError(
                f"--{name}: has {count} {what} where the checkpoint has {expected}, so that they"
                f" cannot be compared; expected a network with as many {what}"
            )


def require_comparable(loaded_models: Mapping[str, LoadedModel]) -> None:
    """Raise CheckpointError for a network with other classes, and for an original with other
    tensors: unlearning changes no name and no shape."""
    require_equal("classes", {n: m.network.num_classes for n, m in loaded_models.items()})
    checkpoint = loaded_models["checkpoint"]
    names = checkpoint.description.label_names
    for name, loaded in loaded_models.items():
        other = loaded.description.label_names
        if None not in (names, other) and names != other:
            assert names is not None
            assert other is not None
            index = next(
                k for k, pair in enumerate(zip(names, other, strict=True)) if len(set(pair)) > 1
            )
            raise CheckpointError(
                f"--{name}: calls class {index} {printable(other[index], 40)} where the checkpoint"
                f" calls it {printable(names[index], 40)}; expected a network with the same classes"
                " in the same order: mend label_names in config.json or the metadata"
            )
    if "original" in loaded_models:
        original = loaded_models["original"]
        mine, theirs = (
            {n: t.shape for n, t in m.network.module.state_dict().items()}
            for m in (checkpoint, original)
        )
        different = [n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n)]
        if different:
            raise CheckpointError(
                f"--original: {printable(original.network.name)} has another architecture than the"
                f" checkpoint, {printable(checkpoint.network.name)}: {len(different)} tensors"
                f" differ, first {printable(min(different))}; expected the checkpoint before"
                " unlearning"
            )


def pairs_of_same_weights(loaded_models: Mapping[str, LoadedModel]) -> tuple[tuple[str, str], ...]:
    """The pairs of networks, by name, whose weights are equal number for number."""
    return tuple(
        (one, other)
        for one, other in combinations(loaded_models, 2)
        if _equal_tensors(loaded_models[one], loaded_models[other]) is True
    )


def _equal_tensors(one: LoadedModel, other: LoadedModel) -> bool | None:
    """Whether all tensors are equal; None where some are and some are not."""
    mine, theirs = (m.network.module.state_dict() for m in (one, other))
    names = [n for n in mine.keys() | theirs.keys() if not n.endswith(COUNTER)]
    equal = {
        n in mine
        and n in theirs
        and mine[n].shape == theirs[n].shape
        and torch.equal(mine[n], theirs[n].to(mine[n]))
        for n in names
    }
    return None if len(equal) > 1 else True in equal


def known_to_original(
    labels: Tensor, predictions: Tensor, original: LoadedModel, log: InferenceLog
) -> Tensor:
    """bool [n]: which retained images are of classes that the original knew.

    labels, predictions: int64 [n], of the retained images and by the original. A class that its
    metadata call forgotten, and that it does not recognise, was lost before.
    Raises ImageError where no class is left.
    """
    shares = accuracy_per_class(predictions, labels)
    lost = [c for c in original.description.forgotten if shares.get(c, 100.0) <= RECOGNISED]
    known = ~torch.isin(labels, torch.tensor(lost, dtype=torch.int64))
    if not bool(known.any()):
        raise ImageError(
            "--retain: holds only classes that --original has forgotten already; expected images of"
            " classes that it knew"
        )
    if lost:
        source = "the original's metadata call them forgotten, and it does not recognise them"
        log.add(Inferred("not retained", lost, source, ", ".join(map(original.class_name, lost))))
    return known


def doubts_about_normalisation(
    described: Mapping[str, Description], prepared: UnlearningInputs, options: InputOptions
) -> list[str]:
    """A warning for every network whose own description states another mean or std than is used.

    described: what the files say, before anything was taken over from another one.
    """
    if options.mean is not None:
        return []
    used = (prepared.preprocessing.mean, prepared.preprocessing.std)
    found = []
    for name, description in described.items():
        stated = (description.mean, description.std)
        if name == "checkpoint" or stated[0] is None or stated[1] is None:
            continue
        spread = tuple(v * (len(used[0]) // len(v)) for v in stated if v is not None)
        if spread != used:
            found.append(
                f"--{name}: its {description.sources['mean']} state mean and std"
                f" {_numbers(spread)}, but its images are normalised by {_numbers(used)}, as the"
                " checkpoint's are: its figures are those of a network with wrong inputs"
            )
    return found


def _numbers(mean_and_std: Sequence[Sequence[float]]) -> str:
    return " and ".join(",".join(f"{v:.4g}" for v in values) for values in mean_and_std)


def doubts_about_networks(
    loaded_models: Mapping[str, LoadedModel],
    same_weights: Sequence[tuple[str, str]],
    scores: Mapping[str, Scores],
) -> list[str]:
    """One warning for each thing that speaks against a network that is compared with."""
    found = [
        f"--{other} has the same weights as the {one}: a network is compared with itself"
        for one, other in same_weights
    ]
    retrained, original = scores.get("retrained"), scores.get("original")
    if retrained is not None and retrained.a_df > RECOGNISED:
        found.append(
            f"--retrained recognises {retrained.a_df:.1f} % of the forget images, so that it was"
            " not trained without their class: what is compared with it says nothing"
        )
    if original is not None and original.a_df <= RECOGNISED:
        found.append(
            f"--original recognises only {original.a_df:.1f} % of the forget images: it does not"
            " know their class, and nothing could be forgotten; check --original, --label, --mean"
            " and --std"
        )
    checkpoint = loaded_models["checkpoint"]
    if (
        "original" in loaded_models
        and checkpoint.description.sources.get("forgotten") == RECORD
        and _equal_tensors(checkpoint, loaded_models["original"]) is False
    ):
        found.append(
            "--original shares no tensor with the checkpoint, of which pbu changes only a part: it"
            " is not the network that the checkpoint was made from"
        )
    return found


def doubts_about_classes(
    checkpoint: LoadedModel, scores: Mapping[str, Scores], retained: Sequence[int]
) -> list[str]:
    """A warning for each retained class that was lost, and for each that counts in A_Dr although
    the checkpoint's metadata call it forgotten."""
    now, before = scores["checkpoint"].per_class, scores.get("original")
    found = []
    for label in retained:
        stated = label in checkpoint.description.forgotten
        was = None if before is None else before.per_class[label]
        lost = was is not None and was >= KNOWN and now[label] <= LOST * was
        if not (stated or lost):
            continue
        was_shown = "" if was is None else f", {was:.2f} % of them by the original"
        why = "its metadata call it forgotten" if stated else "it has lost it"
        found.append(
            f"class {checkpoint.class_name(label)} counts in A_Dr, and {why}: the checkpoint"
            f" recognises {now[label]:.2f} % of its images{was_shown}; if it was to be forgotten"
            f" too, pass --forgotten {label}, or its images to --forget"
        )
    return found
