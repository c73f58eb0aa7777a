"""The command line: parse, call, render.

torch is imported inside the commands, so that `--help` and usage errors answer at once.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbu_cli import __version__
from pbu_cli.benchmark_cli import benchmark
from pbu_cli.errors import CriterionNotMet, InvalidUsage
from pbu_cli.measures import MEASURES
from pbu_cli.options import (
    IMAGES,
    LAYERS,
    NETWORK,
    Arch,
    BatchSize,
    Channels,
    Checkpoint,
    Deterministic,
    Device,
    Draws,
    DryRun,
    EstimatorFlag,
    Force,
    Forget,
    Json,
    LabelFlag,
    Layers,
    Mean,
    Output,
    Quiet,
    Record,
    RecordKey,
    Require,
    Seed,
    Size,
    SkipBad,
    Std,
    wanted_of,
)
from pbu_cli.settings import DEEP, FAST, FORGOTTEN, SAFETENSORS, SCHEMA

if TYPE_CHECKING:
    from pbu_cli.audit import Audited
    from pbu_cli.case import Case, Wanted
    from pbu_cli.console import Screen
    from pbu_cli.evaluation import Comparison

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

CONTROL = (
    "head mask: the original with the forgotten logit at minus infinity. It forgets nothing and",
    "still gets A_Df = 0: what accuracy says has to be read against it.",
)


def _shown(weight: str) -> str:
    deep, fast = (getattr(preset.weights, weight) for preset in (DEEP, FAST))
    return f"{deep:g}" if deep == fast else f"{deep:g}; --fast: {fast:g}"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pbu {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Make a trained classifier forget a class, from its checkpoint and the images of that class
    alone. Exit codes: 0 done, 1 failed, 2 usage, 3 checkpoint, 4 images, 5 criterion not met."""


