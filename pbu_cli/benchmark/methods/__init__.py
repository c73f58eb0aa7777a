"""The methods that pbu is compared with, one module each, all with the signature of `task.Method`.

The folders say what a method is: `retained_images` holds the methods that read retained images,
`forget_images` those that read the forget images alone, and `controls` what no paper proposes.

The Fisher pass, the unlearning and the evaluation import none of them. This module loads no torch.

Each module states its source, the images that it reads, and how it deviates from its source. Its
settings are written into the results: a stored cell is used again only while they are the same.
The names of the settings must therefore stay as they are.

>>> find("head-mask").reads
'nothing'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pbu_cli.errors import InvalidUsage, printable

if TYPE_CHECKING:
    from pbu_cli.benchmark.methods.task import Method


# The folder of each method, in the order of the table: retraining, the paper's other methods, newer
# methods by year, the authors' recipe and ours, and the controls.
FOLDERS = {
    "retrain": "retained_images",
    "finetune": "retained_images",
    "fast-effective": "retained_images",
    "bad-teaching": "retained_images",
    "boundary-shrink": "forget_images",
    "jit": "forget_images",
    "delete": "forget_images",
    "mu-mis": "forget_images",
    "pour": "forget_images",
    "pbu-paper": "forget_images",
    "pbu": "forget_images",
    "head-mask": "controls",
    "row-shift": "controls",
    "gradient-ascent": "controls",
}
NAMES = tuple(FOLDERS)


def find(name: str) -> Method:
    """The method with one of the NAMES. Its module, and torch with it, is imported by this call."""
    module = import_module(f"{__name__}.{FOLDERS[name]}.{name.replace('-', '_')}")
    method: Method = module.METHOD
    return method


def parse_methods(text: str) -> tuple[str, ...]:
    """The names in a text such as `retrain,pbu` or `all`, in the order of the table.

    Raises InvalidUsage for a name that is not one of the NAMES.

    >>> parse_methods("pbu, retrain")
    ('retrain', 'pbu')
    """
    names = NAMES if text == "all" else tuple(part.strip() for part in text.split(","))
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise InvalidUsage(
            f"--methods {printable(unknown[0])}: expected all, or some of {', '.join(NAMES)}"
        )
    return tuple(name for name in NAMES if name in names)
