"""Chains that are longer than the CUDA kernels take run on another backend, and that is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from pearl_kernels import DecodeState, _cuda, dispatch
from tests.emulation import plug
from tests.emulation.test_memory import assert_equal
from tests.kernels.advance_checks import advance, assert_same_state, copy_of
from tests.kernels.cases import verify_case

pytestmark = [
    plug.needs_emulation,
    pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is not interpreted where there is a GPU"),
]

MOST = _cuda.MOST_WIDTH


@pytest.fixture(autouse=True)
def _cpu_tensors_are_cudas(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They run on the backends that CUDA tensors have, in that order."""
    plug.plug_in(monkeypatch, plug.emulated_extension())
    monkeypatch.setitem(dispatch._ORDER, "cpu", ("cuda", "triton", "reference"))
    for cached in (dispatch._pick, dispatch._warn_once):
        cached.cache_clear()
    yield
    dispatch._pick.cache_clear()


@pytest.mark.parametrize("rule", ["greedy", "block"])
@pytest.mark.parametrize("width", [MOST, MOST + 1])
def test_chains_of_any_length_are_judged(rule: str, width: int, caplog: pytest.LogCaptureFixture) -> None:
    case = verify_case(3, width, 50, rule=rule, stats=False)
    with caplog.at_level(logging.WARNING, logger="pearl_kernels"):
        assert_equal(case.run(None), case.run("reference"))
    passed_over = "cpu tensors run on the triton backend: cuda backend: does not take these sizes"
    assert [record.message for record in caplog.records] == ([passed_over] if width > MOST else [])


def test_states_advance_by_chains_of_any_length() -> None:
    case = verify_case(2, MOST + 1, 50, rule="greedy")
    zeros = torch.zeros(2, dtype=torch.int32)
    state = DecodeState(
        tokens=case.draft_tokens.clone(),
        committed=torch.zeros(2, dtype=torch.int64),
        window=case.chain_len - 1,
        max_len=torch.full((2,), MOST + 1),
        eos_ids=torch.full((2, 1), -1),
        finished=zeros.clone(),
        status=zeros.clone(),
    )
    wanted = copy_of(state)
    advance(wanted, case, "reference")
    advance(state, case, None)
    assert_same_state(state, wanted)


def test_a_backend_that_is_asked_for_by_name_says_what_it_takes() -> None:
    with pytest.raises(ValueError, match=r"^cuda backend: chains must be at most 64 long, got width=65$"):
        verify_case(3, MOST + 1, 50).run("cuda")
