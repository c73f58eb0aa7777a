"""The Fisher diagonal of the last stage in each family of timm and of transformers.

    python -m tests.measure.fisher_families [timm] [transformers] [FAMILY ...]

Each network has random weights and is built as pbu builds it for a checkpoint. pbu's diagonal of
the parameters of `--layers stage` is compared with a loop over batches of one image in float64. A
row is added to results/fisher_families.csv for each network that has none yet. Columns:

    empirical, exact    the largest relative error of a tensor; pbu computes in float64
    float32             the same for `empirical`; pbu computes in float32, as it does for the user
    loop float32        the same for the loop itself in float32: what rounding does to this network
    fallback            the parameters without a rule of their own: the strategy, how many they are,
                        the first of them, and the torch functions that take them
    ratio               seconds of the pass over 8 images with `empirical`, without the plan, over
                        seconds of a plain forward and backward pass with the same gradients
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.fisher.dispatch import PER_IMAGE, UNUSED, VIA_AUTOGRAD
from pbu_cli.fisher.validated_plan import crops_and_plan, in_eval_mode, named_parameters
from pbu_cli.models.frozen_backbone import SplitPoint, extract, find_split_point, from_features
from pbu_cli.models.parameter_groups import layout_of, trained_parameters
from pbu_cli.models.sources import timm as of_timm
from pbu_cli.models.sources import transformers as of_transformers
from pbu_cli.models.sources.construction import without_caches
from tests.fisher.fisher_oracle import fisher_loop, largest_error, randomised
from tests.networks.tiny_transformers import TINY

RESULTS = Path(__file__).parent / "results"
PLACE = RESULTS / "fisher_families.csv"
COLUMNS = ("library", "family", "network", "size", "parameters", "empirical", "exact", "float32",
           "loop float32", "fallback", "ratio")  # fmt: skip
CLASSES = 3
LABELS = torch.tensor([0, 2, 1])
SIZES = (64, 96, 128, 160, 192, 224, 240, 256)
TIMED = 8  # images, a quarter of them above 100 pixels
LIMIT = 45  # seconds for each network

Built = tuple[str, nn.Module, int]  # the network's name, the network, the side of its images


def build_timm(name: str) -> Built:
    """timm's network for the smallest images that it takes."""
    timm: Any = import_module("timm")
    for size in SIZES:
        for options in ({"img_size": size}, {}):
            try:
                model = timm.create_model(name, num_classes=CLASSES, **options)
                with torch.no_grad():
                    model.eval()(torch.zeros(2, 3, size, size))
            except Exception:  # it takes no size, or not this one
                continue
            shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
            model = of_timm.build(name, shapes, {}, (size, size))[0]
            without_caches(model)
            return name, model, size
    raise ValueError(f"{name}: takes none of the sizes")


def build_transformers(family: str) -> Built:
    """transformers' network with the small configuration."""
    transformers: Any = import_module("transformers")
    auto: Any = import_module("transformers.models.auto.modeling_auto")
    classes = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[family]
    name = classes if isinstance(classes, str) else classes[0]
    config = transformers.CONFIG_MAPPING[family](
        num_labels=CLASSES, architectures=[name], **TINY[family]
    )
    sketch = getattr(transformers, name)(config)
    shapes = {key: tuple(value.shape) for key, value in sketch.state_dict().items()}
    written = json.loads(json.dumps(config.to_dict(), default=str))  # as a config.json holds it
    model = of_transformers.build(written, shapes)[0]
    without_caches(model)
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 64
    return name, model, size if isinstance(size, int) else size[0]


def networks(arguments: Sequence[str]) -> Iterator[tuple[str, str, Callable[[], Built]]]:
    """(library, family, function that builds the network) of what the command line names."""
    with (RESULTS / "last_stages.csv").open() as file:
        timm = {row["family"]: row["network"] for row in csv.DictReader(file)
                if row["library"] == "timm"}  # fmt: skip
    families = [name for name in arguments if name not in ("timm", "transformers")]
    libraries = [name for name in arguments if name not in families] or ["timm", "transformers"]
    if "timm" in libraries:
        for family, name in timm.items():
            if not families or family in families:
                yield "timm", family, lambda name=name: build_timm(name)  # type: ignore[misc]
    if "transformers" in libraries:
        for family in TINY:
            if not families or family in families:
                yield "transformers", family, lambda f=family: build_transformers(f)  # type: ignore[misc]


