"""pbu: make a trained classifier forget a class, from that class's images alone.

The library behind the command line. Its names are loaded on first use, so that importing the
package loads no torch:

>>> import pbu_cli
>>> "unlearn_checkpoint" in pbu_cli.__all__
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pbu_cli.errors import PbuError
    from pbu_cli.fisher.diagonal import fisher_diagonal
    from pbu_cli.io.checkpoint import read as read_checkpoint
    from pbu_cli.models.load import load_network
    from pbu_cli.models.parameter_groups import layout_of, trained_parameters
    from pbu_cli.pipeline.evaluate import AuditOptions, EvaluationResult, evaluate_checkpoint
    from pbu_cli.pipeline.fisher import FisherResult, fisher_of_checkpoint
    from pbu_cli.pipeline.unlearn import UnlearningResult, unlearn_checkpoint
    from pbu_cli.records.places import RecordFiles
    from pbu_cli.settings import (
        DEFAULT,
        FAST,
        FisherSettings,
        InputOptions,
        Preprocessing,
        Schedule,
        UnlearningSettings,
        Weights,
    )
    from pbu_cli.unlearning.forget_set import ForgetSet
    from pbu_cli.unlearning.loop import Trainable, unlearn

_MODULES = {
    "AuditOptions": "pipeline.evaluate",
    "DEFAULT": "settings",
    "EvaluationResult": "pipeline.evaluate",
    "FAST": "settings",
    "FisherResult": "pipeline.fisher",
    "FisherSettings": "settings",
    "ForgetSet": "unlearning.forget_set",
    "InputOptions": "settings",
    "PbuError": "errors",
    "Preprocessing": "settings",
    "RecordFiles": "records.places",
    "Schedule": "settings",
    "Trainable": "unlearning.loop",
    "UnlearningResult": "pipeline.unlearn",
    "UnlearningSettings": "settings",
    "Weights": "settings",
    "evaluate_checkpoint": "pipeline.evaluate",
    "fisher_diagonal": "fisher.diagonal",
    "fisher_of_checkpoint": "pipeline.fisher",
    "layout_of": "models.parameter_groups",
    "load_network": "models.load",
    "read_checkpoint": "io.checkpoint",
    "trained_parameters": "models.parameter_groups",
    "unlearn": "unlearning.loop",
    "unlearn_checkpoint": "pipeline.unlearn",
}
_OTHER_NAMES = {"read_checkpoint": "read"}  # the name in its module, where it is another one

__all__ = [
    "DEFAULT",
    "FAST",
    "AuditOptions",
    "EvaluationResult",
    "FisherResult",
    "FisherSettings",
    "ForgetSet",
    "InputOptions",
    "PbuError",
    "Preprocessing",
    "RecordFiles",
    "Schedule",
    "Trainable",
    "UnlearningResult",
    "UnlearningSettings",
    "Weights",
    "evaluate_checkpoint",
    "fisher_diagonal",
    "fisher_of_checkpoint",
    "layout_of",
    "load_network",
    "read_checkpoint",
    "trained_parameters",
    "unlearn",
    "unlearn_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module pbu_cli has no attribute {name}")
    module = import_module(f"pbu_cli.{_MODULES[name]}")
    return getattr(module, _OTHER_NAMES.get(name, name))
