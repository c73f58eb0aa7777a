"""The documents: links lead somewhere, commands can be typed, the README stays short."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    path
    for folder in (ROOT, *(ROOT / name for name in (".github", "pbu_cli", "tests")))
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
LINES_OF_THE_README = 180

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """The text of a page without fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), flags=re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in plain}


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, fragment = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            yield f"{target}: no such file"
        elif fragment and (place.suffix != ".md" or fragment not in anchors(place)):
            yield f"{target}: no such heading"


def command_lines(page: Path) -> Iterator[str]:
    """The lines of indented and shell blocks, continuation lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    shell = re.findall(r"^```(?:sh|bash|shell|console)?\n(.*?)^```", text, flags=re.M | re.S)
    indented = re.findall(r"^(?: {4}|\t)(\S.*)$", prose(page).replace("\\\n", " "), flags=re.M)
    for line in (*indented, *(line for block in shell for line in block.splitlines())):
        yield line.removeprefix("$ ")


def pbu_calls(line: str) -> Iterator[list[str]]:
    """The arguments of every `pbu` in a line of shell; comments and redirections are left out."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # an apostrophe: prose in an indented block
        return
    starts = {*COMMANDS, "--version"}
    call: list[str] | None = None
    for number, word in enumerate(words):
        if set(word) <= set("|&;<>"):
            if call is not None:
                yield call
            call = None
        elif call is not None:
            call.append(word)
        elif Path(word).name == "pbu" and set(words[number + 1 : number + 2]) & starts:
            call = []  # elsewhere it is the name of a Docker image or of a folder
    if call is not None:
        yield call


def parse(call: list[str]) -> None:
    """Parse one command line as typer does, without running it. Raises typer's UsageError."""
    if call == ["--version"]:
        return
    name, *arguments = call
    COMMANDS[name].make_context(name, arguments)


CALLS = [(page, call) for page in PAGES for line in command_lines(page) for call in pbu_calls(line)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(broken_links(page))


@pytest.mark.parametrize(("page", "call"), CALLS, ids=lambda value: str(value)[-60:])
def test_command_lines_can_be_typed(page: Path, call: list[str]) -> None:
    parse(call)


def test_the_readme_shows_command_lines() -> None:
    shown = {call[0] for page, call in CALLS if page == README}
    assert {"demo", "fisher", "unlearn", "evaluate"} <= shown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_of_quoted_commands_exist(page: Path) -> None:
    """Of `pbu unlearn --fast` in a sentence, which need not be a whole command line."""
    for quoted in re.findall(r"`pbu ([^`]+)`", prose(page)):
        name, *words = quoted.split()
        if name not in COMMANDS:
            assert name in ("COMMAND", "--version", "--help"), quoted
            continue
        flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= {*flags, "--help"}, quoted


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_that_are_named_exist(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    for module in re.findall(r"python3? -m (tests[\w.]*|pbu_cli[\w.]*)", text):
        assert importlib.util.find_spec(module.rstrip(".")), module


@pytest.mark.slow
def test_the_library_example_runs(
    digits: DemoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), flags=re.M | re.S)
    (tmp_path / "pbu-demo").symlink_to(digits.checkpoint.parent)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "no8.safetensors",
        "no8.fisher.safetensors",
    }


def test_the_maps_name_every_module() -> None:
    maps = [ROOT / "pbu_cli" / "README.md", ROOT / "pbu_cli" / "benchmark" / "README.md"]
    quoted = set(
        re.findall(r"`([\w-]+)(?:\.py)?`", " ".join(page.read_text("utf-8") for page in maps))
    )
    modules = {path.stem for path in (ROOT / "pbu_cli").rglob("*.py")}
    methods = {path.stem for path in (ROOT / "pbu_cli/benchmark/methods").rglob("*.py")}
    named = {name.replace("-", "_") for name in quoted}
    assert modules - methods - named == set()
    assert methods - {"__init__"} - named == set()


def test_the_readme_stays_short() -> None:
    assert README.read_text(encoding="utf-8").count("\n") <= LINES_OF_THE_README
