"""The same work again and again on a GPU, recorded once as a CUDA graph.

Of small images a GPU is through with a kernel before the next one is launched, and the work takes
as long as the launches do. A graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Work = Callable[..., Sequence[Tensor]]


class Replay:
    """`work(*inputs)`, from tensors to tensors. What it returns holds until it is called again.

    The first call for inputs of some shapes runs as it is, the second is recorded, and from then on
    inputs are copied to where the first ones lay and the graph runs. So work must do the same for
    all inputs of one shape, and read nothing else that changes but in place. What cannot be
    recorded, for it asks the GPU for an answer on its way or memory does not hold it, and whatever
    is on another device, runs as it is every time.

    >>> double = Replay(lambda x: [2 * x])
    >>> [double(torch.tensor([float(n)]))[0].item() for n in range(3)]
    [0.0, 2.0, 4.0]
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._by_shape: dict[tuple[torch.Size, ...], Work | None] = {}  # None: run once

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if inputs[0].device.type != "cuda":
            return self._work(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._by_shape:
            results = self._work(*inputs)  # may fail, and is then not the first
            self._by_shape[shapes] = None
            return results
        work = self._by_shape[shapes]
        if work is None:
            work = self._by_shape[shapes] = recorded(self._work, inputs) or self._work
        return work(*inputs)


def recorded(work: Work, inputs: Sequence[Tensor]) -> Work | None:
    """`work` as a CUDA graph for inputs of these shapes; None where it cannot be one."""
    device = inputs[0].device
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        try:
            places = [tensor.clone() for tensor in inputs]
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on to bring images meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = work(*places)
        except RuntimeError:
            torch.cuda.set_stream(stream)  # which torch leaves as it is where a recording fails
            return None

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        torch._foreach_copy_(places, list(inputs))
        with torch.cuda.device(device):
            graph.replay()
        return results

    return replay
