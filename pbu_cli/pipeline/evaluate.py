"""Evaluating a checkpoint: compare, audit, hold the result against what is required, record it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbu_cli.errors import InvalidUsage
from pbu_cli.evaluation.compare import Comparison, ComparisonRequest, compare
from pbu_cli.evaluation.evaluate import Evaluation, score_comparison
from pbu_cli.evaluation.measures import MEASURES
from pbu_cli.evaluation.requirements import (
    WORST_CLASS,
    Criterion,
    Requirement,
    parse,
)
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.pipeline.criteria import held_against_evaluation
from pbu_cli.pipeline.fisher import folders
from pbu_cli.pipeline.session import Session
from pbu_cli.records.writer import check_appendable, record_evaluation
from pbu_cli.settings import InputOptions

if TYPE_CHECKING:  # scikit-learn takes seconds to import, and only an audit needs it
    from pbu_cli.audit.run import NetworkAudit


@dataclass(frozen=True)
class AuditOptions:
    """How an audit is made. members: folders of forget images that the network was trained on,
    against --forget images that it was not. seed: of all random draws."""

    members: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class EvaluationRequest:
    """What `pbu evaluate` is asked for.

    audit: measure what is left of the class inside the networks, too. require: criteria such as
    `A_Df<=1`. record: a run record to add the evaluation to.
    """

    compared: ComparisonRequest
    options: InputOptions = field(default_factory=InputOptions)
    audit: bool = False
    audit_options: AuditOptions = field(default_factory=AuditOptions)
    require: tuple[str, ...] = ()
    record: Path | None = None

    def criteria(self) -> list[Criterion]:
        """The required criteria. Raises InvalidUsage where one cannot be read or measured."""
        criteria = [parse(text) for text in self.require]
        of_audit = [str(criterion) for criterion in criteria if criterion.needs_audit]
        if not self.audit and (of_audit or self.audit_options.members):
            flag = f"--require {of_audit[0]}" if of_audit else "--members"
            raise InvalidUsage(f"{flag}: only measured with --audit")
        compared = self.compared
        if compared.original is None or compared.retain is None:
            for criterion in criteria:
                if criterion.measure == WORST_CLASS:
                    raise InvalidUsage(
                        f"--require {criterion}: compares every retained class with the original;"
                        " it needs --original and --retain"
                    )
        return criteria


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of every network, its audit, and the required criteria.

    unmet: one message for each requirement that does not hold.
    """

    evaluation: Evaluation
    audited: tuple[NetworkAudit, ...]
    requirements: tuple[Requirement, ...]
    unmet: tuple[str, ...]
    inferred: tuple[Inferred[Any], ...]
    warnings: tuple[str, ...]
    document: dict[str, Any]


def evaluate_checkpoint(
    checkpoint: Path | str,
    forget: Path | str | Sequence[Path | str],
    retain: Path | str | None = None,
    *,
    original: Path | str | None = None,
    retrained: Path | str | None = None,
    audit: bool | AuditOptions = False,
    record: Path | str | None = None,
    options: InputOptions | None = None,
) -> EvaluationResult:
    """Measure what a checkpoint has forgotten and what it has kept: what `pbu evaluate` does.

    retain: a folder of class folders or a CSV file of path,label, without which A_Dr is None.
    original, retrained: checkpoints to compare with. audit: True, or how the audit is made.
    record: a run record to add the evaluation to. Raises `PbuError` as the command does.
    """
    request = EvaluationRequest(
        ComparisonRequest(
            Path(checkpoint),
            folders(forget),
            None if retain is None else str(retain),
            None if original is None else Path(original),
            None if retrained is None else Path(retrained),
        ),
        options or InputOptions(),
        bool(audit),
        audit if isinstance(audit, AuditOptions) else AuditOptions(),
        record=None if record is None else Path(record),
    )
    session = Session()
    comparison, evaluation = run_comparison(request, session)
    return finish_evaluation(
        request, comparison, evaluation, run_audit(request, comparison, session), session
    )


def run_comparison(request: EvaluationRequest, session: Session) -> tuple[Comparison, Evaluation]:
    """Check the request, run the networks on the images and score them."""
    if request.record is not None:
        check_appendable(request.record, request.compared.checkpoint, request.options.state_dict)
    request.criteria()
    comparison = compare(
        request.compared,
        request.options,
        session.log,
        stdin=session.stdin,
        audit_seed=request.audit_options.seed if request.audit else None,
        progress=session.progress,
    )
    evaluation = score_comparison(comparison)
    session.log.warn(evaluation.warnings)
    return comparison, evaluation


def run_audit(
    request: EvaluationRequest, comparison: Comparison, session: Session
) -> tuple[NetworkAudit, ...]:
    """Audit every network and control, if the request asks for it."""
    if not request.audit:
        return ()
    from pbu_cli.audit.run import audit
    from pbu_cli.evaluation.members import read_members

    members = (
        read_members(
            request.audit_options.members, comparison.prepared, request.options, session.log
        )
        if request.audit_options.members
        else None
    )
    names = list(comparison.outputs)
    with session.progress("auditing", len(names)) as progress:
        return audit(
            comparison,
            members=members,
            seed=request.audit_options.seed,
            progress=lambda name: progress(names.index(name), name),
        )


def finish_evaluation(
    request: EvaluationRequest,
    comparison: Comparison,
    evaluation: Evaluation,
    audited: tuple[NetworkAudit, ...],
    session: Session,
) -> EvaluationResult:
    """Hold the figures against the criteria, and add the evaluation to the record, if any."""
    requirements = held_against_evaluation(
        request.criteria(), comparison, evaluation, audited, request.compared.checkpoints()
    )
    loss, sample = evaluation.accuracy_loss, comparison.sample
    document = {
        **session.heading("evaluate"),
        "images": evaluation.images,
        "skipped": evaluation.skipped,
        "scores": [vars(scores) for scores in evaluation.scores],
        "classes": [vars(one) for one in evaluation.class_losses],
        "damage": None if loss is None else vars(loss),  # the accuracy loss's name in the JSON
        "requirements": [requirement.document() for requirement in requirements],
        **_audit_document(
            audited, request.audit_options.seed, 0 if sample is None else len(sample.labels)
        ),
    }
    if request.record is not None:
        record_evaluation(
            request.record,
            {role: loaded.checkpoint for role, loaded in comparison.loaded_models.items()},
            device=evaluation.loaded.device,
            arch=request.options.arch,
            document={
                **document,
                "settings": {
                    **request.options.entry(),
                    "seed": request.audit_options.seed,
                    "audit": request.audit,
                    "retain_order": request.compared.retain_order,
                },
                "require": list(request.require),
            },
        )
    return EvaluationResult(
        evaluation,
        audited,
        requirements,
        tuple(str(requirement) for requirement in requirements if not requirement.holds),
        tuple(session.log.inferred),
        tuple(session.log.warnings),
        document,
    )


def _audit_document(audited: Sequence[NetworkAudit], seed: int, retained: int) -> dict[str, Any]:
    """The audit's part of the JSON document; a measure that is unknown is null there.

    retained: how many of the retained images the audit has read.
    """
    if not audited:
        return {}
    networks = []
    for one in audited:
        entry = asdict(one)
        entry["measures"] = {key: entry["measures"].get(key) for key in MEASURES}
        networks.append(entry)
    measures = {key: asdict(measure) for key, measure in MEASURES.items()}
    return {
        "audit": {
            "seed": seed,
            "retained_images": retained,
            "measures": measures,
            "networks": networks,
        }
    }
