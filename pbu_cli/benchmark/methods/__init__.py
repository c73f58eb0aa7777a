"""What pbu is compared with: one small module a method, all with the same signature.

Nothing of these is imported by the Fisher pass, the unlearning or the evaluation. No torch here.

>>> find("head-mask").reads
'nothing'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pbu_cli.benchmark.methods.task import Method


# As the table has them: the bound, the paper's methods, the authors' own and ours, the controls.
NAMES = (
    "retrain",
    "finetune",
    "fast-effective",
    "bad-teaching",
    "pbu-paper",
    "pbu",
    "head-mask",
    "row-shift",
    "gradient-ascent",
)


def find(name: str) -> Method:
    """The method of one of `NAMES`; its module is imported now."""
    module = import_module(f"pbu_cli.baselines.{name.replace('-', '_')}")
    method: Method = module.METHOD
    return method
