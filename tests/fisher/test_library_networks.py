"""The Fisher diagonal of the last stage in networks of timm and of transformers.

`python -m tests.measure.fisher_families` compares every family.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.fisher.dispatch import PER_IMAGE
from pbu_cli.fisher.validated_plan import crops_and_plan, in_eval_mode, named_parameters
from pbu_cli.models.parameter_groups import layout_of, trained_parameters
from pbu_cli.models.sources import transformers as of_transformers
from pbu_cli.models.sources.construction import without_caches
from tests.fisher.fisher_oracle import LABELS, fisher_loop, largest_error, randomised
from tests.fisher.networks import images
from tests.networks.tiny_transformers import TINY

# By name in timm: how to make it small.
SMALL: dict[str, dict[str, object]] = {
    "convnext_atto": {"depths": (1, 1, 1, 2), "dims": (8, 16, 24, 32)},
    "convnextv2_atto": {"depths": (1, 1, 1, 2), "dims": (8, 16, 24, 32)},  # GRN
    "convnext_zepto_rms": {"depths": (1, 1, 1, 2), "dims": (8, 16, 24, 32)},  # RMSNorm
    "deit3_small_patch16_224": {  # LayerScale
        "img_size": 32, "embed_dim": 24, "depth": 4, "num_heads": 2,
    },
    "eva02_tiny_patch14_224": {  # SwiGLU and rotary position embeddings
        "img_size": 28, "embed_dim": 24, "depth": 4, "num_heads": 2,
    },
    "levit_128s": {"img_size": 64},  # attention biases
}  # fmt: skip
SIZES = {"deit3_small_patch16_224": 32, "eva02_tiny_patch14_224": 28}


def check(model: nn.Module, size: int) -> None:
    x = images(size)
    without_caches(model)
    layout = layout_of(model.float().eval(), None, x[:2].float())
    names = trained_parameters(model, layout, "stage")[0]
    model = randomised(model)
    expected = fisher_loop(model, x, LABELS, "empirical", names)
    found = fisher_diagonal(model, [(x, LABELS)], parameters=names)
    assert largest_error(found, expected) < 1e-7
    with in_eval_mode(model):
        plan = crops_and_plan(model, named_parameters(model, names), x)[1]
    assert PER_IMAGE not in plan.strategies.values()


@pytest.mark.parametrize("name", SMALL)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    check(timm.create_model(name, num_classes=4, **SMALL[name]), SIZES.get(name, 64))


@pytest.mark.parametrize("family", ["vit", "swin", "swiftformer", "cvt"])
def test_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](num_labels=4, **TINY[family])
    model = transformers.AutoModelForImageClassification.from_config(config)
    model.register_forward_hook(of_transformers._logits)
    size = TINY[family].get("image_size", 64)
    check(model, size)
