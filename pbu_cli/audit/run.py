"""The audit: what is left of the class in each network, by all measures of `evaluation.measures`.

A measure whose data are missing is left out of the result; it is never zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pbu_cli.audit import similarity
from pbu_cli.audit.linear_probe import probe
from pbu_cli.audit.membership_inference import COMBINED, Advantage, membership_advantages
from pbu_cli.audit.relearning_attack import Relearning, RelearningSettings, relearn
from pbu_cli.data.preprocessing import model_inputs
from pbu_cli.evaluation.compare import Comparison
from pbu_cli.evaluation.members import Members
from pbu_cli.evaluation.metrics import head_mask
from pbu_cli.evaluation.outputs import HEAD_MASK, ROW_SHIFT, NetworkOutputs, audit_batches
from pbu_cli.evaluation.statistics import auc, bootstrap, mean_interval
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.features import read_stages
from pbu_cli.models.inference import predict
from pbu_cli.models.parameter_groups import blocks
from pbu_cli.unlearning.objective import log_odds

MAX_CKA_IMAGES = 500  # forget images, and retained images, that CKA compares

StageGrams = dict[str, dict[str, Tensor]]  # Gram matrices by stage and by `forget` or `retain`


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class NetworkAudit:
    """The audit of one network or control. The fields are keys of the JSON document.

    measures: by key of MEASURES, without the unknown ones. relearning, membership: the details of
    these measures. likeness: CKA by stage, of `original` or `retrained` with this network on
    `forget` or `retain` images, as in likeness["layer1"]["original, forget"].
    """

    name: str
    measures: dict[str, Estimate] = field(default_factory=dict)
    relearning: Relearning | None = None
    membership: dict[str, Advantage] | None = None
    likeness: dict[str, dict[str, Estimate]] = field(default_factory=dict)


def audit(
    comparison: Comparison,
    *,
    members: Members | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[NetworkAudit, ...]:
    """Audit every network and control of a comparison, which has to hold the heads' features.

    progress is called with the name of each network before it is audited.
    """
    probes = {name: _probe(comparison.outputs[name], seed) for name in comparison.loaded_models}
    grams = {
        name: _stage_grams(loaded, comparison, seed)
        for name, loaded in comparison.loaded_models.items()
    }
    audits = []
    for name in comparison.outputs:
        progress(name)
        loaded = _network_behind(name)
        model = _attacked_model(comparison, name)
        measures = _measures_of_logits(comparison, name, seed) | probes[loaded]
        relearning = _relearning(comparison, name, model, seed)
        if relearning is not None:
            measures["relearnt"] = Estimate(relearning.best, relearning.interval)
        advantages = _advantages(comparison, name, model, members, seed)
        if advantages is not None:
            combined = advantages[COMBINED]
            measures["membership"] = Estimate(combined.value, combined.interval)
        likeness = _likeness(name, grams) if name == loaded else {}
        audits.append(NetworkAudit(name, measures, relearning, advantages, likeness))
    return tuple(audits)


def _measures_of_logits(comparison: Comparison, name: str, seed: int) -> dict[str, Estimate]:
    """The measures that need nothing but logits."""
    outputs, forgotten = comparison.outputs[name], comparison.prepared.forgotten.cpu()
    forget_logits, retain_logits = outputs.forget_logits, outputs.retain_logits
    probabilities = forget_logits.double().softmax(dim=1)
    measures = {
        "effective_classes": Estimate(
            float(similarity.effective_classes(probabilities)),
            bootstrap((probabilities,), similarity.effective_classes, seed=seed),
        ),
        "log_p_forget": _mean(_log_p(forget_logits, forgotten), seed),
    }
    retrained = comparison.outputs.get("retrained")
    if retrained is not None:
        divergence = similarity.divergence(forget_logits, retrained.forget_logits)
        measures["js"] = _mean(divergence, seed)
    # Whoever may shift a bias undoes the head mask, so its odds are measured before masking.
    unmasked = comparison.outputs["original"] if name == HEAD_MASK else outputs
    if retain_logits is not None and unmasked.retain_logits is not None:
        measures["log_p_retain"] = _mean(_log_p(retain_logits, forgotten), seed)
        odds = (
            log_odds(unmasked.forget_logits, forgotten),
            log_odds(unmasked.retain_logits, forgotten),
        )
        measures["odds_auc"] = Estimate(float(auc(*odds)), bootstrap(odds, auc, seed=seed))
    return measures


def _log_p(logits: Tensor, forgotten: Tensor) -> Tensor:
    """log P(a forgotten class), [n]."""
    return logits.double().log_softmax(dim=1).masked_fill(~forgotten, -math.inf).logsumexp(dim=1)


def _mean(values: Tensor, seed: int) -> Estimate:
    if not bool(values.isfinite().all()):
        mean = values.mean().item()
        return Estimate(mean, (mean, mean))
    return Estimate(*mean_interval(values, seed=seed))


def _probe(outputs: NetworkOutputs, seed: int) -> dict[str, Estimate]:
    if outputs.forget_features is None or outputs.retain_features is None:
        return {}
    found = probe(outputs.forget_features, outputs.retain_features, seed=seed)
    if found is None:
        return {}
    return {
        "probe": Estimate(found.balanced, found.balanced_interval),
        "probe_recall": Estimate(found.recall, found.recall_interval),
    }


def _relearning(
    comparison: Comparison, name: str, model: nn.Module, seed: int
) -> Relearning | None:
    prepared, sample = comparison.prepared, comparison.sample
    if sample is None:
        return None
    return relearn(
        model,
        (prepared.images.pixels, prepared.image_labels),
        (sample.pixels, sample.labels),
        prepared.forgotten,
        RelearningSettings(batch_size=prepared.batch_size),
        seed=seed,
        masked=name == HEAD_MASK,
        prepare=lambda pixels: model_inputs(pixels, prepared.preprocessing, prepared.loaded.device),
    )


def _advantages(
    comparison: Comparison, name: str, model: nn.Module, members: Members | None, seed: int
) -> dict[str, Advantage] | None:
    if members is None:
        return None
    prepared = comparison.prepared
    logits = _logits(model, members.images.pixels, prepared)
    if name == HEAD_MASK:
        logits = head_mask(logits, prepared.forgotten.cpu())
    forget_logits = comparison.outputs[name].forget_logits
    return membership_advantages(
        logits, members.labels, forget_logits, prepared.image_labels, seed=seed
    )


def _logits(model: nn.Module, pixels: Tensor, prepared: UnlearningInputs) -> Tensor:
    return predict(model, audit_batches(pixels, prepared), device="cpu").logits


def _network_behind(name: str) -> str:
    """The name of the network that a control is made from; a network's own name stays."""
    return name.partition(",")[0]


