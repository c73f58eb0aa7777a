"""The folder ../shared with checkpoints and images, and how its archives are unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[3] / "shared"


def unpack(
    archive: Path,
    place: Path,
    choose: Callable[[tarfile.TarFile], Iterable[tarfile.TarInfo]] = lambda file: file,
) -> Path:
    """Unpack the members that `choose` returns into the folder `place`, and return that folder."""
    # Python before 3.10.12 and 3.11.4 has no filters. The archives are our own.
    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as file:
        file.extractall(place, list(choose(file)), **safe)
    return place
