"""Made-up cells of a benchmark: fields of any kind under a digest that holds, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pbu_cli import __version__
from pbu_cli.benchmark.result_store import Cell, read, seal
from pbu_cli.benchmark.table import document, plot_points, summarise, table
from pbu_cli.errors import CheckpointError
from tests.attack.cases import edited, json_texts

NAME, ORIGINAL = "seed0-class8-pbu", "0" * 64
SETTINGS = {"alpha": 1.0}
OUTCOME = {"stage": "", "measures": {"a_df": 0.0, "a_dr": 98.2}, "seconds": 1.5, "images": 640}
DOCUMENT: dict[str, Any] = {
    "schema": 1, "pbu": __version__, "seed": 0, "label": 8, "method": "pbu", "reads": "forget",
    "settings": SETTINGS, "outcomes": [OUTCOME], "original": ORIGINAL,
}  # fmt: skip
FIELDS = [*DOCUMENT, *OUTCOME, "seal", "a_df", "a_dr", "odds_auc"]


def sealed(content: Any) -> bytes:
    """The JSON of a cell with its digest, as far as the content has one."""
    if isinstance(content, dict):
        content = {**content, "seal": seal(content)}
    return json.dumps(content).encode()


def cell_original() -> bytes:
    return sealed(DOCUMENT)


def cells() -> st.SearchStrategy[bytes]:
    leaf = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
        | st.sampled_from(["\x1b[2J", "[bold]x", "0" * 64, "forget", 1e308, -1, 2**64, 100.0, 0])
    )  # fmt: skip
    value = st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=6,
    )

    def changed(original: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        some = st.dictionaries(st.sampled_from([*original, "more"]), value, max_size=2)
        return some.map(lambda changes: {**original, **changes})

    measures = st.fixed_dictionaries({"a_df": leaf, "a_dr": leaf}, optional={"odds_auc": leaf})
    outcome = changed(OUTCOME) | measures.map(lambda found: {**OUTCOME, "measures": found})
    outcomes = st.lists(outcome, max_size=3).map(lambda found: {**DOCUMENT, "outcomes": found})
    whole = changed(DOCUMENT) | outcomes
    return whole.map(sealed) | edited(cell_original()) | json_texts(FIELDS)


def feed_cell(data: bytes, folder: Path) -> None:
    """What is read has to be shown: as a table, as a picture and as JSON."""
    (folder / f"{NAME}.json").write_bytes(data)
    try:
        found = read(folder, NAME, SETTINGS, ORIGINAL)
    except CheckpointError:
        if not data.startswith(b"{"):
            raise
        resealed = _resealed(data)
        if resealed is None:
            raise
        (folder / f"{NAME}.json").write_bytes(resealed)
        found = read(folder, NAME, SETTINGS, ORIGINAL)
    assert isinstance(found, Cell)
    rows = summarise([found], "mnist", "resnet34")
    for line in table(rows)[1]:
        assert all(text.isprintable() for text in line)
    json.dumps([document(row) for row in rows], allow_nan=False)
    plot_points(rows)


def _resealed(data: bytes) -> bytes | None:
    """The same cell with a digest that holds, so that edits by coverage get past the digest."""
    try:
        return sealed(json.loads(data))
    except (ValueError, RecursionError):
        return None
