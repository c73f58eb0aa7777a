"""The audit: what is left of the class in each network, by all measures of `evaluation.measures`.

A measure whose data are missing is left out of the result; it is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from pbu_cli.audit import published_measures, similarity
from pbu_cli.audit.estimates import Estimate, mean_estimate
from pbu_cli.audit.linear_probe import probe
from pbu_cli.audit.membership_inference import (
    COMBINED,
    FEATURES,
    Advantage,
    membership_advantages,
    representation_advantage,
)
from pbu_cli.audit.networks import (
    StageGrams,
    attacked_model,
    head_of,
    network_behind,
    noisy_logits,
    stage_grams,
)
from pbu_cli.audit.perturbation import chosen_images
from pbu_cli.audit.relearning_attack import Relearning, RelearningSettings, relearn
from pbu_cli.data.preprocessing import model_inputs
from pbu_cli.evaluation.compare import Comparison
from pbu_cli.evaluation.members import Members
from pbu_cli.evaluation.metrics import head_mask
from pbu_cli.evaluation.outputs import HEAD_MASK, audit_batches
from pbu_cli.evaluation.statistics import auc, bootstrap
from pbu_cli.models.features import read_head
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
    probes = {name: _probes(comparison, name, seed) for name in comparison.loaded_models}
    prepared = comparison.prepared
    noised = chosen_images(len(prepared.image_labels), seed)
    noisy = noisy_logits(comparison, noised, seed)
    grams = {
        name: stage_grams(loaded, comparison, seed)
        for name, loaded in comparison.loaded_models.items()
    }
    audits = []
    for name in comparison.outputs:
        progress(name)
        loaded = network_behind(name)
        model = attacked_model(comparison, name)
        measures = (
            _measures_of_logits(comparison, name, seed)
            | probes[loaded]
            | published_measures.measures_of_prototypes(comparison, name, seed)
            | published_measures.measures_of_noise(
                noisy, prepared.image_labels[noised], prepared.forgotten.cpu(), name, seed
            )
            | published_measures.adaptive_score(comparison, name, seed)
        )
        relearning = _relearning(comparison, name, model, seed)
        if relearning is not None:
            measures["relearnt"] = Estimate(relearning.best, relearning.interval)
        advantages = _advantages(comparison, name, model, members, seed)
        if advantages is not None:
            for key, signal in (("membership", COMBINED), ("rmia", FEATURES)):
                measures[key] = Estimate(advantages[signal].value, advantages[signal].interval)
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


def _probes(comparison: Comparison, name: str, seed: int) -> dict[str, Estimate]:
    """The measures that depend on the features alone, which a control has from its network."""
    outputs = comparison.outputs[name]
    if outputs.forget_features is None or outputs.retain_features is None:
        return {}
    found = probe(outputs.forget_features, outputs.retain_features, seed=seed)
    measures = published_measures.measures_of_classes(comparison, name, seed)
    measures |= published_measures.representation_scores(comparison, name, seed)
    if found is None:
        return measures
    return measures | {
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
    features, logits = read_head(
        model, head_of(comparison, name), audit_batches(members.images.pixels, prepared)
    )
    if name == HEAD_MASK:
        logits = head_mask(logits, prepared.forgotten.cpu())
    outputs = comparison.outputs[name]
    found = membership_advantages(
        logits, members.labels, outputs.forget_logits, prepared.image_labels, seed=seed
    )
    assert outputs.forget_features is not None
    by_features = representation_advantage(features, outputs.forget_features, seed=seed)
    return None if found is None or by_features is None else found | {FEATURES: by_features}


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
