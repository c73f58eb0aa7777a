"""A student learns retained images from the original, forget images from an untrained network.

Source: Chundawat, Tarun, Mandal, Kankanhalli, "Can Bad Teaching Induce Forgetting? Unlearning in
Deep Networks using an Incompetent Teacher", AAAI 2023, arXiv 2205.08096. Let T_s be the competent
teacher, which is the original, T_d the incompetent teacher, which has random weights, and S the
student, which starts as the original. With l = 1 for a forget image and 0 for another, the loss of
an image x is

    (1 - l) KL(T_s(x) || S(x)) + l KL(T_d(x) || S(x)).

The settings are those of the authors' published experiments: Adam at 1e-4, batches of 256, one
epoch, temperature 1, all forget images and 30 % of the retained images. Reads both.

Deviation: the loss is a mean over images. The authors' code also divides it by the number of
classes, which changes Adam's steps only through its epsilon.
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
    """Train the student on both teachers' outputs."""
    generator = torch.Generator().manual_seed(task.seed)
    student, competent = task.copy_original().train(), task.original
    # The original's own seed would give the weights that the original started from.
    incompetent = task.build_untrained(task.seed + 1_000_003).to(task.forget.device).eval()
    order = torch.randperm(len(task.retained), generator=generator)
    retained = task.retained.subset(order[: round(settings.share * len(task.retained))])
    loader = CountingLoader(
        torch.cat([task.forget.pixels, retained.pixels]),
        torch.cat([task.forget.labels, retained.labels]),
        retained.preprocessing,
        retained.device,
        retained.count_images,
    )
    optimiser = torch.optim.Adam(student.parameters(), settings.rate)
    for _ in range(settings.epochs):
        for inputs, labels in loader.shuffled(settings.batch_size, generator):
            with torch.no_grad():
                good, bad = competent(inputs), incompetent(inputs)
            optimiser.zero_grad()
            teaching_loss(student(inputs), good, bad, labels == task.label).backward()
            optimiser.step()
    yield Result(student.eval())


def teaching_loss(
    student: Tensor, competent: Tensor, incompetent: Tensor, is_forget: Tensor
) -> Tensor:
    """The loss of the module's docstring, in nats: a mean over images.

    Logits [n, c] of the student and both teachers, and a mask bool [n] of the forget images -> [].

    >>> z = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    >>> teaching_loss(z, z, z.flip(1), torch.tensor([True, False]))
    tensor(0.)
    """
    teacher = torch.where(is_forget[:, None], incompetent, competent).log_softmax(1)
    return F.kl_div(student.log_softmax(1), teacher, reduction="batchmean", log_target=True)


METHOD = Method(
    "bad-teaching",
    "both",
    unlearn,
    lambda size: SETTINGS.epochs * (size.forget + SETTINGS.share * size.retained) * 5 / 3,
    asdict(SETTINGS),
)
