"""Stopping is a pure function of the checks of a run."""

from pbu_cli.settings import Schedule
from pbu_cli.unlearning.stopping import MAX_BACK_OFFS, Check, decide


def test_an_unbounded_objective_stops_as_soon_as_the_class_is_forgotten() -> None:
    decision = decide([Check(10, 0.4, 0.3)], steps=1000, bounded=False)
    assert decision.action == "stop"
    assert "forgotten after 10 steps" in decision.reason


def test_an_unbounded_objective_goes_on_while_the_class_is_recognised() -> None:
    assert decide([Check(10, 0.6, 0.3)], steps=1000, bounded=False).action == "go on"


def test_a_bounded_objective_uses_all_its_steps() -> None:
    assert decide([Check(10, 0.0, 0.1)], steps=100, bounded=True).action == "go on"
    last = decide([Check(100, 0.0, 0.1)], steps=100, bounded=True)
    assert last.action == "stop"
    assert "all 100 steps taken; 0.0 %" in last.reason


def test_the_reason_says_how_much_is_recognised_when_the_steps_run_out() -> None:
    assert "30.0 %" in decide([Check(100, 30.0, 0.1)], steps=100, bounded=True).reason


def test_drift_past_the_limit_backs_off_whatever_else_holds() -> None:
    for bounded in (True, False):
        checks = [Check(20, 0.0, Schedule.most_drift + 0.1)]
        decision = decide(checks, steps=100, bounded=bounded)
        assert decision.action == "back off"
        assert "limit" in decision.reason


def test_a_run_that_always_drifts_gives_up() -> None:
    too_much = Schedule.most_drift + 1
    history = [Check(5 * k, 90.0, too_much) for k in range(1, MAX_BACK_OFFS + 2)]
    assert decide(history[:-1], steps=1000, bounded=False).action == "back off"
    decision = decide(history, steps=1000, bounded=False)
    assert decision.action == "give up"
    assert f"{MAX_BACK_OFFS + 1} times" in decision.reason


def test_the_limit_of_the_drift_is_the_callers() -> None:
    checks = [Check(20, 0.0, 0.6)]
    assert decide(checks, steps=100, bounded=True, most_drift=0.5).action == "back off"
    assert decide(checks, steps=100, bounded=True, most_drift=0.7).action == "go on"


def test_drift_past_the_limit_at_the_last_step_gives_up() -> None:
    checks = [Check(20, 0.0, Schedule.most_drift + 1)]
    assert decide(checks, steps=20, bounded=True).action == "give up"
