"""The measures of other papers: what is left out where its data are missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pbu_cli.audit import published_measures
from pbu_cli.audit.networks import noisy_logits
from pbu_cli.audit.perturbation import COPIES, noisy_batches
from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.evaluation.compare import ComparisonRequest, compare
from pbu_cli.evaluation.outputs import HEAD_MASK, ROW_SHIFT
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.models.inference import predict
from pbu_cli.settings import InputOptions

BY_NETWORK = (
    published_measures.measures_of_classes,
    published_measures.measures_of_prototypes,
    published_measures.adaptive_score,
    published_measures.representation_scores,
)


@pytest.fixture(scope="module")
def comparison(digits: DemoFiles) -> Any:
    """The digits' network as checkpoint and original, with retained images."""
    request = ComparisonRequest(
        digits.checkpoint,
        [str(digits.test / "8")],
        str(digits.test),
        original=digits.checkpoint,
    )
    return compare(request, InputOptions(), InferenceLog(), audit_seed=0)


@pytest.mark.parametrize("measures", BY_NETWORK)
def test_without_retained_images_nothing_is_measured_and_nothing_fails(
    comparison: Any, measures: Any
) -> None:
    assert measures(comparison, "checkpoint", 0)
    outputs = {
        name: replace(one, retain_logits=None, retain_features=None)
        for name, one in comparison.outputs.items()
    }
    without = replace(comparison, retained=None, outputs=outputs)
    assert measures(without, "checkpoint", 0) == {}


def test_without_the_original_scores_against_it_are_left_out(comparison: Any) -> None:
    alone = replace(comparison, outputs={"checkpoint": comparison.outputs["checkpoint"]})
    assert published_measures.adaptive_score(alone, "checkpoint", 0) == {}
    assert published_measures.representation_scores(alone, "checkpoint", 0) == {}


def test_a_head_that_is_no_matrix_of_rows_is_not_attacked(
    comparison: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = comparison.loaded_models["checkpoint"].network.module
    monkeypatch.setattr(type(module), "get_submodule", lambda self, path: nn.Identity())
    assert published_measures.measures_of_prototypes(comparison, "checkpoint", 0) == {}


def test_noise_measures_need_the_networks_that_they_compare_with() -> None:
    logits = torch.eye(3)[torch.arange(2).repeat_interleave(COPIES)]
    labels, forgotten = torch.tensor([0, 1]), torch.tensor([True, True, False])

    def keys(*names: str) -> set[str]:
        noisy = dict.fromkeys(names, logits)
        return set(published_measures.measures_of_noise(noisy, labels, forgotten, "checkpoint", 0))

    assert keys("checkpoint") == {"noisy_a_df"}
    assert keys("checkpoint", "original") == {"noisy_a_df", "ou"}
    assert keys("checkpoint", "retrained") == {"noisy_a_df", "r_tau"}


def test_the_noisy_logits_of_the_controls_are_those_of_the_controls(comparison: Any) -> None:
    chosen = torch.tensor([0, 2, 3])
    found = noisy_logits(comparison, chosen, seed=4)
    assert set(found) == set(comparison.outputs)
    prepared = comparison.prepared
    model = comparison.loaded_models["original"].network.module
    batches = noisy_batches(prepared.images.pixels[chosen], prepared, 4)
    logits = predict(model, batches, device="cpu").logits
    assert torch.equal(found["original"], logits)
    assert torch.isneginf(found[HEAD_MASK][:, 8]).all()
    others = [c for c in range(10) if c != 8]
    for name in (HEAD_MASK, ROW_SHIFT):
        assert torch.equal(found[name][:, others], logits[:, others])
    assert (found[ROW_SHIFT][:, 8] < logits[:, 8]).all()
