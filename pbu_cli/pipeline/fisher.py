"""The Fisher diagonal of prepared inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.safetensors_format import Tensors
from pbu_cli.models.channels_last import contiguous
from pbu_cli.models.frozen_backbone import from_features
from pbu_cli.settings import Estimator

FISHER_BATCH = 64  # images; the totals are gone through once a batch, ...
FISHER_INPUTS = 1 << 18  # ... so of small inputs a batch takes so many numbers, where that is more


def measure_fisher(
    prepared: UnlearningInputs,
    estimator: Estimator,
    *,
    draws: int = 1,
    seed: int = 0,
    done: Callable[[int], None] | None = None,
) -> Tensors:
    """The Fisher diagonal of what trains, summed over all forget images."""
    module = prepared.loaded.network.module
    numel = (prepared.images.pixels if prepared.features is None else prepared.features)[0].numel()
    size = min(max(FISHER_BATCH, FISHER_INPUTS // numel), prepared.batch_size)

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        for number, (inputs, labels) in enumerate(prepared.batches(size)):
            yield inputs.contiguous(), labels
            if done is not None:
                done(min((number + 1) * size, len(prepared.image_labels)))

    with contiguous(module), from_features(module, prepared.split_point):
        return fisher_diagonal(
            module, counted(),
            estimator=estimator, draws=draws, seed=seed, parameters=prepared.trained,
        )  # fmt: skip
