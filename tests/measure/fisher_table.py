"""The Fisher diagonal of torchvision's classifiers against a batch-of-one loop, in float64.

`python -m tests.measure.fisher_table [NAME ...]`: random weights, 3 images, 4 classes. It takes
some minutes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import torch
from torchvision import models

from pbu_cli.fisher.diagonal import fisher_diagonal
from tests.fisher.fisher_oracle import errors, fisher_loop, randomised, strategies_of

SIZES = {"inception_v3": 75, "maxvit_t": 224, "swin_t": 64, "swin_v2_t": 64, "googlenet": 64}
OPTIONS: dict[str, dict[str, Any]] = {
    "vit_b_16": {"image_size": 32},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
NAMES = """
resnet34 resnext50_32x4d wide_resnet50_2 densenet121 convnext_tiny vit_b_16 swin_t swin_v2_t
efficientnet_b0 efficientnet_v2_s regnet_x_400mf regnet_y_400mf mobilenet_v2 mobilenet_v3_small
mnasnet0_5 shufflenet_v2_x0_5 maxvit_t googlenet inception_v3 squeezenet1_0 squeezenet1_1 vgg11
vgg11_bn alexnet
"""


def main(names: list[str]) -> None:
    columns = f"{'whole':>9}{'worst':>9}{'loop s':>8}{'pass s':>8}  strategies"
    print(f"{'model':<20}{'estimator':<11}{columns}")
    for name in names or NAMES.split():
        model = randomised(models.get_model(name, num_classes=4, **OPTIONS.get(name, {})))
        size = SIZES.get(name, 64 if name in ("alexnet", "squeezenet1_0") else 32)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)
        labels = torch.tensor([0, 3, 1])
        strategies = Counter(strategies_of(model, x).values())
        for estimator in ("empirical", "exact"):
            start = time.perf_counter()
            expected = fisher_loop(model, x, labels, estimator)
            middle = time.perf_counter()
            found = fisher_diagonal(model, [(x, labels)], estimator=estimator)
            end = time.perf_counter()
            whole, worst, where = errors(found, expected)
            print(
                f"{name:<20}{estimator:<11}{whole:9.1e}{worst:9.1e}{middle - start:8.1f}"
                f"{end - middle:8.1f}  {dict(strategies)} worst: {where}",
                flush=True,
            )
            assert whole < 1e-10, f"{name} {estimator}"
            assert worst < 1e-8, f"{name} {estimator} {where}"


if __name__ == "__main__":
    main(sys.argv[1:])
