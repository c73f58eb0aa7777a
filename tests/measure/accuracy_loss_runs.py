"""Make the runs that the estimate of the accuracy loss is fitted to.

    python -m tests.measure.accuracy_loss_runs mnist 8 --runs 14 --seed 58 >> FILE.csv

The runs on file are `accuracy_loss_runs.csv`; `accuracy_loss_fit` fits the constants to them. A run
is one line: the drift of the logits on the forget images and on the anchors, which is all that the
estimate has, and the accuracies on the retained test images, which the estimate is to tell. Each
run draws its weights, goal, learning rate and number of steps anew, far into what ruins a network,
and no run is stopped for that. Every fifth run has the settings of `--fast`. Checkpoints and images
come from ../shared.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.data.preprocessing import normalise
from pbu_cli.errors import PbuError
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups, split_by_subfolder
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import prepare_inputs
from pbu_cli.models.frozen_backbone import extract, from_features
from pbu_cli.pipeline.fisher import measure_fisher
from pbu_cli.pipeline.forget_set import build_forget_set
from pbu_cli.settings import DEFAULT, FAST, FisherSettings, InputOptions, UnlearningSettings
from pbu_cli.unlearning.anchor_loss import AnchorLoss
from pbu_cli.unlearning.loop import Trainable, unlearn
from pbu_cli.unlearning.model_inversion import synthesise_anchors
from pbu_cli.unlearning.objective import restricted_log_softmax, stability
from tests.measure.archives import SHARED, unpack
from tests.measure.results import ARCH

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# name -> data, checkpoint, --arch, mean and standard deviation
NETWORKS: dict[str, tuple[str, str, str | None, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "mnist": ("mnist", "mnist_resnet34_fp16", None, ((0.1307,), (0.3081,))),
    "r20": ("cifar10", "cifar10_resnet20", f"{ARCH}:resnet20", IMAGENET),
    "r32": ("cifar10", "cifar10_resnet32", f"{ARCH}:resnet32", IMAGENET),
    "orig": ("cifar10", "cifar10_resnet20_original", f"{ARCH}:resnet20", CIFAR),
}
# The frames name the settings that a run starts from: the default (deep), --fast, and --fast
# without stability on the forget images, which is the paper's objective. The names are on file.
FRAMES = ("deep", "fast", "paper", "deep", "fast")


def draw_settings(run: int, draw: random.Random) -> tuple[str, UnlearningSettings]:
    """The frame and the settings of a run."""

    def times(low: float, high: float) -> float:
        return float(10 ** draw.uniform(low, high))

    frame = FRAMES[run % 5]
    start = DEFAULT if frame == "deep" else FAST
    w, s = start.weights, start.schedule
    weights = replace(
        w, alpha=w.alpha * times(-1, 2), beta=w.beta * times(-2, 1), gamma=w.gamma * times(-2, 1)
    )
    schedule = replace(
        s, seed=run, most_drift=1e9, tau=times(-12, -2), steps=int(times(1.3, 2.2)),
        steps_to_goal=s.steps_to_goal * times(-1.2, 0.3),
    )  # fmt: skip
    if frame == "deep":
        weights = replace(
            weights, delta=2 * times(-2, 1), epsilon=40 * times(-3, 0.3), zeta=2 * times(-1, 1)
        )
    elif frame == "fast":
        weights = replace(weights, delta=100 * times(-4, 0.3))
    else:
        weights = replace(weights, delta=0.0)
    if run % 5 == 4:
        weights, schedule = w, replace(s, seed=run)
    return frame, replace(start, weights=weights, schedule=schedule)


class Case:
    """A network with its forget images, anchors, and the backbone's features of the test images."""

    def __init__(self, network: str, label: int, data: Path) -> None:
        archive, checkpoint, arch, (mean, std) = NETWORKS[network]
        root = data / archive
        classes = sorted(path.name for path in (root / "test").iterdir())
        options = InputOptions(arch=arch, mean=mean, std=std, labels=(str(label),))
        log = InferenceLog()
        loaded = load_model(SHARED / "checkpoints" / f"{checkpoint}.safetensors", options, log)
        folder = str(root / "train" / classes[label])
        self.inputs = prepare_inputs(loaded, [folder], options, log, layers="last")
        self.model = self.inputs.loaded.network.module
        self.forget, _ = build_forget_set(self.inputs, replace(DEFAULT.schedule, mirror=0.0))
        self._extract_test_images(root / "test", label)
        head = self.inputs.loaded.network.layout.head_layer
        assert head is not None
        self.head = head
        with from_features(self.model, self.inputs.split_point):
            chosen = torch.linspace(0, len(self.forget) - 1, DEFAULT.anchors).long()
            self.anchors = synthesise_anchors(
                self.model, self.head, self.forget.inputs(chosen), self.inputs.retained_classes,
                count=DEFAULT.anchors, schedule=DEFAULT.schedule,
            )  # fmt: skip
        self.fisher = measure_fisher(self.inputs, FisherSettings())
        self.theta = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def _extract_test_images(self, folder: Path, label: int) -> None:
        groups = split_by_subfolder(list_groups([str(folder)])[0])
        preprocessing = self.inputs.preprocessing
        pixels = decode(groups, channels=preprocessing.channels, size=preprocessing.size).pixels
        self.labels = torch.cat([torch.full((len(g.paths),), n) for n, g in enumerate(groups)])
        self.retained = self.labels != label
        batches = (normalise(part, preprocessing) for part in pixels.split(256))
        features, self.logits = extract(self.model, self.inputs.split_point, batches)
        assert features is not None
        self.features = features

    def a_dr(self, logits: Tensor, *, masked: bool = False) -> float:
        """A_Dr in percent; with `masked` under the head mask."""
        if masked:
            logits = logits.masked_fill(self.inputs.forgotten, -torch.inf)
        right = logits.argmax(dim=1)[self.retained] == self.labels[self.retained]
        return 100 * right.float().mean().item()

    def run(
        self, frame: str, settings: UnlearningSettings
    ) -> tuple[float, float, float, float] | None:
        """Drift on the forget images and on the anchors, A_Dr and A_Df after a run from theta*.

        None where the loss became NaN or infinite.
        """
        try:
            with from_features(self.model, self.inputs.split_point):
                self._unlearn(frame == "deep", settings)
                forget_inputs = self.forget.inputs(torch.arange(len(self.forget)))
                on_forget, on_anchors, on_test = (
                    extract(self.model, None, inputs.split(256))[1]
                    for inputs in (forget_inputs, self.anchors.inputs, self.features)
                )
        except PbuError:
            return None
        finally:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(self.theta[name])
        forgotten = ~self.retained
        right = on_test.argmax(dim=1)[forgotten] == self.labels[forgotten]
        return (
            self._drift(on_forget, self.forget.logits),
            self._drift(on_anchors, self.anchors.logits),
            self.a_dr(on_test),
            100 * right.float().mean().item(),
        )

    def _unlearn(self, with_anchors: bool, settings: UnlearningSettings) -> None:
        inputs, weights, schedule = self.inputs, settings.weights, settings.schedule
        trained, anchor_loss = inputs.trained, None
        if with_anchors:
            trained = [name for name in inputs.trained if name not in set(inputs.head)]
            anchor_loss = AnchorLoss(
                self.model, self.head, self.anchors, inputs.forgotten, weights, schedule
            )
        for _ in unlearn(
            self.model, self.forget, self.fisher, Trainable(trained, inputs.head),
            weights=weights, schedule=schedule, anchor_loss=anchor_loss,
        ):  # fmt: skip
            pass

    def _drift(self, logits: Tensor, before: Tensor) -> float:
        forgotten = self.inputs.forgotten
        return stability(logits, restricted_log_softmax(before, forgotten), forgotten).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("label", type=int)
    parser.add_argument("--runs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, out = random.Random(given.seed), csv.writer(sys.stdout)
    with tempfile.TemporaryDirectory() as scratch:
        archive = NETWORKS[given.network][0]
        unpack(SHARED / "data" / f"{archive}.tar.xz", Path(scratch) / archive)
        case = Case(given.network, given.label, Path(scratch))
    before, masked = case.a_dr(case.logits), case.a_dr(case.logits, masked=True)
    for number in range(given.runs):
        frame, settings = draw_settings(number, draw)
        found = case.run(frame, settings)
        if found is None:
            continue
        *drifts, after, a_df = found
        named = (given.network, given.label, given.seed, number, frame)
        measured = (f"{value:.3f}" for value in (before, masked, after, a_df))
        out.writerow([*named, *(f"{drift:.6f}" for drift in drifts), *measured])
        sys.stdout.flush()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
