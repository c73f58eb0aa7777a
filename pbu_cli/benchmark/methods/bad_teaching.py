"""A student learns retained images from the original, forget images from an untrained network.

Source: Chundawat, Tarun, Mandal, Kankanhalli, "Can Bad Teaching Induce Forgetting? Unlearning in
Deep Networks using an Incompetent Teacher", AAAI 2023, arXiv 2205.08096. With T_s the competent
teacher, the original; T_d the incompetent one, of random weights; S the student, which starts as
the original; and l = 1 for forget images, 0 for others, the loss of an image x is

    (1 - l) KL(T_s(x) || S(x)) + l KL(T_d(x) || S(x)).

Settings as in the authors' published experiments: Adam 1e-4, batches of 256, one epoch, temperature
1, all forget images and 30 % of the retained. Reads both.

Deviation: the mean is over images; their code divides by the number of classes too, which Adam
does not see but for its epsilon.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.task import Method, Result, Task


@dataclass(frozen=True)
class Settings:
    rate: float = 1e-4
    batch_size: int = 256
    epochs: int = 1
    share: float = 0.3  # of the retained images


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Teach the student for one epoch."""
    generator = torch.Generator().manual_seed(task.seed)
    student, competent = task.copied().train(), task.original
    # A seed of its own: the original's would give the network that the original began as.
    incompetent = task.fresh(task.seed + 1_000_003).to(task.forget.device).eval()
    order = torch.randperm(len(task.retained), generator=generator)
    some = task.retained.chosen(order[: round(settings.share * len(task.retained))])
    mixed = CountingLoader(
        torch.cat([task.forget.pixels, some.pixels]),
        torch.cat([task.forget.labels, some.labels]),
        some.preprocessing,
        some.device,
        some.seen,
    )
    optimiser = torch.optim.Adam(student.parameters(), settings.rate)
    for _ in range(settings.epochs):
        for inputs, labels in mixed.shuffled(settings.batch_size, generator):
            with torch.no_grad():
                good, bad = competent(inputs), incompetent(inputs)
            optimiser.zero_grad()
            teaching_loss(student(inputs), good, bad, labels == task.label).backward()
            optimiser.step()
    yield Result(student.eval())


def teaching_loss(
    student: Tensor, competent: Tensor, incompetent: Tensor, forget: Tensor
) -> Tensor:
    """The mean of the loss above, nats. Logits [n, c] each, bool [n] -> [].

    >>> z = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    >>> teaching_loss(z, z, z.flip(1), torch.tensor([True, False]))
    tensor(0.)
    """
    teacher = torch.where(forget[:, None], incompetent, competent).log_softmax(1)
    return F.kl_div(student.log_softmax(1), teacher, reduction="batchmean", log_target=True)


METHOD = Method(
    "bad-teaching",
    "both",
    unlearn,
    lambda size: SETTINGS.epochs * (size.forget + SETTINGS.share * size.retained) * 5 / 3,
    asdict(SETTINGS),
)
