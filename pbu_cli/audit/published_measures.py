"""The measures of other papers, for one network of a comparison: class probe, PRA, OU, RUS, AUS.

What cannot be measured is left out, as everywhere in the audit. A control computes the features of
the network that it is made from, so that it has that network's class probe and RUS.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pbu_cli.audit import perturbation, similarity
from pbu_cli.audit.class_probe import class_probe, nearest_class_mean
from pbu_cli.audit.estimates import Estimate, mean_estimate
from pbu_cli.audit.networks import cka_images, head_of, network_behind
from pbu_cli.audit.prototype_attack import HELD, Scored, prototype_attack, row_length
from pbu_cli.evaluation.compare import Comparison
from pbu_cli.evaluation.metrics import adaptive_unlearning_score
from pbu_cli.evaluation.outputs import NetworkOutputs
from pbu_cli.evaluation.statistics import bootstrap


def measures_of_classes(comparison: Comparison, name: str, seed: int) -> dict[str, Estimate]:
    """The multinomial probe and the nearest class mean, from the input of the head."""
    outputs, sample = comparison.outputs[name], comparison.sample
    if outputs.forget_features is None or outputs.retain_features is None or sample is None:
        return {}
    forget = outputs.forget_features, comparison.prepared.image_labels
    retain = outputs.retain_features, sample.labels
    found = class_probe(forget, retain, seed=seed)
    measures = {} if found is None else {"class_recall": found.recall, "class_others": found.others}
    nearest = nearest_class_mean(forget, retain, seed=seed)
    return measures if nearest is None else measures | {"ncm": nearest}


def measures_of_prototypes(comparison: Comparison, name: str, seed: int) -> dict[str, Estimate]:
    """The prototypical relearning attack, by the number of images held."""
    outputs, sample = comparison.outputs[name], comparison.sample
    if outputs.forget_features is None or outputs.retain_features is None or sample is None:
        return {}
    assert outputs.retain_logits is not None
    network = comparison.loaded_models[network_behind(name)].network.module
    head = network.get_submodule(head_of(comparison, name))
    forgotten = comparison.prepared.forgotten.cpu()
    length = row_length(head, forgotten, outputs.forget_features.shape[1])
    if length is None:
        return {}
    labels = comparison.prepared.image_labels
    forget = Scored(outputs.forget_features, outputs.forget_logits, labels)
    retain = Scored(outputs.retain_features, outputs.retain_logits, sample.labels)
    attacks = {
        f"pra_{held}": prototype_attack(forget, retain, forgotten, length, held=held, seed=seed)
        for held in HELD
    }
    return {key: found for key, found in attacks.items() if found is not None}


def measures_of_noise(
    noisy: dict[str, Tensor], labels: Tensor, forgotten: Tensor, name: str, seed: int
) -> dict[str, Estimate]:
    """OU, A_Df with noise and r_tau. noisy: by network, its logits for the copies of the images
    whose labels are given, as `networks.noisy_logits` gives them."""
    copies = perturbation.COPIES
    shares = perturbation.recognised(noisy[name], labels, copies)
    measures = {"noisy_a_df": mean_estimate(100 * shares, seed)}
    if "retrained" in noisy:
        reference = perturbation.recognised(noisy["retrained"], labels, copies)
        residual = perturbation.residual_knowledge(shares, reference, seed=seed)
        if residual is not None:
            measures["r_tau"] = Estimate(*residual)
    if "original" in noisy:
        changed = perturbation.over_unlearning(noisy[name], noisy["original"], forgotten)
        measures["ou"] = mean_estimate(perturbation.per_image(changed, copies), seed)
    return measures


def adaptive_score(comparison: Comparison, name: str, seed: int) -> dict[str, Estimate]:
    """AUS, from the accuracies of the network and of the original."""
    outputs, retained = comparison.outputs[name], comparison.retained
    original = comparison.outputs.get("original")
    if retained is None or original is None:
        return {}
    assert outputs.retain_predictions is not None
    assert original.retain_predictions is not None
    both = original.retain_predictions, outputs.retain_predictions
    retain = torch.stack([(found == retained.labels).double() for found in both], dim=1)
    right = outputs.forget_logits.argmax(dim=1).cpu() == comparison.prepared.image_labels
    groups = retain, right.double()
    value = float(adaptive_unlearning_score(*groups))
    return {"aus": Estimate(value, bootstrap(groups, adaptive_unlearning_score, seed=seed))}


def representation_scores(comparison: Comparison, name: str, seed: int) -> dict[str, Estimate]:
    """RUS to the original and to the retrained network."""
    own = comparison.outputs[name]
    measures = {}
    for reference in ("original", "retrained"):
        other = comparison.outputs.get(reference)
        if other is None or own.retain_features is None:
            continue
        forget, retain = _gram_pairs(own, other, seed)
        value, interval = similarity.representation_unlearning_score(
            forget, retain, to_original=reference == "original"
        )
        if not math.isnan(value):
            measures[f"rus_{reference}"] = Estimate(value, interval)
    return measures


def _gram_pairs(
    own: NetworkOutputs, other: NetworkOutputs, seed: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The Gram matrices of both networks' inputs of the head, on forget and on retained images."""

    def pair(features: Tensor | None, others: Tensor | None) -> tuple[Tensor, Tensor]:
        assert features is not None
        assert others is not None
        chosen = cka_images(len(features), seed)
        return similarity.gram(features[chosen]), similarity.gram(others[chosen])

    return (
        pair(own.forget_features, other.forget_features),
        pair(own.retain_features, other.retain_features),
    )
