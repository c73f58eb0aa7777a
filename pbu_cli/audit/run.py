"""The audit: what is left of the class in each network, by the measures of `measures`.

What cannot be measured for want of data is left out, never zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pbu_cli.audit import membership_inference as membership
from pbu_cli.audit import similarity
from pbu_cli.audit.linear_probe import probe
from pbu_cli.audit.relearning_attack import Relearning, relearn
from pbu_cli.data.decoding import DecodedImages, decode
from pbu_cli.data.image_folders import list_groups
from pbu_cli.data.label_inference import label_from_name
from pbu_cli.data.preprocessing import model_inputs
from pbu_cli.errors import ImageError, printable
from pbu_cli.evaluation.compare import HEAD_MASK, LOOK, ROW_SHIFT, Comparison
from pbu_cli.evaluation.metrics import head_mask
from pbu_cli.evaluation.outputs import Answers
from pbu_cli.evaluation.statistics import auc, bootstrap
from pbu_cli.inputs.inferred import Note
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.features import read_stages
from pbu_cli.models.parameter_groups import blocks, head_module
from pbu_cli.settings import InputOptions
from pbu_cli.unlearning.objective import log_odds

ALIKE = 500  # images of either side that CKA compares, at most
SHARED = 0.05  # share of members that may be forget images too, such as duplicates in a data set


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Audited:
    """One network. measures: by key of MEASURES; what is unknown is not there.

    likeness: CKA by stage, of `original` or `retrained` with this network on `forget` or `retain`
    images, as in likeness["layer1"]["original, forget"].
    """

    name: str
    measures: dict[str, Estimate] = field(default_factory=dict)
    relearning: Relearning | None = None
    membership: dict[str, membership.Advantage] | None = None
    likeness: dict[str, dict[str, Estimate]] = field(default_factory=dict)


def audit(
    comparison: Comparison,
    *,
    members: tuple[DecodedImages, Tensor] | None = None,
    seed: int = 0,
    done: Callable[[str], None] = lambda name: None,
) -> tuple[Audited, ...]:
    """Audit every network and control of a comparison that looked inside.

    members: forget images that were trained on, with labels. `done` hears of each network begun.
    """
    prepared, retained, labels = comparison.prepared, comparison.retained, comparison.labels
    probes = {name: _probe(comparison.answers[name], seed) for name in comparison.loaded_models}
    stages = {
        name: _stages(loaded, comparison, seed) for name, loaded in comparison.loaded_models.items()
    }
    found = []
    for name, answers in comparison.answers.items():
        done(name)
        loaded, masked = _subject(name), name == HEAD_MASK
        module = _module(comparison, name)
        measures = _from_answers(comparison, name, seed) | probes[loaded]
        relearning = attacks = None
        if retained is not None and labels is not None:
            relearning = relearn(
                module,
                (prepared.images.pixels, prepared.image_labels),
                (retained.pixels, labels),
                prepared.forgotten,
                seed=seed,
                masked=masked,
                prepare=lambda pixels: _prepared(pixels, prepared),
            )
        if members is not None:
            images, member_labels = members
            inside = _answers(module, images.pixels, prepared)
            if masked:
                inside = head_mask(inside, prepared.forgotten.cpu())
            attacks = membership.attack(
                inside, member_labels, answers.forget, prepared.image_labels, seed=seed
            )
        if relearning is not None:
            measures["relearnt"] = Estimate(relearning.best, relearning.interval)
        if attacks is not None:
            joined = attacks["all four"]
            measures["membership"] = Estimate(joined.value, joined.interval)
        likeness = _likeness(name, stages) if name == loaded else {}
        found.append(Audited(name, measures, relearning, attacks, likeness))
    return tuple(found)


def read_members(
    sources: Sequence[str], prepared: UnlearningInputs, options: InputOptions, note: Note
) -> tuple[DecodedImages, Tensor]:
    """The images of --members and their labels. Raises ImageError where they are not members."""
    groups = list_groups(sources)
    forgotten = sorted(set(prepared.image_labels.tolist()))
    names, classes = prepared.loaded.description.label_names, prepared.loaded.network.num_classes
    labels = []
    for group in groups:
        label = forgotten[0] if len(forgotten) == 1 else label_from_name(group.name, names, classes)
        if label not in forgotten:
            shown = ", ".join(map(str, forgotten))
            raise ImageError(
                f"--members {printable(group.name)}: expected a folder named after one of the"
                f" forgotten classes ({shown})"
            )
        labels.append(label)
    images = decode(
        groups,
        channels=prepared.images.pixels.shape[1],
        size=prepared.preprocessing.size,
        skip_bad=options.skip_bad,
    )
    seen = {image.numpy().tobytes() for image in prepared.images.pixels}
    shared = sum(image.numpy().tobytes() in seen for image in images.pixels)
    if shared > SHARED * len(images.pixels):
        raise ImageError(
            f"--members: {shared} of {len(images.pixels)} are --forget images too; expected images"
            " that the network was trained on, against --forget images that it never saw"
        )
    note("members", f"{len(images.pixels)} images", ", ".join(sources))
    return images, torch.tensor(labels)[images.group]


def _from_answers(comparison: Comparison, name: str, seed: int) -> dict[str, Estimate]:
    """Everything that takes nothing but logits."""
    answers, forgotten = comparison.answers[name], comparison.prepared.forgotten.cpu()
    shares = answers.forget.double().softmax(dim=1)
    found = {
        "effective_classes": Estimate(
            float(similarity.effective_classes(shares)),
            bootstrap((shares,), similarity.effective_classes, seed=seed),
        ),
        "log_p_forget": _mean(_log_p(answers.forget, forgotten), seed),
    }
    retrained = comparison.answers.get("retrained")
    if retrained is not None:
        found["js"] = _mean(similarity.divergence(answers.forget, retrained.forget), seed)
    shown = comparison.answers["original"] if name == HEAD_MASK else answers
    if answers.retain is not None and shown.retain is not None:
        found["log_p_retain"] = _mean(_log_p(answers.retain, forgotten), seed)
        odds = log_odds(shown.forget, forgotten), log_odds(shown.retain, forgotten)
        found["odds_auc"] = Estimate(float(auc(*odds)), bootstrap(odds, auc, seed=seed))
    return found


def _probe(answers: Answers, seed: int) -> dict[str, Estimate]:
    if answers.forget_features is None or answers.retain_features is None:
        return {}
    found = probe(answers.forget_features, answers.retain_features, seed=seed)
    if found is None:
        return {}
    return {
        "probe": Estimate(found.balanced, found.balanced_interval),
        "probe_recall": Estimate(found.recall, found.recall_interval),
    }


def _log_p(logits: Tensor, forgotten: Tensor) -> Tensor:
    return logits.double().log_softmax(dim=1).masked_fill(~forgotten, -math.inf).logsumexp(dim=1)


def _mean(values: Tensor, seed: int) -> Estimate:
    if not bool(values.isfinite().all()):
        mean = values.mean().item()
        return Estimate(mean, (mean, mean))
    return Estimate(*similarity.mean_interval(values, seed=seed))


def _subject(name: str) -> str:
    """The network behind a control."""
    return name.partition(",")[0]


def _module(comparison: Comparison, name: str) -> nn.Module:
    """What an attacker would tune."""
    network = comparison.loaded_models[_subject(name)].network
    if name != ROW_SHIFT or comparison.shift is None:
        return network.module
    head = head_module(network.module, network.builder)
    assert head is not None
    module = copy.deepcopy(network.module)
    weight = module.get_submodule(head).weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight[comparison.prepared.forgotten] -= comparison.shift.to(weight.device)
    return module


def _prepared(pixels: Tensor, prepared: UnlearningInputs) -> Tensor:
    return model_inputs(pixels, prepared.preprocessing, prepared.loaded.device)


@torch.no_grad()
def _answers(module: nn.Module, pixels: Tensor, prepared: UnlearningInputs) -> Tensor:
    parts = pixels.split(min(LOOK, prepared.batch_size))
    return torch.cat([module(_prepared(part, prepared)).float().cpu() for part in parts])


def _stages(loaded: LoadedModel, comparison: Comparison, seed: int) -> dict[str, dict[str, Tensor]]:
    """Gram matrices by stage and side (`forget`, `retain`), of the same images for each network."""
    network, prepared = loaded.network, comparison.prepared
    head = head_module(network.module, network.builder) or ""
    paths = [p for p in blocks(network.module) if p != head and not head.startswith(f"{p}.")]
    found: dict[str, dict[str, Tensor]] = {}
    for side, images in (("forget", prepared.images), ("retain", comparison.retained)):
        if images is None:
            continue
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(images.pixels), generator=generator)[:ALIKE]
        pixels = images.pixels[chosen]
        rounds = (
            _prepared(part, prepared) for part in pixels.split(min(LOOK, prepared.batch_size))
        )
        for path, features in read_stages(network.module, paths, rounds).items():
            found.setdefault(path, {})[side] = similarity.gram(features)
    return found


def _likeness(
    name: str, stages: dict[str, dict[str, dict[str, Tensor]]]
) -> dict[str, dict[str, Estimate]]:
    return {
        path: {
            f"{other}, {side}": Estimate(*similarity.cka_of_grams(gram, stages[other][path][side]))
            for other in ("original", "retrained")
            for side, gram in sides.items()
            if other != name and side in stages.get(other, {}).get(path, {})
        }
        for path, sides in stages[name].items()
    }
