"""The archives of ../shared, unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def unpack(
    archive: Path,
    place: Path,
    wanted: Callable[[tarfile.TarFile], Iterable[tarfile.TarInfo]] = lambda file: file,
) -> Path:
    """Unpack what is `wanted` of an archive to `place`, which is returned."""
    # Pythons before 3.10.12 and 3.11.4 know no filters; the archives are our own.
    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as file:
        file.extractall(place, list(wanted(file)), **safe)
    return place
