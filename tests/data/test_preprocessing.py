"""Normalised batches and the logits of a model on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pbu_cli.data.preprocessing import batches, image_logits, input_batches, model_inputs, normalise
from pbu_cli.settings import Preprocessing

CPU = torch.device("cpu")
COLOUR = Preprocessing((4, 5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PIXELS = torch.randint(0, 256, (7, 3, 4, 5), dtype=torch.uint8)
LABELS = torch.arange(7)


def oracle() -> Tensor:
    """Normalised one channel at a time in float64."""
    x = PIXELS.double() / 255
    for k in range(3):
        x[:, k] = (x[:, k] - COLOUR.mean[k]) / COLOUR.std[k]
    return x.float()


def test_pixels_are_normalised_channel_by_channel_and_not_changed() -> None:
    before = PIXELS.clone()
    torch.testing.assert_close(normalise(PIXELS, COLOUR), oracle())
    inputs = model_inputs(PIXELS, COLOUR, CPU)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(inputs, normalise(PIXELS, COLOUR))
    assert torch.equal(PIXELS, before)


def test_batches_cover_all_images_in_order() -> None:
    found = list(batches(PIXELS, LABELS, COLOUR, 3, CPU))
    assert [len(x) for x, _ in found] == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _ in found]), normalise(PIXELS, COLOUR))
    assert torch.cat([labels for _, labels in found]).tolist() == LABELS.tolist()
    inputs = torch.cat(list(input_batches(PIXELS, COLOUR, 3, CPU)))
    assert torch.equal(inputs, normalise(PIXELS, COLOUR))


def test_logits_do_not_depend_on_the_batch_size() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 4)).eval()
    expected = model(oracle()).detach()
    for batch_size in (1, 3, 256):
        logits = image_logits(model, PIXELS, COLOUR, batch_size)
        assert not logits.requires_grad
        torch.testing.assert_close(logits, expected)
