"""An audit as tables: what is known, what is not, and every pair of networks once."""

import math

from pbu_cli.audit.estimates import Estimate
from pbu_cli.audit.membership_inference import Advantage
from pbu_cli.audit.relearning_attack import Relearning
from pbu_cli.audit.run import NetworkAudit
from pbu_cli.cli.audit_tables import audit_tables, cell
from pbu_cli.evaluation.measures import MEASURES


def test_an_unknown_measure_is_a_row_and_the_caption_names_the_flag_it_needs() -> None:
    one = NetworkAudit("checkpoint", {"probe": Estimate(88.44, (87.0, 89.91))})
    (table,) = audit_tables([one, NetworkAudit("retrained")], seed=3)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["probe, balanced (%)"] == ("88.4 [87.0,89.9]", "unknown")
    assert rows["odds AUC"] == ("unknown", "unknown")
    assert "seed 3" in table.captions[0]
    # A probe is known, so that --retain was given.
    needed = "unknown: needs --members or --original or --retrained, or more images"
    assert table.captions[-1] == needed


def test_no_flag_is_named_where_all_were_given() -> None:
    known = {key: Estimate(1.0, (1.0, 1.0)) for key in MEASURES if key != "r_tau"}
    (table,) = audit_tables([NetworkAudit("checkpoint", known)], seed=3)
    assert ("residual knowledge, r_tau", "unknown") in table.rows
    assert not any(caption.startswith("unknown: needs") for caption in table.captions)


def test_an_infinite_value_has_no_interval_and_nan_is_unknown() -> None:
    assert cell(Estimate(-math.inf, (-math.inf, -math.inf)), 2) == "-inf"
    assert cell(Estimate(math.nan, (math.nan, math.nan)), 2) == "unknown"


def test_curves_and_signals_are_in_the_columns_of_their_networks() -> None:
    relearnt = Relearning({0: 10.0, 5: 42.05}, 42.05, 40.0, 44.1, (39.0, 45.0), ("bias alone",))
    signals = {"loss": Advantage(0.1, (0.0, 0.2), 0.4)}
    audits = [NetworkAudit("checkpoint", {}, relearnt, signals), NetworkAudit("retrained")]
    _, curve, membership = audit_tables(audits, seed=0)
    assert curve.columns == ("k", "checkpoint", "retrained")
    assert curve.rows[:2] == [("0", "10.0", "unknown"), ("5", "42.0", "unknown")]
    assert curve.rows[-1] == ("best, by draw", "40.0 to 44.1", "")
    assert membership.rows == [("loss", "0.100 [0.000,0.200]", "unknown")]


def test_a_pair_of_networks_is_compared_once() -> None:
    alike = Estimate(0.5, (0.4, 0.6))
    audits = [
        NetworkAudit("checkpoint", likeness={"layer1": {"original, forget": alike}}),
        NetworkAudit("original", likeness={"layer1": {"retrained, forget": alike}}),
        NetworkAudit("retrained", likeness={"layer1": {"original, forget": alike}, "layer2": {}}),
    ]
    table = audit_tables(audits, seed=0)[-1]
    assert table.columns == ("", "checkpoint - original, forget", "original - retrained, forget")
    assert table.rows[0] == ("layer1", "0.50 [0.40,0.60]", "0.50 [0.40,0.60]")
