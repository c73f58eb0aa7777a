"""The sums do not depend on the kernel, nor on how many images go through the model together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pbu_cli.fisher import accumulate, conv_kernels, linear_kernels
from pbu_cli.fisher.accumulate import images_per_pass
from pbu_cli.fisher.conv_kernels import CONV
from pbu_cli.fisher.linear_kernels import LINEAR
from pbu_cli.fisher.validated_plan import in_eval_mode, validated_plan
from tests.fisher.fisher_oracle import LABELS, check, close, empirical, fisher_loop, randomised
from tests.fisher.networks import FAMILIES, images, small


@pytest.mark.slow
@pytest.mark.parametrize("forced", [*CONV, *LINEAR])
@pytest.mark.parametrize("name", ["resnet", "densenet", "convnext", "vit"])
def test_family_by_every_kernel(name: str, forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kernel is chosen, the result is the same."""

    def conv_kernel(size: tuple[int, ...], *shape: Any) -> str:
        *_, groups, options, _ = shape
        if groups > 1:
            fits = forced == "folded" or (forced == "depthwise" and size[:2] == (groups, 1))
        else:
            fits = forced != "depthwise" and (forced != "swapped" or options.stride == (1, 1))
        return forced if fits else "folded"

    if forced in CONV:
        monkeypatch.setattr(conv_kernels, "conv_kernel", conv_kernel)
    if forced in LINEAR:
        monkeypatch.setattr(linear_kernels, "linear_kernel", lambda positions: forced)
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    check(randomised(make()), images(size))


def test_gradients_that_go_through_autograd_are_held_for_few_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accumulate, "_MAX_NUMBERS_VIA_AUTOGRAD", 1)
    make, size = FAMILIES["swin_v2"]
    torch.manual_seed(0)
    check(randomised(make()), images(size))


def test_images_go_in_even_parts_that_keep_the_cpu_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), images(32)
    expected = fisher_loop(model, x, LABELS, "empirical")
    parameters = dict(model.named_parameters())
    for busy, count in ((1 << 40, 3), (1, 1)):
        monkeypatch.setattr(accumulate, "_NUMBERS_THAT_KEEP_A_CPU_BUSY", busy)
        with in_eval_mode(model):
            assert images_per_pass(validated_plan(model, parameters, x, {}), parameters, x) == count
        assert close(empirical(model, x), expected)
