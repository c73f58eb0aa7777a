"""The networks that an audit attacks are those whose logits it scores."""

from __future__ import annotations

import torch

from pbu_cli.audit.networks import attacked_model, cka_images
from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.evaluation.compare import ComparisonRequest, compare
from pbu_cli.evaluation.outputs import ROW_SHIFT, audit_batches
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.models.inference import predict
from pbu_cli.settings import InputOptions


def test_the_attacked_row_shift_is_the_one_whose_logits_are_scored(digits: DemoFiles) -> None:
    request = ComparisonRequest(
        digits.checkpoint, [str(digits.test / "8")], original=digits.checkpoint
    )
    comparison = compare(request, InputOptions(), InferenceLog(), audit_seed=0)
    original = comparison.loaded_models["original"].network.module
    before = {name: value.clone() for name, value in original.state_dict().items()}
    prepared = comparison.prepared
    batches = audit_batches(prepared.images.pixels, prepared)
    logits = predict(attacked_model(comparison, ROW_SHIFT), batches).logits
    assert torch.allclose(logits, comparison.outputs[ROW_SHIFT].forget_logits, atol=1e-3)
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])


def test_cka_takes_all_of_few_images_and_the_same_of_many() -> None:
    assert cka_images(7, seed=0).sort().values.tolist() == list(range(7))
    many = cka_images(2000, seed=1)
    assert len(many.unique()) == 500
    assert torch.equal(many, cka_images(2000, seed=1))
