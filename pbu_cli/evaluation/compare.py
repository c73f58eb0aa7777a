"""One evaluation: what networks answer on forget and on retained images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from torch import Tensor, nn

from pbu_cli.data.decoding import DecodedImages
from pbu_cli.data.preprocessing import model_inputs
from pbu_cli.errors import CheckpointError, printable
from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.outputs import Answers, head_masked, row_shifted
from pbu_cli.evaluation.retained_images import retained_images
from pbu_cli.inputs.inferred import Note
from pbu_cli.inputs.loaded_model import LoadedModel, load_model, tried, unsound
from pbu_cli.inputs.prepare import UnlearningInputs, assemble
from pbu_cli.models.features import read_head
from pbu_cli.models.inference import logits
from pbu_cli.models.parameter_groups import head_module
from pbu_cli.settings import InputOptions

HEAD_MASK, ROW_SHIFT = "original, head mask", "original, row shift"  # the controls
LOOK = 64  # images a forward pass of an audit: small ones stay in a core's cache


@dataclass(frozen=True)
class Comparison:
    """Networks, their controls and the images that they are compared on.

    loaded_models: `checkpoint`, and `original` and `retrained` where given. answers: of these and of the
    controls, in the order they are shown in. retained, labels: the retained images and what is
    right for them, None where not given. shift: what the row shift takes from the head, [d].
    taken_at_its_word: classes left out of the retained because the checkpoint's metadata alone say
    that they are forgotten.
    """

    prepared: UnlearningInputs
    loaded_models: dict[str, LoadedModel]
    answers: dict[str, Answers]
    retained: DecodedImages | None
    labels: Tensor | None
    shift: Tensor | None
    taken_at_its_word: tuple[int, ...] = ()


def compare(
    checkpoint: Path,
    forget: Sequence[str],
    options: InputOptions,
    note: Note,
    *,
    retain: str | None = None,
    original: Path | None = None,
    retrained: Path | None = None,
    stdin: BinaryIO | None = None,
    inside: bool = False,
) -> Comparison:
    """What a checkpoint, and the networks it is compared with, answer to the same images.

    The original is what images, labels and normalisation are inferred with where it is given: a
    checkpoint that has forgotten a class is no witness to it. Only the normalisation and the size
    that pbu recorded when it unlearned stand above what the original would suggest. Retained
    images of a forgotten class are left out. With the original come the controls that are free:
    the head mask and, for an audit, which looks `inside` at the head's input too, the row shift.
    """
    paths = {"checkpoint": checkpoint, "original": original, "retrained": retrained}
    loaded_models = {
        name: load_model(path, options, note if name == "checkpoint" else _unheard)
        for name, path in paths.items()
        if path is not None
    }
    _compare("channels", {name: s.network.channels for name, s in loaded_models.items()})
    lead = "checkpoint" if original is None else "original"
    guide, recorded = loaded_models[lead], loaded_models["checkpoint"].description
    guide = replace(guide, description=guide.description.processed_like(recorded))
    prepared = assemble(guide, forget, options, note, stdin=stdin, binding=original is not None)
    channels, size = prepared.images.pixels.shape[1], prepared.preprocessing.size
    for name, other in loaded_models.items():
        loaded_models[name] = (
            prepared.loaded if name == lead else tried(other, channels, size, options)
        )
    _compare("classes", {name: s.network.num_classes for name, s in loaded_models.items()})
    kept = (
        None
        if retain is None
        else retained_images(retain, prepared, options, note, recorded.forgotten)
    )
    pictures = None if kept is None else kept[0]
    answers = {
        name: _looked_inside(s, prepared, pictures) if inside else _answered(s, prepared, pictures)
        for name, s in loaded_models.items()
    }
    shift = None
    if "original" in answers:
        whole, gone = answers["original"], prepared.forgotten.to(answers["original"].forget.device)
        answers[HEAD_MASK] = head_masked(whole, gone)
        if whole.forget_features is not None and _head_is_linear(loaded_models["original"]):
            shift = metrics.row_shift(whole.forget, whole.forget_features, gone)
        if shift is not None:
            answers[ROW_SHIFT] = row_shifted(whole, gone, shift)
    order = ("checkpoint", "original", HEAD_MASK, ROW_SHIFT, "retrained")
    return Comparison(
        prepared,
        loaded_models,
        {name: answers[name] for name in order if name in answers},
        pictures,
        None if kept is None else kept[1],
        shift,
        () if kept is None else kept[2],
    )


def _unheard(what: str, value: str, source: str) -> None:
    """What is inferred of the networks for comparison is what was of the checkpoint."""


def _compare(what: str, counts: dict[str, int]) -> None:
    first = counts["checkpoint"]
    for name, count in counts.items():
        if count != first:
            raise CheckpointError(
                f"--{name}: {count} {what}, the checkpoint has {first}: not comparable"
            )


def _answered(
    loaded: LoadedModel, prepared: UnlearningInputs, retained: DecodedImages | None
) -> Answers:
    def given(images: DecodedImages) -> Tensor:
        return logits(
            loaded.network.module, images.pixels, prepared.preprocessing, prepared.batch_size
        )

    known = loaded is prepared.loaded
    return _sound(
        loaded,
        Answers(
            prepared.answers if known else given(prepared.images),
            None if retained is None else given(retained),
        ),
    )


def _looked_inside(
    loaded: LoadedModel, prepared: UnlearningInputs, retained: DecodedImages | None
) -> Answers:
    """Answers with features. Raises CheckpointError for a network without a head to look at."""
    network = loaded.network
    head = head_module(network.module, network.builder)
    if head is None:
        raise CheckpointError(
            f"--audit: {printable(network.name)} has no linear or convolutional layer in its head;"
            " expected one whose input can be read"
        )

    def read(images: DecodedImages) -> tuple[Tensor, Tensor]:
        parts = images.pixels.split(min(LOOK, prepared.batch_size))
        rounds = (model_inputs(part, prepared.preprocessing, loaded.device) for part in parts)
        return read_head(network.module, head, rounds)

    features, forget = read(prepared.images)
    if retained is None:
        return _sound(loaded, Answers(forget, None, features))
    inside, retain = read(retained)
    return _sound(loaded, Answers(forget, retain, features, inside))


def _sound(loaded: LoadedModel, answers: Answers) -> Answers:
    """The answers, all of them numbers: NaN has its argmax too, and would count as forgotten."""
    for found in vars(answers).values():
        if found is not None and not bool(found.isfinite().all()):
            raise unsound(loaded)
    return answers


def _head_is_linear(loaded: LoadedModel) -> bool:
    network = loaded.network
    head = head_module(network.module, network.builder)
    return head is not None and isinstance(network.module.get_submodule(head), nn.Linear)
