"""The threads that the CPU kernels share their work out to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pearl_kernels import DecodeState, advance_, kernels_alone, release_threads, window_linear
from pearl_kernels.threads import num_threads
from tests.kernels.cases import SampleCase, VerifyCase, mixed_params, verify_case

SIZES = [(4, 512, 2048), (1, 64, 4096), (9, 256, 1031)]  # rows, inputs, outputs


@pytest.fixture(params=[2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """More than there are cores, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def products(times: int, *, alone: bool = True) -> list[torch.Tensor]:
    """By helpers of the kernels' own, or by torch's threads."""
    if alone:
        with kernels_alone():
            return products(times, alone=False)
    dice = torch.Generator().manual_seed(1)
    found = []
    for _ in range(times):
        for rows, inputs, outputs in SIZES:
            x, weight = (torch.randn(n, inputs, generator=dice) for n in (rows, outputs))
            found.append(window_linear(x, weight, backend="cpu"))
    return found


def at_one_thread(work: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def check(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for got, want in zip(found, wanted, strict=True):
        assert torch.equal(got, want)


def tasks() -> set[str]:
    """The threads of this process."""
    return set(os.listdir("/proc/self/task"))


def test_work_is_done_once_whoever_calls_and_however_often(threads: int) -> None:
    wanted = at_one_thread(lambda: products(20))
    check(products(20, alone=False), wanted)
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(threads,)) as callers:
        for found in callers.map(products, [20] * 8):
            check(found, wanted)


def judged(case: VerifyCase, draws: SampleCase, state: DecodeState) -> list[torch.Tensor]:
    state = DecodeState(*(tensor.clone() for tensor in vars(state).values()))
    outcome = advance_(
        state, case.target_logits, case.params, draft_logits=case.draft_logits, draft_stats=case.draft_stats,
        d2t=case.d2t, rule=case.rule, next_window=2, backend="cpu",
    )  # fmt: skip
    drawn = draws.run("cpu")
    return [*case.run("cpu"), drawn.tokens, *drawn.stats, drawn.status, *outcome, *vars(state).values()]


@pytest.mark.parametrize("rule", ["greedy", "token", "block", "coupled"])
def test_rows_are_drawn_and_judged_alike_by_any_number_of_threads(rule: str, threads: int) -> None:
    batch, width, vocab = 13, 4, 9000
    case, logits = verify_case(batch, width, vocab, rule=rule), torch.randn(batch, 4 * vocab)
    draws = SampleCase(4 * logits, mixed_params(batch), torch.arange(batch))
    state = DecodeState(
        tokens=torch.cat([torch.zeros(batch, 1).long(), case.draft_tokens, torch.zeros(batch, 9).long()], dim=1),
        committed=torch.ones(batch).long(),
        window=torch.arange(batch, dtype=torch.int32) % width,
        max_len=torch.full((batch,), 9),
        eos_ids=torch.full((batch, 1), -1),
        finished=(torch.arange(batch, dtype=torch.int32) == 5).int(),
        status=torch.zeros(batch, dtype=torch.int32),
    )
    wanted = at_one_thread(lambda: judged(case, draws, state))
    check(judged(case, draws, state), wanted)
    before, started = tasks(), set()

    def work() -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        with kernels_alone():
            found = judged(case, draws, state)
        started.update(tasks() - before)
        return found

    with ThreadPoolExecutor(1) as caller:
        check(caller.submit(work).result(), wanted)
    assert len(started) >= threads, "the caller and its helpers"


def test_a_forked_process_has_helpers_of_its_own(threads: int) -> None:
    wanted = products(2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            check(products(2), wanted)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    check(products(2), wanted)


def test_kernels_alone_have_the_threads_that_torch_had(threads: int) -> None:
    wanted = products(1)
    with kernels_alone(), kernels_alone():
        assert (torch.get_num_threads(), num_threads()) == (1, threads)
        check(products(1), wanted)
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(3,)) as other:
            assert other.submit(num_threads).result() == 3
    with pytest.raises(ZeroDivisionError), kernels_alone():
        raise ZeroDivisionError
    assert torch.get_num_threads() == num_threads() == threads


def test_helpers_come_with_work_sleep_without_and_end_with_their_caller(threads: int) -> None:
    before = tasks()
    started, idle_s = set(), []

    def work() -> None:
        torch.set_num_threads(threads)
        products(1)
        started.update(tasks() - before)
        time.sleep(0.05)
        start = time.process_time()
        time.sleep(0.5)
        idle_s.append(time.process_time() - start)

    caller = threading.Thread(target=work)
    caller.start()
    caller.join()
    assert len(started) >= threads  # the caller and its helpers
    assert idle_s[0] < 0.25 * (threads - 1)
    end = time.monotonic() + 10
    while started & tasks() and time.monotonic() < end:
        time.sleep(0.01)
    assert not started & tasks()


def test_the_runtime_is_torchs_whatever_else_is_loaded(tmp_path: Path) -> None:
    """Another OpenMP, that some other package brought before."""
    [own] = Path(torch.__file__).parent.glob("lib/libgomp*.so*")
    other = tmp_path / "libgomp-other.so.1"
    other.write_bytes(own.read_bytes().replace(own.name.encode(), own.name.upper().encode()))  # its name for the linker
    program = f"""
import ctypes
ctypes.CDLL({str(other)!r})
import torch
from tests.kernels.test_threads import test_threads_of_torch_that_are_let_go_end_and_come_back as test
torch.set_num_threads(2)
test(2)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_threads_of_torch_that_are_let_go_end_and_come_back(threads: int) -> None:
    release_threads()
    before = tasks()
    for _ in range(2):
        torch.randn(1 << 20).exp()
        started = tasks() - before
        assert started
        release_threads()
        end = time.monotonic() + 10
        while started & tasks() and time.monotonic() < end:
            time.sleep(0.01)
        assert not started & tasks()
    release_threads()
