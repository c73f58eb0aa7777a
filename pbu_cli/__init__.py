"""pbu: make a trained classifier forget a class, from that class's images alone.

The library behind the command line, loaded on first use:

>>> import pbu_cli
>>> sorted(pbu_cli.__all__)[:3]
['ForgetSet', 'Preprocessing', 'Schedule']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pbu_cli.checkpoint import read as read_checkpoint
    from pbu_cli.evaluation import evaluate
    from pbu_cli.fisher import fisher_diagonal
    from pbu_cli.forget_set import ForgetSet
    from pbu_cli.network import load_network
    from pbu_cli.settings import Preprocessing, Schedule, Weights
    from pbu_cli.stages import trained_parameters
    from pbu_cli.unlearning import unlearn

_HOMES = {
    "ForgetSet": ("forget_set", "ForgetSet"),
    "Preprocessing": ("settings", "Preprocessing"),
    "Schedule": ("settings", "Schedule"),
    "Weights": ("settings", "Weights"),
    "evaluate": ("evaluation", "evaluate"),
    "fisher_diagonal": ("fisher", "fisher_diagonal"),
    "load_network": ("network", "load_network"),
    "read_checkpoint": ("checkpoint", "read"),
    "trained_parameters": ("stages", "trained_parameters"),
    "unlearn": ("unlearning", "unlearn"),
}

__all__ = [
    "ForgetSet",
    "Preprocessing",
    "Schedule",
    "Weights",
    "evaluate",
    "fisher_diagonal",
    "load_network",
    "read_checkpoint",
    "trained_parameters",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module pbu_cli has no attribute {name}")
    home, inner = _HOMES[name]
    return getattr(import_module(f"pbu_cli.{home}"), inner)
