"""Verify chains whose rows past the first refusal cannot be read: that would end the process.

`python -m tests.emulation.unreadable MULTIPROCESSORS` does so under the rules that judge rows in turn.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch
from torch import Tensor

from tests.emulation import plug
from tests.kernels.cases import VerifyCase, verify_case

VOCAB = 2 * mmap.PAGESIZE // 4  # two pages to a row, and two slices
BATCH, WIDTH = 40, 4


def in_pages_of_its_own(logits: Tensor) -> Tensor:
    """A copy whose rows begin at pages."""
    memory = mmap.mmap(-1, logits.numel() * 4)
    return torch.frombuffer(memory, dtype=torch.float32).view(logits.shape).copy_(logits)


def forbid(row: Tensor) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(row.data_ptr()), ctypes.c_size_t(row.nbytes), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def unreadable_past_refusals(case: VerifyCase) -> VerifyCase:
    assert case.draft_logits is not None
    target, draft = in_pages_of_its_own(case.target_logits), in_pages_of_its_own(case.draft_logits)
    wanted = case.run("reference")
    ends = torch.minimum(wanted.num_accepted + 1, case.chain_len)
    assert (ends < case.chain_len).any()
    for b, end in enumerate(ends.tolist()):
        for i in range(end, WIDTH):
            forbid(target[b, i])
            forbid(draft[b, i])
    return case.with_(target_logits=target, draft_logits=draft)


def check(rule: str, stats: bool, multiprocessors: int) -> None:
    print(f"rule {rule}, stats {stats}", file=sys.stderr, flush=True)
    case = verify_case(BATCH, WIDTH, VOCAB, rule=rule, stats=stats, seed=5)
    wanted = case.run("reference")
    with pytest.MonkeyPatch.context() as patch:
        plug.plug_in(patch, plug.emulated_extension(), multiprocessors)
        got = unreadable_past_refusals(case).run("cuda")
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


if __name__ == "__main__":
    for rule, stats in (("token", True), ("token", False), ("greedy", True), ("coupled", True)):
        check(rule, stats, int(sys.argv[1]))
