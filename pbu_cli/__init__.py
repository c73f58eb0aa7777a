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
    from pbu_cli.evaluation.evaluate import evaluate
    from pbu_cli.fisher.diagonal import fisher_diagonal
    from pbu_cli.io.checkpoint import read as read_checkpoint
    from pbu_cli.models.load import load_network
    from pbu_cli.models.parameter_groups import trained_parameters
    from pbu_cli.settings import Preprocessing, Schedule, Weights
    from pbu_cli.unlearning.forget_set import ForgetSet
    from pbu_cli.unlearning.loop import unlearn

_HOMES = {
    "ForgetSet": ("unlearning.forget_set", "ForgetSet"),
    "Preprocessing": ("settings", "Preprocessing"),
    "Schedule": ("settings", "Schedule"),
    "Weights": ("settings", "Weights"),
    "evaluate": ("evaluation.evaluate", "evaluate"),
    "fisher_diagonal": ("fisher.diagonal", "fisher_diagonal"),
    "load_network": ("models.load", "load_network"),
    "read_checkpoint": ("io.checkpoint", "read"),
    "trained_parameters": ("models.parameter_groups", "trained_parameters"),
    "unlearn": ("unlearning.loop", "unlearn"),
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
