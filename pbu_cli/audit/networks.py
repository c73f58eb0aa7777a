"""The networks of a comparison as an audit runs them: as they are, attacked, or stage by stage."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pbu_cli.audit import similarity
from pbu_cli.evaluation.compare import ROW_SHIFT, Comparison
from pbu_cli.evaluation.outputs import audit_batches
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.features import read_stages
from pbu_cli.models.inference import predict
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


def logits_of(model: nn.Module, pixels: Tensor, prepared: UnlearningInputs) -> Tensor:
    """The logits of uint8 images [n, k, h, w]: float32 [n, c] on the CPU."""
    return predict(model, audit_batches(pixels, prepared), device="cpu").logits


def stage_grams(loaded: LoadedModel, comparison: Comparison, seed: int) -> StageGrams:
    """The Gram matrices of a network's stages, on the same images for every network."""
    network, retained = loaded.network, comparison.retained
    head = network.layout.head_layer or ""
    paths = [p for p in blocks(network.module) if p != head and not head.startswith(f"{p}.")]
    sides = {"forget": comparison.prepared.images}
    if retained is not None:
        sides["retain"] = retained.images
    grams: StageGrams = {}
    for side, images in sides.items():
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(images.pixels), generator=generator)[:MAX_CKA_IMAGES]
        batches = audit_batches(images.pixels[chosen], comparison.prepared)
        for path, features in read_stages(network.module, paths, batches).items():
            grams.setdefault(path, {})[side] = similarity.gram(features)
    return grams
