"""Work on a CUDA stream as a graph, and what to do where that fails."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from pearl_kernels import captures

# Their captures broke: torch's allocator of pinned memory may still ask them whether they are under way.
_broken: list[torch.cuda.CUDAGraph] = []


def capture(work: Callable[[], object], stream: torch.cuda.Stream) -> Callable[[], None]:
    """Work as a CUDA graph of the stream's device, to be replayed there. It is not run now.

    Waits for the device, and for captures of other threads. Raises what work raises, and torch's errors for what no
    graph can hold; other captures, and whatever else there is on the device, go on as before.
    """
    with captures.turn:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with _no_collection(), _own_workspace(stream), _capturing(graph, pool, stream):
                work()
        except BaseException:
            _end_broken(graph, pool, stream)
            raise
    replay: Callable[[], None] = graph.replay
    return replay


def give_back(device: torch.device) -> None:
    """Give unused memory back to a device, with that of graphs that are gone: no one else has it before.

    Waits for captures of other threads, during which torch refuses to.
    """
    with captures.turn, torch.cuda.device(device):
        torch.cuda.empty_cache()


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> Iterator[None]:
    with (
        torch.inference_mode(False),  # captures of others share torch's random state, which is made by the first
        torch.cuda.stream(stream),  # a capture that fails does not put the caller's stream back
        # Threads of the caller's may go on allocating while this one captures.
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        torch.inference_mode(),
    ):
        yield


@contextmanager
def _own_workspace(stream: torch.cuda.Stream) -> Iterator[None]:
    """Within, what cuBLAS works in is allocated anew, in the graph's own pool, and is no one else's afterwards.

    Torch keeps one for each stream, and lets go of it when any graph that was captured there is destroyed, while others
    that have it go on using it (pytorch/pytorch#193402).
    """
    with torch.cuda.stream(stream):
        # This thread's, which cannot be made in a capture (pytorch/pytorch#99397).
        torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


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
