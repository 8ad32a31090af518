"""Compute threads that are let go."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import torch

from pearl_kernels import release_threads, window_linear

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def count() -> int:
    return len(os.listdir("/proc/self/task"))


def ended(before: int) -> bool:
    """Whether there are fewer threads than before, a moment later."""
    end = time.monotonic() + 10
    while count() >= before and time.monotonic() < end:
        time.sleep(0.01)
    return count() < before


@pytest.mark.usefixtures("two_threads")
def test_threads_that_are_let_go_end_and_come_back() -> None:
    x, weight = torch.randn(4, 512), torch.randn(2048, 512)
    for work in (lambda: torch.randn(1 << 20).exp(), lambda: window_linear(x, weight)):
        release_threads()
        work()
        with_team = count()
        release_threads()
        assert ended(with_team)
        work()
        assert count() == with_team
    wanted = window_linear(x, weight)
    release_threads()
    release_threads()
    assert torch.equal(window_linear(x, weight), wanted)
