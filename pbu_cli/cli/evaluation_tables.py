"""An evaluation as tables of text, for the console to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pbu_cli.cli.audit_tables import Table
from pbu_cli.cli.console import percent
from pbu_cli.evaluation.class_losses import ClassLoss, few_images, worst_of_others
from pbu_cli.evaluation.evaluate import Evaluation

HEAD_MASK_CAPTION = (
    "head mask: the original with the forgotten logit at minus infinity. It forgets nothing and",
    "still gets A_Df = 0: what accuracy says has to be read against it.",
)
LOSS_CAPTION = "loss of A_Dr, estimated from the forget images alone"
LOSSES_SHOWN = 5
NAME_WIDTH = 24  # characters of a class in the table of losses, which then fits into 80
MAX_ROWS, SHOWN = 100, 20  # of a table with a row a class; how many are shown if there are more
LIKENESS_CAPTION = (
    "likeness: percent of the forget images that the original predicts as this class where the",
    "forgotten logit is masked. cosine: of the head's rows of both classes, less the mean row.",
)

ClassName = Callable[[int], str]


def evaluation_tables(result: Evaluation) -> list[Table]:
    """Accuracies, what was lost most, accuracies per class, and where the forget images go."""
    scores, name = result.scores, result.loaded.class_name
    now = scores[0]
    per_class = {c for one in scores for c in one.per_class}
    predicted = {c for one in scores for c in one.answers}
    most = {c: max(one.answers.get(c, 0.0) for one in scores) for c in predicted}
    return [
        _accuracies(result),
        *_losses(result.class_losses, name),
        _by_class(
            Table("Accuracy per class (%)", ("class", *(one.name for one in scores)), ()),
            {c: [percent(one.per_class.get(c)) for one in scores] for c in sorted(per_class)},
            sorted(per_class, key=lambda c: now.per_class.get(c, 0.0)),
            name,
        ),
        _by_class(
            Table(
                "Where the forget images go (%)", ("predicted", *(one.name for one in scores)), ()
            ),
            {c: [f"{one.answers.get(c, 0):.2f}" for one in scores] for c in sorted(predicted)},
            sorted(predicted, key=lambda c: -most[c]),
            name,
        ),
    ]


def _accuracies(result: Evaluation) -> Table:
    loss, used = result.accuracy_loss, result.images
    retained = f"{used['retain']:,} retained" if used["retain"] else "no retained"
    return Table(
        f"Accuracy on {used['forget']:,} forget and {retained} images (%)",
        ("", "A_Df", "95 %", "A_Dr", "95 %"),
        [
            (
                one.name,
                percent(one.a_df),
                _range(one.a_df_interval),
                percent(one.a_dr),
                _range(one.a_dr_interval),
            )
            for one in result.scores
        ],
        () if loss is None else (*HEAD_MASK_CAPTION, f"{LOSS_CAPTION}: {loss} points"),
    )


def _losses(losses: Sequence[ClassLoss], name: ClassName) -> list[Table]:
    """The classes that lost most; none where nothing was compared."""
    if not losses:
        return []
    rows = [
        (
            _shortened(name(one.label)),
            f"{one.images:,}",
            percent(one.before),
            percent(one.after),
            f"{one.change:+.2f}",
            f"{one.likeness:.2f}",
            "" if one.cosine is None else f"{one.cosine:.2f}",
        )
        for one in losses[:LOSSES_SHOWN]
    ]
    lost = sum(one.change < 0 for one in losses)
    captions = [f"{lost:,} of {len(losses):,} retained classes lost accuracy; --json has them all"]
    few = few_images(losses)
    return [
        Table(
            "Retained classes that lost most (accuracy in %, change in points)",
            ("class", "images", "before", "after", "change", "likeness", "cosine"),
            rows,
            (*captions, worst_of_others(losses), *([few] if few else []), *LIKENESS_CAPTION),
        )
    ]


def _by_class(
    empty: Table, rows: Mapping[int, Sequence[str]], order: Sequence[int], name: ClassName
) -> Table:
    """The table with a row a class; of more than MAX_ROWS classes the first SHOWN of `order`."""
    if len(rows) <= MAX_ROWS:
        return Table(empty.title, empty.columns, [(name(c), *cells) for c, cells in rows.items()])
    caption = f"{SHOWN} of {len(rows):,} classes are shown; --json has all of them"
    chosen = [(name(c), *rows[c]) for c in order[:SHOWN]]
    return Table(empty.title, empty.columns, chosen, (caption,))


def _shortened(name: str) -> str:
    """The start of a long class name.

    >>> _shortened("134 crane, a large bird that wades")
    '134 crane, a large bi...'
    """
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
