"""Where memory lacks, an operation is queued again only if none of it was queued before."""

from __future__ import annotations

import pytest
import torch

from pearl_kernels import Purpose, _cuda
from tests.emulation import plug
from tests.emulation.test_in_turn import FEW, MANY
from tests.emulation.test_memory import RULES, STREAMS, Runtime, assert_equal, small
from tests.kernels.advance_checks import advance, assert_same_state, copy_of, sequences
from tests.kernels.cases import SampleCase, mixed_params, peaked_logits

pytestmark = plug.needs_emulation

NEVER = -1


class Lacking(Runtime):
    """Of a stream that has no memory yet, in a process where torch may be asked to give back some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.on(next(STREAMS))
        self.emptied = 0
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def _empty(self) -> None:
        self.emptied += 1

    def after(self, *, launches: int = NEVER, allocations: int = NEVER) -> None:
        self.functions.emulation_lack_memory(launches, allocations)


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Lacking:
    return Lacking(monkeypatch)


@pytest.mark.parametrize("rule", RULES)
def test_what_lacked_memory_before_it_began_is_done_once_there_is_some(rule: str, lacking: Lacking) -> None:
    lacking.after(allocations=0)
    assert_equal(small(rule).run("cuda"), small(rule).run("reference"))
    assert lacking.emptied == 1


@pytest.mark.parametrize("rule", ["token", "block"])
def test_what_can_not_go_on_is_an_error_and_not_done_twice(rule: str, lacking: Lacking) -> None:
    before, case = sequences(rule)
    wanted, state = copy_of(before), copy_of(before)
    advance(wanted, case, "cuda")
    lacking.after(launches=1)
    with pytest.raises(RuntimeError, match=r"^cuda backend: out of memory$"):
        advance(state, case, "cuda")
    assert lacking.emptied == 0
    done = state.committed != before.committed
    assert 0 < done.sum() < len(done)
    assert_same_state(state, wanted, done)
    assert_same_state(state, before, ~done)


def test_all_kernels_are_loaded_with_the_first(lacking: Lacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later, the memory for one may lack when those before it are at work."""
    logits, five = peaked_logits((5, 300), torch.Generator().manual_seed(0)), torch.arange(5)
    SampleCase(logits, mixed_params(5), five, Purpose.DRAFT, five).run("cuda")
    for count in (FEW, MANY):
        monkeypatch.setattr(_cuda, "_properties", lambda device, count=count: (count, plug.CAPABILITY))
        for rule in RULES:
            small(rule).run("cuda")
    assert plug.emulated_extension().cuda_problem(0) is None
    assert lacking.functions.emulation_count_not_loaded() == 0
