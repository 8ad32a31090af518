"""Where CUDA kernels are queued, and the memory their blocks talk through."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

MOST_WIDTH = 64  # kMostCudaWidth of csrc/verify/chain_cuda.h

# (device, stream, address of the counters, address of the scratch memory), as csrc/common/cuda/workspace.h has it
Queue = tuple[int, int, int, int]


class Workspace(NamedTuple):
    """counters: zeros between operations, and left so by each; scratch: anything."""

    counters: Tensor
    scratch: Tensor


# One for each stream of each device: operations on one stream take turns. They only grow.
_WORKSPACES: dict[tuple[torch.device, int], Workspace] = {}


def queue(extension: ModuleType, logits: Tensor, width: int) -> Queue:
    """The current stream of the logits' device, with a workspace for `width` rows of (batch, ..., vocab) logits each.

    A graph that is being captured gets a workspace of its own, which lives as long as the graph.
    """
    if width > MOST_WIDTH:
        raise ValueError(f"cuda backend: chains must be at most {MOST_WIDTH} long, got width={width}")
    device = logits.device
    on_gpu = device.type == "cuda"
    stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else 0
    sizes = extension.cuda_workspace_size(logits.shape[0], width, logits.shape[-1])
    if on_gpu and torch.cuda.is_current_stream_capturing():
        workspace = _new_workspace(device, *sizes)
    else:
        workspace = _WORKSPACES.get((device, stream)) or _new_workspace(device, 0, 0)
        if any(tensor.nbytes < size for tensor, size in zip(workspace, sizes, strict=True)):
            workspace = _new_workspace(device, *(max(t.nbytes, s) for t, s in zip(workspace, sizes, strict=True)))
            _WORKSPACES[device, stream] = workspace
    return logits.get_device(), stream, workspace.counters.data_ptr(), workspace.scratch.data_ptr()


def _new_workspace(device: torch.device, counters_bytes: int, scratch_bytes: int) -> Workspace:
    return Workspace(
        torch.zeros(counters_bytes, dtype=torch.uint8, device=device),
        torch.empty(scratch_bytes, dtype=torch.uint8, device=device),
    )
