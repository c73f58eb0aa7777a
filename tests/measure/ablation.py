"""What each part of the default method contributes: one part is left out at a time.

    python -m tests.measure.ablation                          # about 45 minutes on one core
    python -m tests.measure.ablation "no anchors" "zeta 0"

The case is class ship of `cifar10_resnet20_original` in ../shared. Each run unlearns all training
images of the class and audits the result on the test split. A part that has no flag is left out by
other default settings. The distance hinge and the change of the class row have no setting either:
there the code that does it is replaced.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from pbu_cli.settings import DEFAULT
from tests.measure.archives import SHARED, unpack
from tests.measure.results import CASES, pbu

CLASS = "ship"
ANCHOR_LOSS = "pbu_cli.unlearning.anchor_loss.AnchorLoss"
MEASURES = ("probe", "probe_recall", "odds_auc", "relearnt", "log_p_retain")
Part = Callable[[], AbstractContextManager[Any]]


@contextmanager
def schedule(**changes: Any) -> Iterator[None]:
    """The default settings with a changed schedule."""
    changed = replace(DEFAULT, schedule=replace(DEFAULT.schedule, **changes))
    with patch("pbu_cli.cli.unlearn.DEFAULT", changed):
        yield


def no_separation_loss() -> AbstractContextManager[Any]:
    return patch(f"{ANCHOR_LOSS}._separation_loss", lambda self, *found: torch.zeros(()))


def no_distance_hinge() -> AbstractContextManager[Any]:
    return patch(f"{ANCHOR_LOSS}._distance_hinge", lambda self, forget: torch.zeros(()))


def class_row_stays() -> AbstractContextManager[Any]:
    return patch(f"{ANCHOR_LOSS}.apply", lambda self, logits: None)


# name -> flags of unlearn, and a context that holds while it runs
PARTS: dict[str, tuple[list[str], Part]] = {
    "none: the default": ([], nullcontext),
    "beta 0": (["--beta", "0"], nullcontext),
    "gamma 0": (["--gamma", "0"], nullcontext),
    "beta 0, gamma 0": (["--beta", "0", "--gamma", "0"], nullcontext),
    "delta 1e-9": (["--delta", "1e-9"], nullcontext),
    "epsilon 0": (["--epsilon", "0"], nullcontext),
    "zeta 0": (["--zeta", "0"], nullcontext),
    "no anchors": (["--anchors", "0", "--epsilon", "0", "--zeta", "0"], nullcontext),
    "no separation loss": ([], no_separation_loss),
    "no distance hinge": ([], no_distance_hinge),
    "no variance hinge": ([], lambda: schedule(scatter=1e-9)),
    "class row stays": ([], class_row_stays),
    "log odds may fall below the goal": ([], lambda: schedule(restraint=0.0)),
    "no mirror images": (["--no-mirror"], nullcontext),
    "no synthetic forget inputs": ([], lambda: schedule(imagined=0.0)),
    "head trains too": (["--layers", "last"], nullcontext),
}


def row(name: str, data: Path, place: Path) -> dict[str, Any]:
    """Unlearn without the part `name` and return the measures of the result."""
    _, checkpoint, case_flags, _ = CASES["original"]
    flags, without_part = PARTS[name]
    output = str(place / "out.safetensors")
    original = str(SHARED / "checkpoints" / f"{checkpoint}.safetensors")
    with without_part():
        pbu("unlearn", original, "--forget", str(data / "train" / CLASS), "-o", output, "--force",
            *case_flags, *flags)  # fmt: skip
    test = data / "test"
    _, found = pbu("evaluate", output, "--forget", str(test / CLASS), "--retain", str(test),
                   "--audit", *case_flags)  # fmt: skip
    (score,) = found["scores"]
    (audit,) = (network["measures"] for network in found["audit"]["networks"])
    return {
        "part": name,
        "a_df": score["a_df"],
        "a_dr": score["a_dr"],
        **{measure: audit[measure]["value"] for measure in MEASURES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    table = Table("left out", "A_Df", "A_Dr", "probe", "recall", "odds AUC", "relearnt", "log P")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        unpack(SHARED / "data" / "cifar10.tar.xz", place / "cifar10")
        for name in parser.parse_args().parts or PARTS:
            found = row(name, place / "cifar10", place)
            print(json.dumps(found), flush=True)
            table.add_row(
                name, f"{found['a_df']:.1f}", f"{found['a_dr']:.1f}", f"{found['probe']:.1f}",
                f"{found['probe_recall']:.1f}", f"{found['odds_auc']:.3f}",
                f"{found['relearnt']:.1f}", f"{found['log_p_retain']:.1f}",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
