"""The last stage and the head that pbu finds in networks of timm and of transformers.

    python -m tests.measure.last_stages [timm] [transformers] [NAME ...] > results/last_stages.csv

Of each module file of timm the smallest network of at most 30 million parameters is built, and of
each image classifier of transformers one with a small configuration, all with random weights.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pbu_cli.models.layer_order import layout_by_order
from pbu_cli.models.layer_trace import traced

LARGEST = 30_000_000
CLASSES = 7
SMALL: dict[str, object] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
COLUMNS = ("library", "family", "network", "tensors", "starts at", "ends at", "share", "head")


class Logits(nn.Module):
    """A network of transformers that returns its logits alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x).logits
        assert isinstance(logits, Tensor)
        return logits


def smallest_of_timm() -> dict[str, str]:
    """The smallest network of each module file, by module."""
    import timm

    sizes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in timm.list_models(exclude_filters="test_*"):
        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # a network that computes while it is built
            continue
        size = sum(p.numel() for p in model.parameters())
        if size <= LARGEST:
            sizes[module].append((size, name))
    return {module: min(found)[1] for module, found in sorted(sizes.items())}


def of_timm(names: list[str]) -> Iterator[tuple[str, str, nn.Module, tuple[int, ...]]]:
    import timm

    for family, name in smallest_of_timm().items() if not names else zip(names, names, strict=True):
        model = timm.create_model(name, num_classes=CLASSES)
        yield family, name, model, tuple(model.default_cfg["input_size"])


def of_transformers(names: list[str]) -> Iterator[tuple[str, str, nn.Module, tuple[int, ...]]]:
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
    )

    classifier: Callable[[object], nn.Module] = AutoModelForImageClassification.from_config
    for family, classes in CLASSIFIERS.items():
        if names and family not in names:
            continue
        try:
            named = [classes] if isinstance(classes, str) else list(classes[:1])
            config = AutoConfig.for_model(family, num_labels=CLASSES, architectures=named)
            with torch.device("meta"):
                model = classifier(config)
            if sum(p.numel() for p in model.parameters()) > LARGEST:
                changes = {
                    k: v for k, v in SMALL.items() if isinstance(getattr(config, k, None), int)
                }
                config = AutoConfig.for_model(
                    family, num_labels=CLASSES, architectures=named, **changes
                )
            model = classifier(config)
        except Exception as error:
            print(f"{family}: {type(error).__name__}: {error}"[:200], file=sys.stderr)
            continue
        size = getattr(config, "image_size", None) or 224
        size = size if isinstance(size, int) else size[0]
        yield family, named[0], Logits(model), (getattr(config, "num_channels", 3), size, size)


def row(model: nn.Module, shape: tuple[int, ...]) -> list[object]:
    """What the CSV says of a network, from `tensors` on."""
    with torch.no_grad(), traced(model.eval()) as trace:
        model(torch.zeros(2, *shape))
    layout = layout_by_order(model, trace, CLASSES)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    share = sum(sizes[name] for name in layout.stage) / sum(sizes.values())
    ends = (layout.stage or ("",))[0], (layout.stage or ("",))[-1]
    heads = sorted({name.rpartition(".")[0] for name in layout.head})
    return [len(layout.stage), *ends, f"{share:.3f}", " ".join(heads)]


def main(arguments: list[str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    sources = {"timm": of_timm, "transformers": of_transformers}
    names = [name for name in arguments if name not in sources]
    for library in [name for name in sources if name in arguments] or sources:
        for family, name, model, shape in sources[library](names):
            try:
                writer.writerow([library, family, name, *row(model, shape)])
            except Exception as error:  # the report goes on with the next network
                print(f"{family}: {type(error).__name__}: {error}"[:300], file=sys.stderr)
            sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1:])