class Uses(TorchFunctionMode):
    """The torch functions that take each of the parameters, by name of the parameter."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.found: dict[str, list[str]] = defaultdict(list)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for value in [*args, *(kwargs or {}).values()]:
            for part in value if isinstance(value, list | tuple) else [value]:
                if id(part) in self.names:
                    name = (resolve_name(func) or str(func)).rpartition("torch.")[2]
                    self.found[self.names[id(part)]].append(name)
        return func(*args, **(kwargs or {}))


def fallbacks(model: nn.Module, names: list[str], x: Tensor) -> str:
    """The parameters without a rule of their own, in words."""
    with in_eval_mode(model):
        parameters = named_parameters(model, names)
        strategies = crops_and_plan(model, parameters, x)[1].strategies
        for p in parameters.values():
            p.requires_grad_(True)
        with Uses(parameters) as uses:
            model(x)
    texts = []
    for strategy in (PER_IMAGE, VIA_AUTOGRAD, UNUSED):
        chosen = [name for name in names if strategies[name] == strategy]
        functions = sorted(
            {f for name in chosen for f in uses.found[name]} - {"Tensor.requires_grad.__get__"}
        )
        if chosen:
            texts.append(f"{strategy} {len(chosen)}: {chosen[0]} ({' '.join(functions)})")
    return "; ".join(texts)


def diagonal(
    model: nn.Module, names: list[str], split: SplitPoint | None, x: Tensor, estimator: Any
) -> dict[str, Tensor]:
    """What `pbu fisher` computes: the pass over the features of the frozen backbone."""
    features, _ = extract(model, split, [x])
    with from_features(model, split):
        batches = [(x if features is None else features, LABELS)]
        return fisher_diagonal(model, batches, estimator=estimator, parameters=names)


def ratio(model: nn.Module, names: list[str], x: Tensor, repeats: int = 3) -> float:
    """Seconds of the pass over seconds of a plain forward and backward pass, medians."""
    labels = torch.arange(len(x)) % CLASSES
    parameters = named_parameters(model, names)
    plains, passes = [], []

    def plain() -> None:
        with torch.enable_grad():
            loss = F.cross_entropy(model(x), labels)
            torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(repeats + 1):
            start = time.perf_counter()
            yield x, labels
            passes.append(time.perf_counter() - start)

    fisher_diagonal(model, batches(), parameters=names)
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for _ in range(repeats + 1):
        start = time.perf_counter()
        plain()
        plains.append(time.perf_counter() - start)
    return median(passes[1:]) / median(plains[1:])


def row(model: nn.Module, size: int) -> list[object]:
    """What the CSV says of a network, from `size` on."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)
    many = torch.randn(TIMED if size < 100 else TIMED // 4, 3, size, size, generator=generator)
    layout = layout_of(model, None, x[:2].float())
    names = trained_parameters(model, layout, "stage")[0]
    model = randomised(model).eval()
    with torch.no_grad():  # so that no class has a probability of one
        deviation = float(model(x).std())
        for name in layout.head:
            model.get_parameter(name).div_(deviation)
    split = find_split_point(model, names, x[:2])
    expected = {e: fisher_loop(model, x, LABELS, e, names) for e in ("empirical", "exact")}
    each = [largest_error(diagonal(model, names, split, x, e), expected[e]) for e in expected]
    model.float()
    single = diagonal(model, names, split, x.float(), "empirical")
    each.append(largest_error(single, expected["empirical"]))
    looped = fisher_loop(model, x.float(), LABELS, "empirical", names)
    each.append(largest_error(looped, expected["empirical"]))
    return [
        size,
        len(names),
        *(f"{error:.1e}" for error in each),
        fallbacks(model, names, x.float()),
        f"{ratio(model, names, many):.2f}",
    ]


def main(arguments: list[str]) -> None:
    done: set[tuple[str, str]] = set()
    if PLACE.exists():
        with PLACE.open() as file:
            done = {(row["library"], row["family"]) for row in csv.DictReader(file)}
    with PLACE.open("a") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow(COLUMNS)
        for library, family, build in networks(arguments):
            if (library, family) in done:
                continue
            start = time.perf_counter()
            torch.manual_seed(0)
            signal.alarm(LIMIT)
            try:
                name, model, size = build()
                writer.writerow([library, family, name, *row(model, size)])
                file.flush()
            except Exception as error:  # the report goes on with the next network
                print(f"{library} {family}: {type(error).__name__}: {error}"[:400], file=sys.stderr)
            signal.alarm(0)
            seconds = time.perf_counter() - start
            print(f"{library} {family}: {seconds:.0f} s", file=sys.stderr, flush=True)


def too_long(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT} seconds")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, too_long)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1:])
