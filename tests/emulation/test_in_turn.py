"""Where requests are many, rows past the first refusal are not read; what comes out is the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from pearl_kernels import VerifyOutput, _cuda
from tests.emulation import build, plug
from tests.kernels.advance_checks import check_commits
from tests.kernels.cases import VerifyCase, verify_case

pytestmark = plug.needs_emulation

RULES = ("greedy", "token", "coupled")
FEW, MANY = 1, 1 << 20  # multiprocessors: rows in turn, all rows at once


@pytest.fixture
def on_a_device_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    plug.plug_in(monkeypatch, plug.emulated_extension())
    return lambda count: monkeypatch.setattr(_cuda, "_properties", lambda device: (count, plug.CAPABILITY))


def both_ways(case: VerifyCase, on_a_device_of: Callable[[int], None]) -> list[VerifyOutput]:
    outs = []
    for count in (FEW, MANY):
        on_a_device_of(count)
        outs.append(case.run("cuda"))
    return outs


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [{}, {"stats": False}, {"one_hot": True}, {"mapped": True, "stats": False}], ids=str)
def test_both_ways_give_the_same_bits(rule: str, kind: dict[str, bool], on_a_device_of: Callable[[int], None]) -> None:
    case = verify_case(64, 5, 2000, rule=rule, dtype=torch.bfloat16, seed=3, **kind)  # type: ignore[arg-type]
    for a, b in zip(*both_ways(case, on_a_device_of), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_both_ways_judge_defects_alike(rule: str, stats: bool, on_a_device_of: Callable[[int], None]) -> None:
    """A bad row past the first refusal is no row that matters, in either."""
    case = verify_case(300, 4, 40, rule=rule, stats=stats, seed=4)
    dice = torch.rand(2, 300, 4, generator=torch.Generator().manual_seed(0)) < 0.2
    assert case.draft_logits is not None
    broken = case.with_(
        target_logits=case.target_logits.masked_fill(dice[0, :, :, None], torch.nan),
        draft_logits=case.draft_logits.masked_fill(dice[1, :, :, None], torch.nan),
    )
    in_turn, at_once = both_ways(broken, on_a_device_of)
    wanted = broken.judged()
    for a, b, c in zip(in_turn, at_once, wanted, strict=True):
        assert torch.equal(a, b)
        assert int((a != c).sum()) <= 1
    past = dice[0] & (torch.arange(4) > wanted.num_accepted[:, None]) & (torch.arange(4) < case.chain_len[:, None])
    assert (past.any(1) & (wanted.status == 0)).any()


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_states_advance_in_turn(rule: str, one_hot: bool, on_a_device_of: Callable[[int], None]) -> None:
    on_a_device_of(FEW)
    check_commits(rule, "cuda", one_hot=one_hot)


def read_in_a_process_of_its_own(multiprocessors: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.emulation.unreadable", str(multiprocessors)]
    return subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, check=False)


def test_rows_past_the_first_refusal_are_not_read() -> None:
    done = read_in_a_process_of_its_own(FEW)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_law_sees_a_row_that_is_read() -> None:
    assert read_in_a_process_of_its_own(MANY).returncode == -signal.SIGSEGV
