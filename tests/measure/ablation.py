"""What each part of the default method is worth: class ship of the pair in ../shared, with one part
left out at a time.

    python -m tests.measure.ablation                          # some 45 minutes on one core
    python -m tests.measure.ablation "no anchors" "zeta 0"

Unlearns all training images of the class and audits on the test split. Parts that have no flag
are left out by atomic_write the default settings, the reach and the row by atomic_write what does it.
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

from pbu_cli.settings import DEEP
from tests.measure.archives import unpack
from tests.measure.results import CASES, SHARED, pbu

CLASS = "ship"
MEASURES = ("probe", "probe_recall", "odds_auc", "relearnt", "log_p_retain")
Part = Callable[[], AbstractContextManager[Any]]


@contextmanager
def schedule(**changes: float) -> Iterator[None]:
    """The default preset with a changed schedule."""
    changed = replace(DEEP, schedule=replace(DEEP.schedule, **changes))
    with patch("pbu_cli.cli.unlearn.DEEP", changed):
        yield


def no_reach() -> AbstractContextManager[Any]:
    return patch(
        "pbu_cli.unlearning.anchor_loss.AnchorLoss._outside", lambda self, ours: torch.zeros(())
    )


def row_stays() -> AbstractContextManager[Any]:
    return patch("pbu_cli.unlearning.anchor_loss.AnchorLoss.withdraw", lambda self, answers: None)


# name -> flags of unlearn, and what holds while it runs
PARTS: dict[str, tuple[list[str], Part]] = {
    "default": ([], nullcontext),
    "beta 0": (["--beta", "0"], nullcontext),
    "gamma 0": (["--gamma", "0"], nullcontext),
    "beta 0, gamma 0": (["--beta", "0", "--gamma", "0"], nullcontext),
    "delta 1e-9": (["--delta", "1e-9"], nullcontext),
    "epsilon 0": (["--epsilon", "0"], nullcontext),
    "zeta 0": (["--zeta", "0"], nullcontext),
    "no anchors": (["--anchors", "0", "--epsilon", "0", "--zeta", "0"], nullcontext),
    "no separation": ([], lambda: schedule(apart=1e9)),
    "no reach": ([], no_reach),
    "no scatter": ([], lambda: schedule(scatter=1e-9)),
    "row stays": ([], row_stays),
    "no odds from below": ([], lambda: schedule(restraint=0.0)),
    "none mirrored": (["--no-mirror"], nullcontext),
    "none imagined": ([], lambda: schedule(imagined=0.0)),
    "head trains too": (["--layers", "last"], nullcontext),
}


def row(name: str, data: Path, place: Path) -> dict[str, Any]:
    _, checkpoint, own, _ = CASES["original"]
    flags, held = PARTS[name]
    output = str(place / "out.safetensors")
    start = str(SHARED / "checkpoints" / f"{checkpoint}.safetensors")
    with held():
        pbu("unlearn", start, "--forget", str(data / "train" / CLASS), "-o", output, "--force",
            *own, *flags)  # fmt: skip
    test = data / "test"
    _, found = pbu("evaluate", output, "--forget", str(test / CLASS), "--retain", str(test),
                   "--audit", *own)  # fmt: skip
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
