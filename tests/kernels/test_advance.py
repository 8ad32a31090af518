"""`advance_` commits exactly what was verified, and cuts exactly at the end."""

from __future__ import annotations

import itertools

import pytest
import torch

import pearl_kernels
from pearl_kernels import DecodeState, Finished, SamplingTensors, Status
from tests.kernels.advance_checks import (
    EOS,
    LENGTH,
    WIDTH,
    Story,
    advance,
    assert_same_state,
    check_commits,
    check_stories,
    copy_of,
    run_stories,
    sequences,
    stories_of_every_ending,
)
from tests.kernels.cases import mixed_params

RULES = ("greedy", "token", "block", "coupled")


@pytest.mark.parametrize("next_window", [0, 3])
@pytest.mark.parametrize("eos_is_corrected", [False, True])
def test_every_ending_at_every_offset(eos_is_corrected: bool, next_window: int, backend: str) -> None:
    check_stories(stories_of_every_ending(corrected=eos_is_corrected), next_window, backend)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_advance_commits_what_verify_says(rule: str, one_hot: bool, backend: str) -> None:
    check_commits(rule, backend, one_hot=one_hot)


@pytest.mark.parametrize("rule", RULES)
def test_finished_rows_are_left_alone(rule: str, backend: str) -> None:
    """Their state may be anything: a length past the buffer, a window past the width, logits of NaN."""
    state, case = sequences(rule)
    done = torch.arange(240) % 3 == 0
    alone = copy_of(state)
    unfinished = advance(alone, case, backend)
    state.finished[done] = torch.tensor([Finished.STOP, Finished.LENGTH, Finished.ERROR], dtype=torch.int32).repeat(27)[
        :80
    ]
    state.committed[done] = LENGTH + 1000
    state.window[done] = 77
    state.status[done] = int(Status.DRAFT_INVALID)
    before = copy_of(state)
    target = case.target_logits.clone()
    target[done] = torch.nan
    out = advance(state, case.with_(target_logits=target), backend)
    assert_same_state(state, before, done)
    assert_same_state(state, alone, ~done)
    assert torch.equal(out.num_emitted, unfinished.num_emitted.masked_fill(done, 0))
    assert torch.equal(out.num_accepted, unfinished.num_accepted.masked_fill(done, 0))


@pytest.mark.parametrize(
    ("defect", "bit"), [(torch.nan, Status.TARGET_INVALID), (-torch.inf, Status.EMPTY_DISTRIBUTION)]
)
@pytest.mark.parametrize("rule", RULES)
def test_a_bad_target_row_commits_nothing_and_ends_the_row(rule: str, defect: float, bit: Status, backend: str) -> None:
    state, case = sequences(rule)
    state.status.fill_(int(Status.DRAFT_INVALID))
    alone, before = copy_of(state), copy_of(state)
    advance(alone, case, backend)
    bad = torch.arange(240) % 4 == 1
    target = case.target_logits.clone()
    target[bad, 0] = defect
    out = advance(state, case.with_(target_logits=target), backend, next_window=0)
    assert_same_state(state, alone, ~bad)
    assert torch.equal(state.tokens[bad], before.tokens[bad])
    assert torch.equal(state.committed[bad], before.committed[bad])
    assert not state.window[bad].any()
    assert (state.finished[bad] == Finished.ERROR).all()
    assert (state.status[bad] == int(bit | Status.DRAFT_INVALID)).all()
    assert not out.num_emitted[bad].any()
    assert not out.num_accepted[bad].any()


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_bad_draft_row_costs_speed_and_not_the_sequence(rule: str, backend: str) -> None:
    state, case = sequences(rule)
    assert case.draft_stats is not None
    case.draft_stats.lse[:, 0] = torch.nan
    own = pearl_kernels.sample(case.target_logits[:, 0], case.params, case.positions, backend=backend).tokens
    before = copy_of(state)
    out = advance(state, case, backend, next_window=3)
    sampled = case.params.temperature > 0
    assert (out.num_emitted[sampled] == 1).all()
    assert not out.num_accepted[sampled].any()
    assert torch.equal(state.tokens.gather(1, before.committed[:, None])[sampled, 0], own[sampled])
    assert (state.status[sampled] == Status.DRAFT_INVALID).all()
    assert not state.finished.any()


