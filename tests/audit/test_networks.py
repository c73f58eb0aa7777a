"""The networks that an audit attacks are those whose logits it scores."""

from __future__ import annotations

import torch

from pbu_cli.audit.networks import attacked_model, logits_of
from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.evaluation.compare import ROW_SHIFT, ComparisonRequest, compare
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.settings import InputOptions


def test_the_attacked_row_shift_is_the_one_whose_logits_are_scored(digits: DemoFiles) -> None:
    request = ComparisonRequest(
        digits.checkpoint, [str(digits.test / "8")], original=digits.checkpoint
    )
    comparison = compare(request, InputOptions(), InferenceLog(), read_features=True)
    original = comparison.loaded_models["original"].network.module
    before = {name: value.clone() for name, value in original.state_dict().items()}
    prepared = comparison.prepared
    logits = logits_of(attacked_model(comparison, ROW_SHIFT), prepared.images.pixels, prepared)
    assert torch.allclose(logits, comparison.outputs[ROW_SHIFT].forget_logits, atol=1e-3)
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])
