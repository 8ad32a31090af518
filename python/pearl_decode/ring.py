"""How rounds' outcomes reach the host: copied without waiting, and read some rounds late."""

from __future__ import annotations

from collections import deque

import torch

from pearl_decode.lanes.queue import DeviceLane, Event


class Ring:
    """Slots of host memory that a lane copies small tensors to, first in, first out.

    most:  numbers in the largest of the contiguous int64 tensors (rows, columns) to be pushed
    depth: how many may be on their way at once
    """

    def __init__(self, most: int, depth: int, lane: DeviceLane) -> None:
        # Pinned, or a copy would hold up the host until the device has come to it.
        pinned = lane.device.type == "cuda"
        self._free = deque(torch.zeros(most, dtype=torch.int64, pin_memory=pinned) for _ in range(depth))
        self._full: deque[tuple[torch.Tensor, torch.Size, Event]] = deque()
        self._lane = lane

    def __len__(self) -> int:
        """How many were pushed and not yet read."""
        return len(self._full)

    def push(self, source: torch.Tensor) -> None:
        """Queue a copy of what source will hold when the lane comes to it."""
        assert self._free, f"the ring holds {len(self._full)} unread rounds and no more"
        slot = self._free.popleft()
        # Flat, so that the copy is of one piece however much of the slot it fills.
        self._lane.run(lambda: slot[: source.numel()].copy_(source.view(-1), non_blocking=True))
        self._full.append((slot, source.shape, self._lane.record()))

    def read(self) -> list[list[int]]:
        """The oldest that was pushed. Waits for its copy, but not for what the lane has queued since."""
        slot, shape, copied = self._full.popleft()
        copied.synchronize()
        values: list[list[int]] = slot[: shape.numel()].view(shape).tolist()
        self._free.append(slot)
        return values
