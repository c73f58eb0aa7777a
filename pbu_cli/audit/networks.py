"""The networks of a comparison as an audit runs them: attacked, on noisy images, by stage."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pbu_cli.audit import similarity
from pbu_cli.audit.perturbation import noisy_batches
from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.compare import Comparison
from pbu_cli.evaluation.outputs import HEAD_MASK, ROW_SHIFT, audit_batches
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.models.features import read_head, read_stages
from pbu_cli.models.parameter_groups import blocks

MAX_CKA_IMAGES = 500  # forget images, and retained images, that CKA compares

StageGrams = dict[str, dict[str, Tensor]]  # Gram matrices by stage and by `forget` or `retain`


def network_behind(name: str) -> str:
    """The name of the network that a control is made from; a network's own name stays."""
    return name.partition(",")[0]


def attacked_model(comparison: Comparison, name: str) -> nn.Module:
    """The model that an attacker would tune: for the row shift, a copy with the shifted row."""
    network = comparison.loaded_models[network_behind(name)].network
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


def head_of(comparison: Comparison, name: str) -> str:
    """The path of the layer that gives a network's logits; an audit has only networks with one."""
    head = comparison.loaded_models[network_behind(name)].network.layout.head_layer
    assert head is not None
    return head


def noisy_logits(comparison: Comparison, chosen: Tensor, seed: int) -> dict[str, Tensor]:
    """The logits of every network and control for noisy copies of the chosen forget images.

    float32 [n copies, c] each, as `perturbation.noisy_batches` orders the copies.
    """
    prepared, forgotten = comparison.prepared, comparison.prepared.forgotten.cpu()
    found: dict[str, Tensor] = {}
    for name, loaded in comparison.loaded_models.items():
        batches = noisy_batches(prepared.images.pixels[chosen], prepared, seed)
        features, logits = read_head(loaded.network.module, head_of(comparison, name), batches)
        found[name] = logits
        if name == "original":
            found[HEAD_MASK] = metrics.head_mask(logits, forgotten)
            if comparison.shift is not None:
                shift = comparison.shift.cpu()
                found[ROW_SHIFT] = metrics.shift_rows(logits, features, forgotten, shift)
    return found


def cka_images(count: int, seed: int) -> Tensor:
    """Which of `count` images CKA compares, int64; the same for every network."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:MAX_CKA_IMAGES]


def stage_grams(loaded: LoadedModel, comparison: Comparison, seed: int) -> StageGrams:
    """The Gram matrices of a network's stages, on the same images for every network."""
    network, sample = loaded.network, comparison.sample
    head = network.layout.head_layer or ""
    paths = [p for p in blocks(network.module) if p != head and not head.startswith(f"{p}.")]
    sides = {"forget": comparison.prepared.images.pixels}
    if sample is not None:
        sides["retain"] = sample.pixels
    grams: StageGrams = {}
    for side, pixels in sides.items():
        batches = audit_batches(pixels[cka_images(len(pixels), seed)], comparison.prepared)
        for path, features in read_stages(network.module, paths, batches).items():
            grams.setdefault(path, {})[side] = similarity.gram(features)
    return grams
