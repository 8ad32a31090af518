"""Work on a CUDA stream as a graph, and what to do where that fails."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

# Their captures broke: torch's allocator of pinned memory may still ask them whether they are under way.
_broken: list[torch.cuda.CUDAGraph] = []


def capture(work: Callable[[], object], stream: torch.cuda.Stream) -> Callable[[], None]:
    """Work as a CUDA graph of the stream's device, to be replayed there. It is not run now.

    Waits for the device. Raises what work raises, and torch's errors for what no graph can hold; other captures, and
    whatever else there is on the device, go on as before.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        with _no_collection(), _capturing(graph, pool, stream):
            work()
    except BaseException:
        _end_broken(graph, pool, stream)
        raise
    replay: Callable[[], None] = graph.replay
    return replay


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> Iterator[None]:
    with (
        torch.inference_mode(),
        torch.cuda.stream(stream),  # a capture that fails does not put the caller's stream back
        # Threads of the caller's may go on allocating while this one captures.
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        yield


@contextmanager
def _no_collection() -> Iterator[None]:
    """Whatever garbage does when it is collected, freeing a graph or a batch, may not be captured."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _end_broken(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> None:
    """Before 2.12 torch takes a capture that CUDA broke off for one still under way, and then refuses all others, and
    random numbers too (pytorch/pytorch#180395).
    """
    try:
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
    except RuntimeError:
        return  # it was ended
    torch._C._cuda_releasePool(stream.device.index, pool)
    _broken.append(graph)
    # One that is whole lets random numbers be drawn again.
    with suppress(RuntimeError), _capturing(torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), stream):
        torch.zeros(1, device=stream.device)
