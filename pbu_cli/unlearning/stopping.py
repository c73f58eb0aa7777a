"""When to stop, from the forget images alone.

The forgetting term knows no bound of its own, and run on it destroys the network: with the
authors' recipe A_Dr falls from 97-98 % after one epoch to 31-36 % after five. What it does to the
classes that stay shows before it is done: the *drift*, how far the answers among the other classes
have moved (mean KL of the restricted softmax from theta*, nats). On the forget images it is about
0.1 after a good run and passes 1 while the retained accuracy breaks down. On anchors, which stand
for those classes, it is a better gauge: about 0.002 after a good run, 0.15 in its first steps.

Pure functions of what was seen; no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pbu_cli.settings import FORGOTTEN

Action = Literal["go on", "back off", "give up", "stop"]

BACK_OFFS = 5  # so often a run starts over, more slowly ...
SLOWER = 0.25  # ... by this share


@dataclass(frozen=True)
class Seen:
    """What the recent forget images showed.

    `recognised`: percent of them on which the forgotten classes still hold more probability
    than `Schedule.recognised`. `drift`: nats, see above.
    """

    step: int
    recognised: float
    drift: float


@dataclass(frozen=True)
class Decision:
    """What to do next and, unless it is to go on, why."""

    action: Action
    reason: str = ""


def decide(
    history: Sequence[Seen], *, steps: int, bounded: bool, most_drift: float = 1.0
) -> Decision:
    """Decide after the newest check in `history`, of a run of at most `steps` steps that may move
    the answers by `most_drift` nats.

    An objective that is not `bounded` gains nothing once the class is forgotten, so the run stops
    there. A bounded one goes on, since its last, smaller steps repair what the first ones moved.
    `back off` starts over from theta* at SLOWER times the learning rate, since Adam overshoots
    where a term steepens as it falls; `give up` ends at the newest check within that.

    >>> decide([Seen(5, 80.0, 0.2), Seen(10, 0.0, 0.4)], steps=100, bounded=False).reason
    'forgotten after 10 steps'
    >>> decide([Seen(5, 80.0, 0.2), Seen(10, 60.0, 2.5)], steps=100, bounded=True).action
    'back off'
    """
    now = history[-1]
    if now.drift > most_drift:
        times = sum(seen.drift > most_drift for seen in history)
        last = times > BACK_OFFS or now.step >= steps
        often = "" if times == 1 else f", {times} times in all"
        return Decision(
            "give up" if last else "back off",
            f"answers among the other classes moved {now.drift:.2f} nats by step {now.step}"
            f" (limit {most_drift:g}{often}): more steps would destroy the network",
        )
    if not bounded and now.recognised <= FORGOTTEN:
        return Decision("stop", f"forgotten after {now.step} steps")
    if now.step >= steps:
        left = f"{now.recognised:.1f} % of the recent images are still recognised"
        return Decision("stop", f"all {steps} steps taken; {left}")
    return Decision("go on")
