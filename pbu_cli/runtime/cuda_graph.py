"""Repeat the same work on a GPU: record it once as a CUDA graph, then replay the graph.

With small images the GPU finishes each kernel before the CPU has launched the next one, so the
work takes as long as the launches. Recording stores all launches of one call in a CUDA graph, and
replaying the graph starts all of them at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Work = Callable[..., Sequence[Tensor]]
SYNC_WARNING = "called a synchronizing CUDA operation"  # torch's own words


class CudaGraphRunner:
    """Calls `work(*inputs)`, from tensors to tensors, and replays it as a CUDA graph if possible.

    For each combination of input shapes, the first call runs `work` as it is and the second call
    records it. Every later call copies its inputs into the memory of the recorded inputs and
    replays the graph. So `work` must do the same operations for all inputs of one shape, and every
    other tensor that it reads may change only in place. The next call may overwrite the returned
    tensors.

    `work` runs as it is every time on a device other than CUDA, where it waits for the GPU in
    between, and where memory does not hold it twice.

    >>> double = CudaGraphRunner(lambda x: [2 * x])
    >>> [double(torch.tensor([float(n)]))[0].item() for n in range(3)]
    [0.0, 2.0, 4.0]
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._by_shape: dict[tuple[torch.Size, ...], Work | None] = {}  # None: record at next call

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if inputs[0].device.type != "cuda":
            return self._work(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes in self._by_shape:
            work = self._by_shape[shapes]
            if work is None:
                work = self._by_shape[shapes] = record(self._work, inputs) or self._work
            return work(*inputs)
        try:
            results, waited = run_watched(self._work, inputs)
        except RuntimeError:  # memory may have run out, and the graphs hold some: release them
            self._by_shape.clear()
            raise
        self._by_shape[shapes] = self._work if waited else None
        return results


def run_watched(work: Work, inputs: Sequence[Tensor]) -> tuple[Sequence[Tensor], bool]:
    """The results of `work`, and whether it waited for the GPU in between.

    Work that waits must not be recorded: up to torch 2.11 the attempt corrupts memory and random
    numbers for the rest of the process.
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # itself warns that it is a prototype
        try:
            results = work(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return results, any(SYNC_WARNING in str(warning.message) for warning in caught)


def record(work: Work, inputs: Sequence[Tensor]) -> Work | None:
    """`work` as a CUDA graph for inputs of these shapes, or None where it cannot be recorded.

    None also where the graph holds more memory than would be left. Work on other shapes, such as
    a smaller last batch, runs without a graph and needs that memory.
    """
    device = inputs[0].device
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        graph, own_stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        try:
            graph_inputs = [tensor.clone() for tensor in inputs]
            # thread_local: other threads may copy images to the GPU while this one records.
            with torch.cuda.graph(graph, stream=own_stream, capture_error_mode="thread_local"):
                before = torch.cuda.memory_reserved()
                results = work(*graph_inputs)
        except RuntimeError:
            return None
        finally:
            torch.cuda.set_stream(stream)  # after a failed recording torch stays on its own stream
        if torch.cuda.mem_get_info()[0] < torch.cuda.memory_reserved() - before:
            return None

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        torch._foreach_copy_(graph_inputs, list(inputs))
        with torch.cuda.device(device):
            graph.replay()
        return results

    return replay
