"""Write `pbu_cli/models/sources/timm_registry.json` from the installed timm, and a table of it.

    python -m tests.measure.make_timm_registry CACHE.jsonl

CACHE.jsonl is what `timm_shapes` found; it is written on the first run, which takes ten minutes.
The table `results/timm_registry.csv` says which networks the tensors alone tell apart.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from itertools import product
from math import isqrt
from pathlib import Path
from typing import Any

from pbu_cli.errors import CheckpointError
from pbu_cli.models.sources import timm_patterns, timm_registry, torchvision_inference
from pbu_cli.models.sources.timm_patterns import CHANNELS, CLASSES, SIZE, numberless
from tests.measure import timm_shapes
from tests.measure.timm_behaviour import behaviour, difference

FILE = Path(__file__).parents[2] / "pbu_cli" / "models" / "sources" / "timm_registry.json"
TABLE = Path(__file__).parent / "results" / "timm_registry.csv"

USUAL = (16, 32, 14, 8, 4, 2)
PATCHES = (*USUAL, *(size for size in range(1, 64) if size not in USUAL))
MOST_TOKENS = 5  # beside the positions: class token, distillation token, registers

Found = dict[str, Any]  # as `timm_shapes.studied` gives it
Choice = tuple[int, str, list[int] | None]  # dim, kind and rule of `timm_patterns.Free`


def is_classifier(found: Found) -> bool:
    """Whether the network could be built and has a size that follows the number of classes."""
    return "error" not in found and bool(found["changes"].get("classes"))


def takes_size(found: Found) -> bool:
    """Whether the constructor takes an image size."""
    return isinstance(found["changes"]["same"], dict)


def free_of(found: Found) -> dict[str, list[Choice]]:
    """The free sizes of each tensor."""
    free: dict[str, dict[int, Choice]] = defaultdict(dict)
    for kind, one in ((CLASSES, timm_shapes.CLASSES), (CHANNELS, timm_shapes.CHANNELS)):
        for tensor, dim, size, _ in changed(found, kind):
            each, rest = divmod(size, one)
            assert rest == 0, (found["name"], tensor, size)
            free[tensor][dim] = (dim, kind, None if each == 1 else [each])
    points: dict[tuple[str, int], dict[int, int]] = {}
    sizes = found["sizes"]
    for label in sizes:
        for tensor, dim, _, _ in changed(found, label):
            points[tensor, dim] = {found["size"]: found["tensors"][tensor][dim]}
    for (tensor, dim), known in points.items():
        for label, size in sizes.items():
            if isinstance(found["changes"].get(label), dict):
                shape = found["changes"][label].get(tensor, found["tensors"][tensor])
                known[size] = shape[dim]
        assert dim not in free[tensor], (found["name"], tensor)
        free[tensor][dim] = (dim, SIZE, rule(known))
    return {tensor: [choices[dim] for dim in sorted(choices)] for tensor, choices in free.items()}


def changed(found: Found, label: str) -> list[tuple[str, int, int, int]]:
    """Tensor, place, size and other size of everything that another choice changes."""
    other = found["changes"].get(label)
    if not isinstance(other, dict):
        return []
    return [
        (tensor, dim, a, b)
        for tensor, shape in other.items()
        for dim, (a, b) in enumerate(zip(found["tensors"][tensor], shape, strict=True))
        if a != b
    ]


def rule(points: dict[int, int]) -> list[int] | None:
    """The numbers (p, k, a, b, c) for which images of size s give (k (s // p) + a)^b + c.

    points: what was found, by image size.

    >>> rule({224: 197, 448: 785, 336: 442})
    [16, 1, 0, 2, 1]
    >>> rule({224: 169, 448: 729, 112: 25})  # (2 s / 32 - 1)^2: offsets in a window of s / 32
    [32, 2, -1, 2, 0]
    """
    if len(points) < 3:
        return None
    (size, count), *others = points.items()
    for power, each, outer in product((2, 1), (1, 2), range(MOST_TOKENS + 1)):
        for patch, up in product(PATCHES, (False, True)):
            root = isqrt(max(count - outer, 0)) if power == 2 else count - outer
            inner = root - patches(size, patch, up) * each
            if (
                inner in (-1, 0)
                and (power == 2 or outer == 0)
                and root**power + outer == count
                and all(
                    (patches(size, patch, up) * each + inner) ** power + outer == count
                    for size, count in others
                )
            ):
                return [patch, each, inner, power, outer]
    return None


def patches(size: int, patch: int, up: bool) -> int:
    """The patches in a row; padding may make up (`up`) the last one."""
    return -(-size // patch) if up else size // patch


def form_of(found: Found) -> dict[str, Any]:
    """The free sizes as the file has them: one line for all blocks wherever they are alike."""
    free = free_of(found)
    groups: dict[str, list[str]] = defaultdict(list)
    for tensor in found["tensors"]:
        groups[numberless(tensor)].append(tensor)
    short: dict[str, list[Choice]] = {}
    for pattern, tensors in groups.items():
        choices = [free.get(tensor, []) for tensor in tensors]
        if all(other == choices[0] for other in choices):
            if choices[0]:
                short[pattern] = choices[0]
        else:
            short |= {tensor: free[tensor] for tensor in tensors if tensor in free}
    return {"takes_size": takes_size(found), "free": dict(sorted(short.items()))}


def grouped(everything: list[Found]) -> dict[str, dict[tuple[str, str], list[Found]]]:
    """Classifiers by the digest of their names, then by form and digest of their fixed sizes."""
    groups: dict[str, dict[tuple[str, str], list[Found]]] = defaultdict(lambda: defaultdict(list))
    for found in filter(is_classifier, everything):
        form = form_of(found)
        shapes = found["tensors"]
        free = timm_patterns.free_sizes(timm_patterns.read_form(form), shapes)
        assert free is not None
        found["positions"] = timm_patterns.positions_digest(shapes, free)
        fixed = timm_patterns.shapes_digest(shapes, free)
        key = json.dumps(form, separators=(",", ":")), fixed
        groups[timm_patterns.names_digest(shapes)][key].append(found)
    return groups


def kinds_of(members: list[Found]) -> dict[str, int]:
    """A number for each network with the same tensor names, equal for those that are the same."""
    if len(members) == 1:
        return {members[0]["name"]: 0}
    numbers: dict[str, int] = {}
    found = {}
    for member in members:
        text = json.dumps(behaviour(member["name"], common_size(members)))
        found[member["name"]] = numbers.setdefault(text, len(numbers))
    return found


def common_size(members: list[Found]) -> int | None:
    """The image size at which networks are compared, None where they take none."""
    if not all(map(takes_size, members)):
        return None
    return max(set(sizes := [member["size"] for member in members]), key=sizes.count)


def packed(groups: dict[str, dict[tuple[str, str], list[Found]]]) -> str:
    """The text of the file: one line for each form and each set of tensor names."""
    import timm

    forms: dict[str, int] = {}
    lines = []
    for names, entries in sorted(groups.items()):
        stored = []
        kinds = kinds_of([member for members in entries.values() for member in members])
        for (form, fixed), members in sorted(entries.items()):
            rows: dict[tuple[int, str, int], list[str]] = defaultdict(list)
            for member in members:
                key = kinds[member["name"]], member["positions"], member["size"]
                rows[key].append(member["name"])
            number = forms.setdefault(form, len(forms))
            stored.append(
                [number, fixed, [[*key, " ".join(sorted(found))] for key, found in rows.items()]]
            )
        lines.append(f'"{names}":{json.dumps(stored, separators=(",", ":"))}')
    return (
        f'{{"timm":"{timm.__version__}",\n"forms":[\n'
        + ",\n".join(forms)
        + '\n],\n"networks":{\n'
        + ",\n".join(lines)
        + "\n}}\n"
    )


def torchvision_name(found: Found) -> str:
    """The classifier of torchvision with the same tensors; empty if there is none."""
    try:
        return torchvision_inference.infer(found["tensors"]).name
    except CheckpointError as error:
        return str(error).partition("fit ")[2].partition(" alike")[0]


def table_row(found: Found) -> list[object]:
    """A row of the table: what `infer` says of the tensors of a network at its default size."""
    name = found["name"]
    if not is_classifier(found):
        return [name, "", "", "no", "", "", "", found.get("error", "it has no classes")]
    match = timm_registry.infer(found["tensors"])
    assert match is not None, name
    assert name in match.names, name
    own = next(kind for kind in match.kinds if name in kind)
    rivals = [kind[0] for kind in match.kinds if kind is not own]
    verdict = "one of several" if rivals else "one network, several names" if own[1:] else "alone"
    size = found["size"] if match.takes_size else None
    why = "; ".join(f"{rival}: {difference(name, rival, size)}" for rival in rivals)
    same = " ".join(other for other in own if other != name)
    count = len(found["tensors"])
    return [name, count, found["size"], verdict, same, why, torchvision_name(found), ""]


def main(cache: Path) -> None:
    """Write the registry and the table."""
    import timm

    everything = list(timm_shapes.study(timm.list_models(), cache))
    FILE.write_text(packed(grouped(everything)), encoding="utf-8")
    print(f"{FILE}: {FILE.stat().st_size} bytes")
    timm_registry._stored.cache_clear()
    timm_registry._entries.cache_clear()
    timm_registry._default_sizes.cache_clear()
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = "name tensors size told_apart same_network differs_from torchvision not_built"
        writer.writerow(header.split())
        for found in sorted(everything, key=lambda found: str(found["name"])):
            writer.writerow(table_row(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