def _attacked_model(comparison: Comparison, name: str) -> nn.Module:
    """The model that an attacker would tune: for the row shift, a copy with the shifted row."""
    network = comparison.loaded_models[_network_behind(name)].network
    if name != ROW_SHIFT or comparison.shift is None:
        return network.module
    head = network.layout.head_layer
    assert head is not None
    model = copy.deepcopy(network.module)
    weight = model.get_submodule(head).weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight[comparison.prepared.forgotten] -= comparison.shift.to(weight.device)
    return model


def _stage_grams(loaded: LoadedModel, comparison: Comparison, seed: int) -> StageGrams:
    """The Gram matrices of a network's stages, on the same images for every network."""
    network = loaded.network
    head = network.layout.head_layer or ""
    paths = [p for p in blocks(network.module) if p != head and not head.startswith(f"{p}.")]
    sides = {"forget": comparison.prepared.images.pixels}
    if comparison.sample is not None:
        sides["retain"] = comparison.sample.pixels
    grams: StageGrams = {}
    for side, pixels in sides.items():
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(pixels), generator=generator)[:MAX_CKA_IMAGES]
        batches = audit_batches(pixels[chosen], comparison.prepared)
        for path, features in read_stages(network.module, paths, batches).items():
            grams.setdefault(path, {})[side] = similarity.gram(features)
    return grams


def _likeness(name: str, grams: dict[str, StageGrams]) -> dict[str, dict[str, Estimate]]:
    """CKA of the network with `original` and `retrained`, by stage and side."""
    return {
        path: {
            f"{other}, {side}": Estimate(*similarity.cka_of_grams(gram, grams[other][path][side]))
            for other in ("original", "retrained")
            for side, gram in sides.items()
            if other != name and side in grams.get(other, {}).get(path, {})
        }
        for path, sides in grams[name].items()
    }