def test_only_the_corrected_token_is_written(backend: str) -> None:
    """Also where EOS cuts the chain before it."""
    stories = [Story(window, accepted, eos, 99) for window in range(WIDTH) for accepted in range(window + 1)
               for eos in (None, *range(accepted))]  # fmt: skip
    before, after, _ = run_stories(stories, 0, backend)
    changed = before.tokens != after.tokens
    rows = torch.arange(len(stories))
    corrected = before.committed + torch.tensor([story.accepted for story in stories])
    assert (changed.sum(1) == 1).all()
    assert changed[rows, corrected].all()


def test_any_of_several_eos_ids_ends_a_row(backend: str) -> None:
    ids = [[EOS, -1, -1], [-1, EOS, -1], [5, 8, EOS], [EOS, EOS, EOS], [5, -1, 8], [-1, -1, -1]]
    stories = [Story(3, 3, 1, 99)] * len(ids)
    _, after, out = run_stories(stories, 2, backend, eos_ids=torch.tensor(ids))
    assert after.finished.tolist() == [Finished.STOP] * 4 + [Finished.RUNNING] * 2
    assert out.num_emitted.tolist() == [2] * 4 + [4] * 2


def test_a_placeholder_is_never_taken_for_a_padded_eos_id(backend: str) -> None:
    rows = 3
    state, case = sequences("token", rows=rows)
    for b, i in itertools.product(range(rows), range(4)):
        state.tokens[b, state.committed[b] + i] = -1
    out = advance(state, case, backend)
    assert out.num_emitted.tolist() == [1] * rows
    assert not state.finished.any()
    assert (state.tokens.gather(1, state.committed[:, None] - 1) >= 0).all()


def test_rounds_end_every_sequence_at_its_own_length(backend: str) -> None:
    """Autoregressive decoding: chains of one placeholder, until every row has reached its max_len."""
    rows, length = 10, 14
    state = DecodeState(
        tokens=torch.full((rows, length), -1),
        committed=torch.ones(rows, dtype=torch.int64),
        window=torch.zeros(rows, dtype=torch.int32),
        max_len=torch.arange(rows) + 2,
        eos_ids=torch.full((rows, 1), -1),
        finished=torch.zeros(rows, dtype=torch.int32),
        status=torch.zeros(rows, dtype=torch.int32),
    )
    state.tokens[:, 0] = 0
    params = mixed_params(rows)
    logits = torch.randn(rows, 1, 12, generator=torch.Generator().manual_seed(0))
    for _ in range(12):
        pearl_kernels.advance_(state, logits, params, backend=backend)
    assert torch.equal(state.committed, state.max_len)
    assert (state.finished == Finished.LENGTH).all()
    emitted = torch.arange(length) < state.committed[:, None]
    assert torch.equal(state.tokens >= 0, emitted)
    step = torch.stack([
        pearl_kernels.sample(logits[:, 0], params, torch.full((rows,), position), backend=backend).tokens
        for position in range(1, length)
    ], dim=1)  # fmt: skip
    assert torch.equal(state.tokens[:, 1:][emitted[:, 1:]], step[emitted[:, 1:]])


def test_parameters_may_be_views(backend: str) -> None:
    state, case = sequences("token")
    twice = {name: value.repeat_interleave(2)[::2] for name, value in vars(case.params).items()}
    other = copy_of(state)
    advance(state, case, backend)
    advance(other, case.with_(params=SamplingTensors(**twice)), backend)
    assert_same_state(state, other)
