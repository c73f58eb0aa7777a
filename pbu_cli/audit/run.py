"""The audit: what is left of the class in each network, by all measures of `evaluation.measures`.

A measure whose data are missing is left out of the result; it is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from pbu_cli.audit import similarity
from pbu_cli.audit.estimates import Estimate, mean_estimate
from pbu_cli.audit.linear_probe import probe
from pbu_cli.audit.membership_inference import COMBINED, Advantage, membership_advantages
from pbu_cli.audit.networks import (
    StageGrams,
    attacked_model,
    logits_of,
    network_behind,
    stage_grams,
)
from pbu_cli.audit.relearning_attack import Relearning, RelearningSettings, relearn
from pbu_cli.data.preprocessing import model_inputs
from pbu_cli.evaluation.compare import HEAD_MASK, Comparison
from pbu_cli.evaluation.members import Members
from pbu_cli.evaluation.metrics import head_mask
from pbu_cli.evaluation.outputs import NetworkOutputs
from pbu_cli.evaluation.statistics import auc, bootstrap
from pbu_cli.unlearning.objective import log_odds


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
        name: stage_grams(loaded, comparison, seed)
        for name, loaded in comparison.loaded_models.items()
    }
    audits = []
    for name in comparison.outputs:
        progress(name)
        loaded = network_behind(name)
        model = attacked_model(comparison, name)
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
        "log_p_forget": mean_estimate(_log_p(forget_logits, forgotten), seed),
    }
    retrained = comparison.outputs.get("retrained")
    if retrained is not None:
        divergence = similarity.divergence(forget_logits, retrained.forget_logits)
        measures["js"] = mean_estimate(divergence, seed)
    # Whoever may shift a bias undoes the head mask, so its odds are measured before masking.
    unmasked = comparison.outputs["original"] if name == HEAD_MASK else outputs
    if retain_logits is not None and unmasked.retain_logits is not None:
        measures["log_p_retain"] = mean_estimate(_log_p(retain_logits, forgotten), seed)
        odds = (
            log_odds(unmasked.forget_logits, forgotten),
            log_odds(unmasked.retain_logits, forgotten),
        )
        measures["odds_auc"] = Estimate(float(auc(*odds)), bootstrap(odds, auc, seed=seed))
    return measures


def _log_p(logits: Tensor, forgotten: Tensor) -> Tensor:
    """log P(a forgotten class), [n]."""
    return logits.double().log_softmax(dim=1).masked_fill(~forgotten, -math.inf).logsumexp(dim=1)


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
    prepared, retained = comparison.prepared, comparison.retained
    if retained is None:
        return None
    return relearn(
        model,
        (prepared.images.pixels, prepared.image_labels),
        (retained.images.pixels, retained.labels),
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
    logits = logits_of(model, members.images.pixels, prepared)
    if name == HEAD_MASK:
        logits = head_mask(logits, prepared.forgotten.cpu())
    forget_logits = comparison.outputs[name].forget_logits
    return membership_advantages(
        logits, members.labels, forget_logits, prepared.image_labels, seed=seed
    )


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
