"""The one loop that runs a model over batches without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pbu_cli.data.preprocessing import batches
from pbu_cli.runtime.batch_size_retry import BatchSizeRetry
from pbu_cli.settings import Preprocessing


@torch.no_grad()
def logits(
    model: nn.Module, pixels: Tensor, preprocessing: Preprocessing, batch_size: int = 256
) -> Tensor:
    """The model's answers to uint8 images [n, k, h, w]: float32 [n, c], on the model's device."""
    device = next(model.parameters()).device
    unused = torch.zeros(len(pixels), dtype=torch.int8)
    rounds = batches(pixels, unused, preprocessing, batch_size, device)
    portion, found = BatchSizeRetry(), list[Tensor]()
    for x, _ in rounds:
        found += portion.each(lambda part, x=x: model(x[part]).float(), len(x))  # type: ignore[misc]
    return torch.cat(found)
