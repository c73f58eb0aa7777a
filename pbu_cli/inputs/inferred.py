"""What was inferred: a value together with its source, and the log that keeps all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Inferred(Generic[Value]):
    """One thing that the user did not have to say.

    what: its name, such as `input size`. value: the value itself. source: what the value was
    inferred from. text: the value in words, where `str(value)` does not read well.

    >>> Inferred("classes", 10, "the head").entry()
    {'what': 'classes', 'value': '10', 'source': 'the head'}
    """

    what: str
    value: Value
    source: str
    text: str = ""

    def entry(self) -> dict[str, str]:
        """The texts for a JSON document and a run record."""
        return {"what": self.what, "value": self.text or str(self.value), "source": self.source}


class InferenceLog:
    """Everything that a run has inferred, in order, and everything that it warns of.

    show, show_warning: called with each entry as it is added. The command line prints them; a
    library user may leave both out and read the entries from the result.

    >>> log = InferenceLog()
    >>> log.add(Inferred("classes", 10, "the head"))
    10
    """

    def __init__(
        self,
        show: Callable[[Inferred[Any]], None] = lambda inferred: None,
        show_warning: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.inferred: list[Inferred[Any]] = []
        self.warnings: list[str] = []
        self._show, self._show_warning = show, show_warning

    def add(self, inferred: Inferred[Value]) -> Value:
        """Keep and show what was inferred, and hand back its value."""
        self.inferred.append(inferred)
        self._show(inferred)
        return inferred.value

    def warn(self, messages: Iterable[str]) -> None:
        """Keep and show warnings."""
        for message in messages:
            self.warnings.append(message)
            self._show_warning(message)

    def entries(self) -> list[dict[str, str]]:
        """The texts of everything inferred, for a JSON document and a run record."""
        return [inferred.entry() for inferred in self.inferred]
