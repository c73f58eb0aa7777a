"""The same work again and again on a GPU, recorded once as a CUDA graph.

Of small images a GPU is through with a kernel before the next one is launched, and the work takes
as long as the launches do. A graph launches all of them at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Work = Callable[..., Sequence[Tensor]]
WAITS = "called a synchronizing CUDA operation"  # torch's words


class CudaGraphRunner:
    """`work(*inputs)`, from tensors to tensors. What it returns holds until it is called again.

    The first call for inputs of some shapes runs as it is, the second is recorded, and from then on
    inputs are copied to where the first ones lay and the graph runs. So work must do the same for
    all inputs of one shape, and read nothing else that changes but in place. What cannot be
    recorded, for it waits for the GPU on its way or memory does not hold it twice, and whatever is
    on another device, runs as it is every time.

    >>> double = CudaGraphRunner(lambda x: [2 * x])
    >>> [double(torch.tensor([float(n)]))[0].item() for n in range(3)]
    [0.0, 2.0, 4.0]
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._by_shape: dict[tuple[torch.Size, ...], Work | None] = {}  # None: to be recorded

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if inputs[0].device.type != "cuda":
            return self._work(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes in self._by_shape:
            work = self._by_shape[shapes]
            if work is None:
                work = self._by_shape[shapes] = recorded(self._work, inputs) or self._work
            return work(*inputs)
        try:
            results, waits = watched(self._work, inputs)
        except RuntimeError:  # for want of the memory, perhaps, that the graphs hold
            self._by_shape.clear()
            raise
        self._by_shape[shapes] = self._work if waits else None
        return results


def watched(work: Work, inputs: Sequence[Tensor]) -> tuple[Sequence[Tensor], bool]:
    """What work gives, and whether it waited for the GPU on its way. Up to torch 2.11 to try to
    record such work spoils memory and random numbers for the rest of the process."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # which says that it is a prototype
        try:
            results = work(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return results, any(WAITS in str(warning.message) for warning in said)


def recorded(work: Work, inputs: Sequence[Tensor]) -> Work | None:
    """`work` as a CUDA graph for inputs of these shapes. None where it cannot be one, or where it
    holds more memory than would be left: others, such as a last batch, go on without one."""
    device = inputs[0].device
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        graph, own = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        try:
            places = [tensor.clone() for tensor in inputs]
            # Other threads may go on to bring images meanwhile.
            with torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):
                before = torch.cuda.memory_reserved()
                results = work(*places)
        except RuntimeError:
            return None
        finally:
            torch.cuda.set_stream(stream)  # torch stays on its own where a recording fails
        if torch.cuda.mem_get_info()[0] < torch.cuda.memory_reserved() - before:
            return None

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        torch._foreach_copy_(places, list(inputs))
        with torch.cuda.device(device):
            graph.replay()
        return results

    return replay