@app.command()
def fisher(
    checkpoint: Checkpoint,
    forget: Forget,
    output: Output = None,
    estimator: EstimatorFlag = "empirical",
    draws: Draws = 1,
    layers: Layers = "all",
    arch: Arch = None,
    device: Device = "auto",
    deterministic: Deterministic = False,
    batch_size: BatchSize = 256,
    label: LabelFlag = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    channels: Channels = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the Fisher diagonal of the forget images and write it to a file."""
    from pbu_cli.commands import measure_fisher, timed
    from pbu_cli.files import check_output, claimed
    from pbu_cli.fisher_file import write_fisher

    screen, log = _screen(as_json, quiet)
    wanted = wanted_of(
        arch, label, mean, std, size, channels, device, batch_size, skip_bad, deterministic
    )
    place = output or _beside(checkpoint, ".fisher.safetensors")
    if os.access(checkpoint, os.R_OK):  # else that is what to say
        check_output(place, force=force, sources=(checkpoint,), suffix=SAFETENSORS)
    lap = timed()
    case = _case(checkpoint, forget, wanted, layers, log, screen)
    shapes = case.subject.checkpoint.shapes
    count = sum(prod(shapes[name]) for name in case.trained)
    check_output(place, force=force, sources=(checkpoint,), size=4 * count, suffix=SAFETENSORS)
    if dry_run:
        _finish_dry(screen, log, "fisher", place)
        return
    loading = lap()
    images = len(case.images.pixels)
    with claimed(place, force=force):
        with screen.progress("Fisher", images) as bar:
            diagonal = measure_fisher(
                case, estimator, draws=draws, seed=seed, done=lambda n: bar(n, "")
            )
        measuring = lap()
        write_fisher(place, case, diagonal, estimator, draws, seed)
    total = sum(value.cpu().double().sum().item() for value in diagonal.values())
    blocks: dict[str, list[str]] = {}
    for name in case.trained:
        blocks.setdefault(".".join(name.split(".")[:-1][:2]) or name, []).append(name)
    rows = [
        _block_row(block, [diagonal[n] for n in inner], total) for block, inner in blocks.items()
    ]
    screen.table(
        f"Fisher diagonal, {estimator}, summed over {images} forget images",
        ("block", "parameters", "sum", "mean", "share %"),
        rows,
        f"{count:,} parameters; loaded in {loading:.1f} s, measured in {measuring:.1f} s",
    )
    screen.line(f"wrote {place}")
    screen.document(
        {
            **_heading("fisher", log),
            "output": str(place),
            "estimator": estimator,
            "images": images,
            "skipped": len(case.images.bad),
            "parameters": count,
            "trace": total,
            "seconds": {"load": loading, "fisher": measuring},
        }
    )


@app.command()
def unlearn(
    checkpoint: Checkpoint,
    forget: Forget,
    output: Output = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Change the answers alone, without anchors: seconds."),
    ] = False,
    alpha: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of forgetting.", show_default=_shown("alpha")),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            min=0, help="Weight of the Fisher-weighted distance.", show_default=_shown("beta")
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the squared distance.", show_default=_shown("gamma")),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Weight of stable answers; 0 is the paper's objective, without anchors.",
            show_default=_shown("delta"),
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Weight of stable answers and features on the anchors.",
            show_default=_shown("epsilon"),
        ),
    ] = None,
    zeta: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Weight against a line that tells forget features from the anchors'.",
            show_default=_shown("zeta"),
        ),
    ] = None,
    anchors: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100_000,
            help="How many inputs to make for the classes that stay.",
            show_default=f"{DEEP.anchors}; --fast: none",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps at most.",
            show_default=f"{DEEP.schedule.steps}; --fast: {FAST.schedule.steps}",
        ),
    ] = None,
    max_damage: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            metavar="POINTS",
            help="Exit with 5 where A_Dr is estimated to have lost more.",
            show_default="no limit",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar=LAYERS,
            help="Which parameters train: the last stage, it and the head, the head, all, or a"
            " pattern in their names.",
            show_default=f"{DEEP.layers}; --fast: {FAST.layers}",
        ),
    ] = None,
    fisher: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Fisher file of `pbu fisher`.", show_default="measured now"
        ),
    ] = None,
    estimator: EstimatorFlag = "empirical",
    draws: Draws = 1,
    arch: Arch = None,
    device: Device = "auto",
    deterministic: Deterministic = False,
    batch_size: BatchSize = 256,
    label: LabelFlag = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    channels: Channels = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    force: Force = False,
    record: Record = None,
    record_key: RecordKey = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the checkpoint forget the class and write the sanitized weights."""
    from pbu_cli.commands import inputs_made, measure_fisher, sanitise, timed
    from pbu_cli.files import check_output, claimed
    from pbu_cli.fisher_file import read_fisher
    from pbu_cli.recording import check_places, record_unlearning, summary

    screen, log = _screen(as_json, quiet)
    wanted = wanted_of(
        arch, label, mean, std, size, channels, device, batch_size, skip_bad, deterministic
    )
    preset = FAST if fast or delta == 0 else DEEP
    asked = {"alpha": alpha, "beta": beta, "gamma": gamma, "delta": delta,
             "epsilon": epsilon, "zeta": zeta}  # fmt: skip
    weights = replace(preset.weights, **{k: v for k, v in asked.items() if v is not None})
    schedule = replace(
        preset.schedule,
        steps=steps or preset.schedule.steps,
        seed=seed,
        batch_size=min(preset.schedule.batch_size, batch_size),
    )
    layers = layers or preset.layers
    anchors = preset.anchors if anchors is None else anchors
    if bool(anchors) != bool(weights.epsilon or weights.zeta):
        raise InvalidUsage(
            f"--anchors {anchors} with --epsilon {weights.epsilon:g} --zeta {weights.zeta:g}: needs"
            " both or neither: give anchors and a weight, or --fast alone for neither"
        )
    place = output or _beside(checkpoint, ".unlearned.safetensors")
    inputs = (fisher,) if fisher else ()
    if os.access(checkpoint, os.R_OK):  # else that is what to say
        check_output(place, force=force, sources=inputs, suffix=SAFETENSORS)
        check_places(record, record_key, force=force, taken=(checkpoint, *inputs))
    lap = timed()
    case = _case(checkpoint, forget, wanted, layers, log, screen)
    shapes = case.subject.checkpoint.shapes
    count = sum(prod(shapes[name]) for name in case.trained)
    log("trains", f"{count:,} parameters in {len(case.trained)} tensors", f"--layers {layers}")
    tensors = case.subject.checkpoint.tensors.values()
    needed = sum(tensor.nbytes for tensor in tensors)
    check_output(place, force=force, sources=inputs, size=needed, suffix=SAFETENSORS)
    diagonal: dict[str, Any] = {}
    if fisher is not None:
        diagonal, used = read_fisher(fisher, case, case.trained)
        log("Fisher", used, str(fisher))
    if dry_run:
        _finish_dry(screen, log, "unlearn", place)
        return
    loading = lap()
    settings = {
        "weights": vars(weights),
        "schedule": vars(schedule),
        "anchors": anchors,
        "layers": layers,
        "estimator": estimator,
        "draws": draws,
        "wanted": vars(wanted),
    }
    with claimed(place, force=force):
        if fisher is None and weights.beta > 0:
            with screen.progress("Fisher", len(case.images.pixels)) as bar:
                diagonal = measure_fisher(
                    case, estimator, draws=draws, seed=seed, done=lambda n: bar(n, "")
                )
        measuring = lap()
        with (
            screen.progress("anchors", inputs_made(case, anchors, schedule)) as making,
            screen.progress("unlearning", schedule.steps) as bar,
        ):
            done = sanitise(
                case,
                diagonal,
                place,
                weights=weights,
                schedule=schedule,
                anchors=anchors,
                making=lambda n: making(n, ""),
                run=summary(case, settings),
                seen=lambda p: bar(
                    p.seen.step, f"recognised {p.seen.recognised:5.1f} %  drift {p.seen.drift:.3f}"
                ),
            )
        unlearning = lap()
        document = {
            **_heading("unlearn", log),
            "output": str(place),
            "settings": settings,
            "images": len(case.images.pixels),
            "skipped": len(case.images.bad),
            "result": {**vars(done), "forgotten": done.forgotten, "damage": vars(done.damage)},
            "seconds": {"load": loading, "fisher": measuring, "unlearn": unlearning},
        }
        if record is not None:
            record_unlearning(
                record, record_key, case, place, fisher=fisher, arch=arch, document=document
            )
    name = case.subject.class_name
    classes = ", ".join(name(c) for c in sorted(set(case.image_labels.tolist())))
    screen.table(
        f"Forgot class {classes}, measured on the {len(case.images.pixels)} forget images and the"
        " file as written",
        ("", "before", "after"),
        (
            (
                "A_Df, accuracy on the forget images (%)",
                f"{done.a_df_before:.2f}",
                f"{done.a_df:.2f}",
            ),
            ("drift of the other classes' answers (nats)", "0.000", f"{done.drift:.3f}"),
            ("loss of A_Dr, estimated from such drifts (points)", "", str(done.damage)),
            ("distance from theta* (relative)", "0.0000", f"{done.moved:.4f}"),
        ),
        f"stopped: {done.reason}",
        "A_Dr itself is unknown without retained images: pbu evaluate --retain measures it",
        f"loaded in {loading:.1f} s, Fisher {measuring:.1f} s, unlearning and writing"
        f" {unlearning:.1f} s",
    )
    for written in (place, record, record_key):
        if written is not None:
            screen.line(f"wrote {written}")
    failure = ""
    if not done.forgotten:
        failure = (
            f"{place}: written, but {done.a_df:.2f} % of the forget images are still recognised"
            f" (at most {FORGOTTEN} expected) after {done.steps} steps; {done.reason}"
        )
    elif max_damage is not None and done.damage.estimate > max_damage:
        failure = (
            f"{place}: written, but A_Dr is estimated to have lost {done.damage} points (at most"
            f" {max_damage:g} expected); {done.reason}: lower --alpha, or measure it with pbu"
            " evaluate --retain"
        )
    _conclude(screen, document, failure)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    forget: Forget,
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE.csv",
            help="Retained images: a folder of class folders, or lines of path,label.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Before forgetting, for comparison and control.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    retrained: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Trained without the class, for comparison.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Attack too: probe, odds, relearning, membership, likeness to --retrained.",
        ),
    ] = False,
    members: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="For --audit: forget images that were trained on, against --forget images that"
            " were not.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    require: Require = None,
    arch: Arch = None,
    device: Device = "auto",
    deterministic: Deterministic = False,
    batch_size: BatchSize = 256,
    label: LabelFlag = None,
    mean: Mean = None,
    std: Std = None,
    size: Size = None,
    channels: Channels = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    record: Record = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what is forgotten and what is kept, beside the original and a free control."""
    from pbu_cli.console import percent
    from pbu_cli.criteria import parse, unmet
    from pbu_cli.recording import check_appendable, record_evaluation

    screen, log = _screen(as_json, quiet)
    wanted = wanted_of(
        arch, label, mean, std, size, channels, device, batch_size, skip_bad, deterministic
    )
    if record is not None:
        check_appendable(record, checkpoint)
    criteria = [parse(text) for text in require or ()]
    strict = [str(criterion) for criterion in criteria if criterion.of_audit]
    if not audit and (strict or members):
        raise InvalidUsage(
            f"{f'--require {strict[0]}' if strict else '--members'}: only measured with --audit"
        )
    from pbu_cli.evaluation import compare, scored

    comparison = compare(
        checkpoint,
        forget,
        wanted,
        log,
        retain=retain,
        original=original,
        retrained=retrained,
        stdin=getattr(sys.stdin, "buffer", None),
        inside=audit,
    )
    result = scored(comparison)
    log.warn(result.warnings)
    rows = [
        (s.name, percent(s.a_df), _range(s.a_df_interval), percent(s.a_dr), _range(s.a_dr_interval))
        for s in result.scores
    ]
    used = result.images
    retained = f"{used['retain']:,} retained" if used["retain"] else "no retained"
    screen.table(
        f"Accuracy on {used['forget']:,} forget and {retained} images (%)",
        ("", "A_Df", "95 %", "A_Dr", "95 %"),
        rows,
        *(CONTROL if original is not None else ()),
    )
    classes = sorted({c for s in result.scores for c in s.per_class})
    screen.table(
        "Accuracy per class (%)",
        ("class", *(s.name for s in result.scores)),
        [
            (result.subject.class_name(c), *(percent(s.per_class.get(c)) for s in result.scores))
            for c in classes
        ],
    )
    screen.table(
        "Where the forget images go (%)",
        ("answered", *(s.name for s in result.scores)),
        [
            (result.subject.class_name(c), *(f"{s.answers.get(c, 0):.2f}" for s in result.scores))
            for c in sorted({c for s in result.scores for c in s.answers})
        ],
    )
    audited = _audit(comparison, members, wanted, seed, screen, log) if audit else ()
    found = {s.name: {"A_Df": s.a_df, "A_Dr": s.a_dr} for s in result.scores}
    for one in audited:
        found[one.name] |= {key: estimate.value for key, estimate in one.measures.items()}
    failed = unmet(criteria, found["checkpoint"], found.get("retrained"))
    document = {
        **_heading("evaluate", log),
        "images": result.images,
        "skipped": result.skipped,
        "scores": [vars(s) for s in result.scores],
        **_audit_document(audited, seed),
    }
    if record is not None:
        given = {"checkpoint": checkpoint, "original": original, "retrained": retrained}
        record_evaluation(
            record,
            {role: place for role, place in given.items() if place is not None},
            device=result.subject.device,
            arch=arch,
            document={
                **document,
                "settings": {**vars(wanted), "seed": seed, "audit": audit},
                "require": require or [],
            },
        )
        screen.line(f"wrote {record}")
    _conclude(
        screen,
        document,
        f"{checkpoint}: {'; '.join(failed)}" if failed else "",
    )


@app.command()
def verify(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", help="A file that --record has written.")
    ],
    record_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The key that unlearn --record-key has written.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="The forget images, to check their digest with the key.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compute every digest of a run record again and say what holds; 5 where something does not."""
    from pbu_cli.recording import read_key
    from pbu_cli.verification import verify as check

    screen, log = _screen(as_json, quiet)
    findings = check(record, None if record_key is None else read_key(record_key), forget or ())
    words = {True: "yes", False: "NO", None: "unknown"}
    screen.table(
        f"What holds of {record}",
        ("", "holds"),
        [(f"{f.what}: {f.detail}", words[f.holds]) for f in findings],
        "A record shows what was run; it is no proof of deletion, and unsigned no proof of origin.",
    )
    failed = [f"{f.what}: {f.detail}" for f in findings if f.holds is False]
    _conclude(
        screen,
        {**_heading("verify", log), "findings": [vars(f) for f in findings], "holds": not failed},
        f"{record}: {len(failed)} of {len(findings)} do not hold: {'; '.join(failed)}"
        if failed
        else "",
    )


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write everything.")
    ] = Path("pbu-demo"),
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a small network on real digits, then run fisher, unlearn and evaluate on it."""
    from pbu_cli import demo as digits
    from pbu_cli.case import choose_device
    from pbu_cli.folders import list_groups, split_by_subfolder
    from pbu_cli.images import decode

    screen, log = _screen(as_json, quiet)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not force:
        raise InvalidUsage(f"{output}: not empty; name another folder with --output, or --force")
    files = digits.write_digits(output)
    groups = split_by_subfolder(list_groups([str(files.train)], None)[0])
    images = decode(groups, channels=1, size=digits.PREPROCESSING.size)
    with screen.progress("training", digits.total_steps(len(images.pixels))) as bar:
        network = digits.train(
            images.pixels,
            images.group,
            choose_device(device),
            done=lambda step: bar(step, f"resnet18 on {len(images.pixels)} digits"),
        )
    digits.write_checkpoint(network, files.checkpoint)
    screen.line(f"trained resnet18 on {len(images.pixels)} digits: {files.checkpoint}")
    gone = files.train / str(digits.FORGOTTEN)
    diagonal = files.checkpoint.with_suffix(".fisher.safetensors")
    clean = files.checkpoint.with_suffix(".unlearned.safetensors")
    given = str(files.checkpoint)
    again = ["--force"] if force else []
    hidden = ["--device", device] + ["--json"] * as_json + ["--quiet"] * quiet
    documents, failure = [], ""
    for command in (
        ["fisher", given, "--forget", str(gone), "--layers", "last", *again],
        ["unlearn", given, "--forget", str(gone), "--fisher", str(diagonal), *again],
        ["evaluate", str(clean), "--original", given, "--forget",
         str(files.test / str(digits.FORGOTTEN)), "--retain", str(files.test)],
    ):  # fmt: skip
        screen.echo(shlex.join(["pbu", *command]))
        printed = io.StringIO()
        try:
            with redirect_stdout(printed) if as_json else nullcontext():
                app([*command, *hidden], prog_name="pbu", standalone_mode=False)
        except CriterionNotMet as error:
            failure = str(error)
        if as_json:
            documents.append(json.loads(printed.getvalue()))
        if failure:
            break
    document = {**_heading("demo", log), "output": str(output), "commands": documents}
    _conclude(screen, document, failure)


app.command()(benchmark)


def _screen(as_json: bool, quiet: bool) -> tuple[Screen, Log]:
    from pbu_cli.console import Screen

    screen = Screen(as_json=as_json, quiet=quiet)
    return screen, Log(screen)


class Log:
    """What was inferred and warned of, shown as it happens and kept for the JSON document."""

    def __init__(self, screen: Screen) -> None:
        self.entries: list[dict[str, str]] = []
        self.warnings: list[str] = []
        self._screen = screen

    def warn(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.warnings.append(message)
            self._screen.warn(message)

    def __call__(self, what: str, value: str, source: str) -> None:
        self.entries.append({"what": what, "value": value, "source": source})
        self._screen.note(what, value, source)


def _case(
    checkpoint: Path, forget: list[str], wanted: Wanted, layers: str, log: Log, screen: Screen
) -> Case:
    from pbu_cli.case import assemble, load_subject

    subject = load_subject(checkpoint, wanted, log)
    with screen.progress("decoding", None) as bar:
        case = assemble(
            subject,
            forget,
            wanted,
            log,
            layers=layers,
            stdin=getattr(sys.stdin, "buffer", None),
            decoding=lambda count: bar(count, "images"),
        )
    log.warn(case.warnings)
    return case


def _audit(
    comparison: Comparison,
    members: list[str] | None,
    wanted: Wanted,
    seed: int,
    screen: Screen,
    log: Log,
) -> tuple[Audited, ...]:
    from pbu_cli.audit import audit, read_members
    from pbu_cli.tables import audit_tables

    known = read_members(members, comparison.case, wanted, log) if members else None
    names = list(comparison.answers)
    with screen.progress("auditing", len(names)) as bar:
        audited = audit(
            comparison,
            members=known,
            seed=seed,
            done=lambda name: bar(names.index(name), name),
        )
    for table in audit_tables(audited, seed):
        screen.table(table.title, table.columns, table.rows, *table.captions)
    return audited


def _audit_document(audited: Sequence[Audited], seed: int) -> dict[str, Any]:
    """The audit of the JSON document; what is unknown is null there."""
    if not audited:
        return {}
    networks = [
        {
            **asdict(one),
            "measures": {key: asdict(one).get("measures", {}).get(key) for key in MEASURES},
        }
        for one in audited
    ]
    measures = {key: asdict(measure) for key, measure in MEASURES.items()}
    return {"audit": {"seed": seed, "measures": measures, "networks": networks}}


def _beside(checkpoint: Path, ending: str) -> Path:
    return checkpoint.parent / (checkpoint.stem + ending)


def _finish_dry(screen: Screen, log: Log, command: str, place: Path) -> None:
    screen.line(f"dry run: nothing was written; would write {place}")
    screen.document({**_heading(command, log), "output": str(place), "dry_run": True})


def _conclude(screen: Screen, document: dict[str, Any], failure: str) -> None:
    """Print the document; where a criterion does not hold, with the error in it, and raise that."""
    from pbu_cli.console import error_document

    error = CriterionNotMet(failure)
    screen.document({**document, **(error_document(failure, error.exit_code) if failure else {})})
    if failure:
        raise error


def _heading(command: str, log: Log) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "pbu": __version__,
        "command": command,
        "inferred": log.entries,
        "warnings": log.warnings,
    }


def _block_row(block: str, values: list[Any], total: float) -> tuple[str, ...]:
    count = sum(value.numel() for value in values)
    mass = sum(value.cpu().double().sum().item() for value in values)
    share = 100 * mass / total if total else 0.0
    return block, f"{count:,}", f"{mass:.4g}", f"{mass / count:.3g}", f"{share:.2f}"


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
