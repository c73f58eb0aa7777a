"""When to stop, judged by the forget images and the anchors alone.

The forgetting term has no lower bound, and if it runs on it destroys the network: with the authors'
recipe A_Dr falls from 97-98 % after one epoch to 31-36 % after five. The harm to the retained
classes shows before it is complete, in the *drift*: how far the predictions among the retained
classes have moved from those of theta* (mean KL divergence of the softmax restricted to those
classes, nats). On the forget images the drift is about 0.1 after a good run, and it passes 1 while
the retained accuracy breaks down. On anchors, which stand for the retained classes, the drift is a
better measure: about 0.002 after a good run, 0.15 in the run's first steps.

Pure functions of what was measured; no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pbu_cli.settings import FORGOTTEN

Action = Literal["go on", "back off", "give up", "stop"]

MAX_BACK_OFFS = 5  # a run starts over at most this often
BACK_OFF_FACTOR = 0.25  # each time the learning rate is multiplied by this


@dataclass(frozen=True)
class Check:
    """What was measured at one check of a run, on the most recent forget images.

    step: the number of steps so far. recognised: percent of these images on which the forgotten
    classes still hold more probability than `Schedule.recognised`. drift: nats, as defined above.
    """

    step: int
    recognised: float
    drift: float


@dataclass(frozen=True)
class Decision:
    """What to do next and, unless the run goes on, why."""

    action: Action
    reason: str = ""


def decide(
    history: Sequence[Check], *, steps: int, bounded: bool, most_drift: float = 1.0
) -> Decision:
    """Decide what follows from the newest check in `history`.

    steps: the run's limit of steps. most_drift: the limit of the drift, nats. bounded: whether the
    objective is bounded below.

    An unbounded objective gains nothing once the class is forgotten, so the run stops there. A
    bounded one goes on, because its last, smaller steps repair what the first ones moved. The
    action `back off` starts over from theta* with the learning rate times BACK_OFF_FACTOR, because
    Adam overshoots where a term gets steeper while it falls. The action `give up` ends the run at
    the weights of the newest check within the limit.

    >>> decide([Check(5, 80.0, 0.2), Check(10, 0.0, 0.4)], steps=100, bounded=False).reason
    'forgotten after 10 steps'
    >>> decide([Check(5, 80.0, 0.2), Check(10, 60.0, 2.5)], steps=100, bounded=True).action
    'back off'
    """
    newest = history[-1]
    if newest.drift > most_drift:
        times = sum(check.drift > most_drift for check in history)
        last = times > MAX_BACK_OFFS or newest.step >= steps
        often = "" if times == 1 else f", {times} times in all"
        return Decision(
            "give up" if last else "back off",
            f"predictions among the other classes drifted {newest.drift:.2f} nats by step"
            f" {newest.step} (limit {most_drift:g}{often}): more steps would destroy the network",
        )
    if not bounded and newest.recognised <= FORGOTTEN:
        return Decision("stop", f"forgotten after {newest.step} steps")
    if newest.step >= steps:
        left = f"{newest.recognised:.1f} % of the recent images are still recognised"
        return Decision("stop", f"all {steps} steps taken; {left}")
    return Decision("go on")
