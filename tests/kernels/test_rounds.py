"""Whole rounds in one call, against the operations one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pearl_kernels import (
    DecodeState,
    Drafter,
    DraftRows,
    Finished,
    Linear,
    Purpose,
    RoundOutput,
    Rounds,
    RowStats,
    SamplingTensors,
    Window,
    advance_,
    draft_chain,
    runs_rounds,
    window_decoder,
)
from tests.kernels.levels import LEVELS, run_at
from tests.kernels.test_window_decoder import OUTPUTS, VOCAB, WindowCase, case_of, decoder_of, three_layers
from tests.kernels.test_window_layer import CAPACITY

COMMITTED = [9, 4, 20]
TEMPERATURES = {"greedy": [0.0] * 3, "sampled": [0.9, 1.4, 0.7], "mixed": [0.0, 1.0, 1.2]}
D2T = torch.cat([torch.arange(20), torch.arange(21, OUTPUTS)])


@dataclass
class Batch:
    """A batch with a target, and a draft whose logits are like the target's."""

    state: DecodeState
    params: SamplingTensors
    target: WindowCase
    draft: WindowCase
    rule: str
    options: dict[str, Any]

    def cloned(self) -> Batch:
        state = DecodeState(**{field.name: getattr(self.state, field.name).clone() for field in fields(self.state)})
        options = {key: value.clone() if key == "text" else value for key, value in self.options.items()}
        params = SamplingTensors(**{name: value.clone() for name, value in vars(self.params).items()})
        models = {"target": self.target.cloned(), "draft": self.draft.cloned()}
        return replace(self, state=state, params=params, options=options, **models)

    def rounds(self) -> Rounds:
        return Rounds(
            self.state, self.params, window(self.target), Drafter(window(self.draft), **self.options), rule=self.rule
        )

    def is_same(self, other: Batch) -> bool:
        pairs = [(getattr(self.state, field.name), getattr(other.state, field.name)) for field in fields(self.state)]
        for mine, theirs in ((self.target, other.target), (self.draft, other.draft)):
            pairs += [(mine.k_caches, theirs.k_caches), (mine.v_caches, theirs.v_caches)]
        pairs += [(value, other.options[key]) for key, value in self.options.items() if isinstance(value, Tensor)]
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def window(case: WindowCase) -> Window:
    return Window(**{field.name: getattr(case, field.name) for field in fields(WindowCase)})


def batch_of(
    rule: str, temperatures: list[float], max_len: int = 45, eos_ids: tuple[int, ...] = (-1,), **options: Any
) -> Batch:
    layers, committed = three_layers(), COMMITTED[: len(temperatures)]
    target = case_of(committed, 1, decoder_of(*layers, dtype=torch.bfloat16))
    draft = case_of(committed, 1, decoder_of(*layers[:2], dtype=torch.bfloat16))
    draft.weights.embedding, draft.weights.head = target.weights.embedding, target.weights.head
    zeros = torch.zeros(len(committed), dtype=torch.int32)
    state = DecodeState(
        tokens=torch.randint(VOCAB, (len(committed), CAPACITY + 1)),
        committed=torch.tensor(committed),
        window=zeros.clone(),
        max_len=torch.full((len(committed),), max_len),
        eos_ids=torch.tensor([eos_ids] * len(committed)),
        finished=zeros.clone(),
        status=zeros.clone(),
    )
    params = SamplingTensors.make(len(committed), temperature=temperatures, top_k=[0, 6, 0][: len(committed)], seed=5)
    return Batch(state, params, target, draft, rule, options)


def without(case: WindowCase) -> dict[str, Any]:
    return {field.name: getattr(case, field.name) for field in fields(WindowCase)[1:] if field.name != "seq_lens"}


def columns(first: Tensor, width: int) -> Tensor:
    return first[:, None] + torch.arange(width)


def one_by_one(batch: Batch, gamma: int, missed: int, guesses: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    state, options = batch.state, batch.options
    heads, given = state.committed.clone(), {}
    if guesses:
        drafted = torch.tensor([row or [-1] * gamma for row in guesses])
    elif gamma:
        drawn, logits = draft_chain(
            state.tokens.gather(1, columns(heads - missed, missed)), **without(batch.draft), seq_lens=heads - missed,
            params=batch.params, steps=gamma, epochs=None if "purpose" in options else heads, **options,
        )  # fmt: skip
        drafted = drawn.tokens.masked_fill(drawn.status != 0, -1)
        if batch.rule in ("token", "block") and batch.params.temperature.any():
            pad = torch.nn.functional.pad
            vocab = options.get("vocab", logits.shape[2])
            stats = RowStats(*(pad(each, (0, 1)) for each in drawn.stats))
            given = {"draft_logits": pad(logits, (0, 0, 0, 1))[..., :vocab], "draft_stats": stats}
            given["d2t"] = options.get("d2t")
    else:
        drafted = torch.empty(len(heads), 0, dtype=torch.int64)
    running, written = state.finished == Finished.RUNNING, state.tokens.scatter(1, columns(heads, gamma + 1), -1)
    written.scatter_(1, columns(heads, gamma), drafted)
    state.tokens[running] = written[running]
    state.window[running] = gamma
    inputs = state.tokens.gather(1, columns(heads - 1, gamma + 1)).clamp(min=0)
    logits = window_decoder(inputs, **without(batch.target), seq_lens=heads - 1, keep=gamma + 1)
    out = advance_(state, logits, batch.params, rule=batch.rule, **given)
    emitted = [row[a:b].tolist() for row, a, b in zip(state.tokens, heads, state.committed, strict=True)]
    return emitted, out.num_accepted.tolist()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


OPTIONS = {
    "plain": {},
    "fewer ids": {"vocab": 23},
    "d2t": {"d2t": D2T, "vocab": len(D2T)},
    "induction": {"text": torch.arange(CAPACITY + 1).repeat(3, 1) % 3, "strengths": torch.tensor([4.0, 9.0])},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("temperatures", TEMPERATURES.values(), ids=TEMPERATURES)
@pytest.mark.parametrize("rule", ["greedy", "token", "block", "coupled"])
def test_has_the_bits_of_the_operations_one_by_one(rule, temperatures, options):
    """Round after round, of any length, by the draft, by guesses, or by the target alone."""
    if rule == "coupled":
        options = options | {"purpose": Purpose.SAMPLE}
    batch = batch_of(rule, temperatures, **{k: v.clone() if k == "text" else v for k, v in options.items()})
    apart, rounds, accepted = batch.cloned(), batch.rounds(), 0
    guesses = [[1, 2, 3], [], [4, 5, 6]]
    for gamma, missed, given in [(3, 2, []), (0, 0, []), (2, 4, []), (3, 0, guesses), (5, 3, []), (1, 4, [])]:
        found = rounds.run(gamma, missed, given)
        assert (found.emitted, found.num_accepted) == one_by_one(apart, gamma, missed, given)
        assert batch.is_same(apart)
        assert found.draft_error is None
        assert 0 <= found.drafted_s <= found.begun_s < found.verified_s
        accepted += sum(found.num_accepted)
    assert accepted > 0


def pearl_one_by_one(batch: Batch, gamma: int, missed: int, chain: list[Tensor], *, failed: bool) -> tuple[Any, Any]:
    """chain: logits (batch, width, vocab), threshold and lse (batch, width) of the windows' tokens; written to"""
    state, options = batch.state, batch.options
    first, heads = state.committed.clone(), state.committed + state.window
    drawn, logits = draft_chain(
        state.tokens.gather(1, columns(heads - missed, missed)).clamp(min=0), **without(batch.draft),
        seq_lens=heads - missed, params=batch.params, steps=gamma, epochs=None if "purpose" in options else first,
        **options,
    )  # fmt: skip
    width = 1 + int(state.window.max())
    inputs = state.tokens.gather(1, columns(first - 1, width)).clamp(min=0)
    target = window_decoder(inputs, **without(batch.target), seq_lens=first - 1, keep=width)
    drafted = torch.full((len(first), 1), -1) if failed else drawn.tokens.masked_fill(drawn.status != 0, -1)
    running = state.finished == Finished.RUNNING
    state.tokens[running] = state.tokens.scatter(1, columns(heads, drafted.shape[1]), drafted)[running]
    news = (logits[..., : options.get("vocab")], *drawn.stats)
    for kept, new in zip(chain, news, strict=True):
        kept[torch.arange(len(first)), state.window.long()] = new[:, 0]
    given = {}
    if batch.rule in ("token", "block"):
        given = {"draft_logits": chain[0][:, :width], "draft_stats": RowStats(*(each[:, :width] for each in chain[1:]))}
        given["d2t"] = options.get("d2t")
    next_window = 0 if failed else gamma - 1
    out = advance_(state, target, batch.params, rule=batch.rule, next_window=next_window, **given)
    for kept, new in zip(chain, news, strict=True):
        kept[:, : gamma - 1] = new[:, 1:]
    emitted = [row[a:b].tolist() for row, a, b in zip(state.tokens, first, state.committed, strict=True)]
    return emitted, out.num_accepted.tolist()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("temperatures", TEMPERATURES.values(), ids=TEMPERATURES)
@pytest.mark.parametrize("rule", ["greedy", "token", "block", "coupled"])
def test_a_round_of_pearl_has_the_bits_of_the_operations_one_by_one(rule, temperatures, options):
    """Its draft on a thread of its own; windows differ, drafts fail, and rows end."""
    if rule == "coupled":
        options = options | {"purpose": Purpose.SAMPLE}
    batch = batch_of(rule, temperatures, **{k: v.clone() if k == "text" else v for k, v in options.items()})
    batch.state.max_len[1] = 9
    apart, rounds, windows, most = batch.cloned(), batch.rounds(), [], 4
    like = torch.zeros(3, most + 1, options.get("vocab", OUTPUTS))
    wanted_chain = [like, *(torch.zeros(like.shape[:2]) for _ in range(2))]
    chain = drafted = None
    if rule in ("token", "block"):
        chain, drafted = (DraftRows.empty(most + 2, torch.full((3, OUTPUTS), torch.nan)) for _ in range(2))
    with ThreadPoolExecutor(1) as lane:
        for gamma, failed in [(4, False), (4, False), (2, False), (3, False), (3, True), (4, False), (1, False)]:
            drafting = lane.submit(rounds.draft, gamma, 2, drafted)
            rounds.read_windows()
            drafting.result()
            found = rounds.commit(0 if failed else gamma, drafted, chain)
            assert found == pearl_one_by_one(apart, gamma, 2, wanted_chain, failed=failed)
            assert batch.is_same(apart)
            chain, drafted = drafted, chain
            windows += batch.state.window.tolist()
    assert {0, 3} <= set(windows)
    assert batch.state.finished[1] == Finished.LENGTH


@pytest.mark.parametrize("rule", ["token", "block", "greedy"])
def test_cuts_at_the_end(rule):
    batch = batch_of(rule, TEMPERATURES["mixed"], max_len=26, eos_ids=(3, 7, 11, 30, 35))
    apart, rounds = batch.cloned(), batch.rounds()
    for _ in range(12):
        found = rounds.run(4, 2)
        emitted, accepted = one_by_one(apart, 4, 2, [])
        assert (found.emitted, found.num_accepted) == (emitted, accepted)
        assert batch.is_same(apart)
    finished = set(batch.state.finished.tolist())
    assert finished <= {Finished.STOP, Finished.LENGTH}
    assert batch.state.committed.max() <= 26


def test_draft_rows_that_cannot_be_drawn_from_are_placeholders():
    batch = batch_of("token", TEMPERATURES["sampled"])
    batch.draft.weights.norm[:] = torch.nan
    apart, rounds = batch.cloned(), batch.rounds()
    for _ in range(3):
        found = rounds.run(3, 2)
        assert (found.emitted, found.num_accepted) == one_by_one(apart, 3, 2, [])
        assert found.num_accepted == [0, 0, 0]
        assert all(len(row) == 1 for row in found.emitted)


def test_a_target_that_says_nothing_ends_its_row():
    batch = batch_of("greedy", [0.0])
    batch.target.weights.norm[:] = torch.nan
    found = batch.rounds().run(2, 1)
    assert found.emitted == [[]]
    assert batch.state.finished.tolist() == [Finished.ERROR]


def test_a_draft_that_fails_costs_its_tokens_alone():
    """One whose logits no memory holds."""
    batch = batch_of("token", [1.0])
    apart = batch.cloned()
    drafter = Drafter(window(with_huge_head(batch.draft)), vocab=OUTPUTS)
    rounds = Rounds(batch.state, batch.params, window(batch.target), drafter, rule="token")
    found = rounds.run(2, 1)
    assert "alloc" in found.draft_error
    assert (found.emitted, found.num_accepted) == one_by_one(apart, 0, 0, [])
    assert torch.equal(batch.state.tokens, apart.state.tokens)


def with_huge_head(case: WindowCase) -> WindowCase:
    """With a head of 2^50 outputs, all of which are one in memory."""
    weights = copy(case.weights)
    weights.head = Linear(weights.head.weight[:1].expand(1 << 50, -1))
    return replace(case, weights=weights)


def test_weights_and_caches_are_those_of_the_beginning():
    batch = batch_of("greedy", [0.0, 0.0])
    apart, rounds = batch.cloned(), batch.rounds()
    kept = batch.target.weights.norm.clone()
    batch.target.weights.norm.data = torch.zeros_like(kept)
    found = rounds.run(2, 1)
    batch.target.weights.norm.data = kept
    assert (found.emitted, found.num_accepted) == one_by_one(apart, 2, 1, [])


def test_parameters_are_those_of_the_moment():
    batch = batch_of("token", TEMPERATURES["greedy"])
    apart, rounds = batch.cloned(), batch.rounds()
    for temperature in (0.0, 1.0):
        for each in (batch, apart):
            each.params.temperature.fill_(temperature)
        for _ in range(3):
            found = rounds.run(3, 2)
            assert (found.emitted, found.num_accepted) == one_by_one(apart, 3, 2, [])


def test_a_target_that_fails_leaves_the_state_as_it_was():
    batch = batch_of("greedy", TEMPERATURES["greedy"])
    rounds = replace(batch, target=with_huge_head(batch.target)).rounds()
    committed = batch.state.committed.clone()
    for _ in range(2):
        with pytest.raises(MemoryError):
            rounds.run(2, 1)
    assert torch.equal(batch.state.committed, committed)
    assert not batch.state.window.any()


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_this_processor_runs(level):
    program = """
import torch
from tests.kernels.test_rounds import batch_of, one_by_one
torch.manual_seed(0)
batch = batch_of("block", [0.8, 0.0, 1.1])
apart, rounds = batch.cloned(), batch.rounds()
for _ in range(3):
    found = rounds.run(3, 2)
    assert (found.emitted, found.num_accepted) == one_by_one(apart, 3, 2, [])
"""
    run_at(level, program)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": -1}, r"gamma must be at least 0 and leave room in caches of 50 positions and 51 tokens, got -1"),
        ({"gamma": 31, "missed": 1}, r"gamma must be .* got 31 after 20"),
        ({"gamma": 2}, r"missed must be from 1 to 4, with a draft, where that drafts, got 0"),
        ({"gamma": 2, "missed": 5}, r"missed must be from 1 to 4, .* got 5"),
        (
            {"gamma": 2, "guesses": [[1, 2]]},
            r"guesses must be gamma=2 tokens or none of each of batch=3 rows, got \[2\]",
        ),
        ({"gamma": 2, "guesses": [[1, 2], [], [1]]}, r"guesses must be .* got \[2, 0, 1\]"),
    ],
)
def test_a_mistake_is_named(arguments, message):
    rounds = batch_of("greedy", TEMPERATURES["greedy"]).rounds()
    with pytest.raises(ValueError, match="Rounds: " + message):
        rounds.run(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2, None), r"gamma must be from 1 to 31 past the longest row, got 0"),
        ((32, 2, None), r"gamma must be from 1 to 31 .* got 32"),
        ((3, 0, None), r"missed must be from 1 to 5, with a draft, got 0"),
        ((3, 6, None), r"missed must be from 1 to 5, .* got 6"),
        ((3, 2, DraftRows.empty(2, torch.zeros(3, OUTPUTS))), r"rows.logits must be \(slots=3, batch=3, outputs=41\)"),
        ((3, 2, DraftRows.empty(3, torch.zeros(3, 40))), r"rows.logits must be \(slots=3, batch=3, outputs=41\)"),
        (
            (2, 2, DraftRows(torch.zeros(2, OUTPUTS, 3).mT, torch.zeros(2, 3), torch.zeros(2, 3))),
            r"rows.logits must be contiguous, got strides \(123, 1, 3\)",
        ),
    ],
)
def test_a_mistake_of_a_draft_is_named(arguments, message):
    batch = batch_of("greedy", TEMPERATURES["greedy"])
    batch.state.window[1] = 1
    with pytest.raises(ValueError, match="Rounds: " + message):
        batch.rounds().draft(*arguments)


def test_a_mistake_of_a_commit_is_named():
    batch, rows = batch_of("token", TEMPERATURES["sampled"]), DraftRows.empty(3, torch.zeros(3, OUTPUTS))
    rounds = batch.rounds()
    rounds.draft(1, 1, rows)
    batch.state.window[1] = 2
    with pytest.raises(ValueError, match="Rounds: commit must follow read_windows of the same width=3, got 0"):
        rounds.commit(1, rows, rows)
    rounds.read_windows()
    for arguments, message in [
        ((2, rows, rows), "gamma must be 0, or 1 as was drafted, got 2"),
        ((1, rows, None), "drafted and chain must both be given or both be None"),
        ((1, rows, rows), r"chain.logits must be \(slots=4, batch=3, outputs=41\)"),
    ]:
        with pytest.raises(ValueError, match="Rounds: " + message):
            rounds.commit(*arguments)
    batch.state.window[1] = 40
    for part in (rounds.read_windows, lambda: rounds.commit(1, None, None)):
        with pytest.raises(ValueError, match=r"Rounds: state.window must be from 0 to 30, got \[0, 40, 0\]"):
            part()


def test_what_does_not_fit_a_batch_is_named():
    batch, other = batch_of("greedy", TEMPERATURES["greedy"]), batch_of("greedy", [0.0])
    target, draft = window(batch.target), window(batch.draft)
    with pytest.raises(ValueError, match=r"Rounds: draft must be of batch=3 rows, got 1"):
        Rounds(batch.state, batch.params, target, Drafter(window(other.draft)), rule="greedy")
    with pytest.raises(ValueError, match=r"Rounds: state.tokens must be \(batch=3, length=51\)"):
        Rounds(other.state, batch.params, target, None, rule="greedy")
    with pytest.raises(ValueError, match=r"Rounds: vocab must be from 1 to the head's 41 outputs, got 42"):
        Rounds(batch.state, batch.params, target, Drafter(draft, vocab=42), rule="greedy")
    with pytest.raises(ValueError, match=r"Rounds: d2t must be in \[0, 40\], got values from 1 to 41"):
        Rounds(batch.state, batch.params, target, Drafter(draft, d2t=1 + torch.arange(41)), rule="greedy")
    batch.target.weights.head = batch.target.weights.head._replace(outputs=40)
    with pytest.raises(ValueError, match=r"Rounds: draft must draw from at most the target's 40 ids, got 41"):
        Rounds(batch.state, batch.params, target, Drafter(draft), rule="greedy")
    with pytest.raises(ValueError, match=r"Rounds: rule must be one of"):
        Rounds(batch.state, batch.params, target, None, rule="best")
    batch.state.window[1] = 2
    with pytest.raises(ValueError, match=r"Rounds: state.window must be 0, got \[0, 2, 0\]"):
        Rounds(batch.state, batch.params, target, None, rule="greedy").run(0)


def test_a_row_without_a_token_is_named_by_every_part():
    batch = batch_of("greedy", TEMPERATURES["greedy"])
    rounds, batch.state.committed[1] = batch.rounds(), 0
    for part, arguments in ((rounds.run, (0,)), (rounds.draft, (2, 1, None)), (rounds.read_windows, ()),
                            (rounds.commit, (0, None, None))):  # fmt: skip
        with pytest.raises(ValueError, match=r"Rounds: state.committed must be at least 1, got \[9, 0, 20\]"):
            part(*arguments)


def test_a_batch_of_no_rows_is_refused():
    batch = batch_of("greedy", [])
    with pytest.raises(ValueError, match="Rounds: target must be of one row at least, got none"):
        batch.rounds()


def test_another_backend_may_be_forced(monkeypatch):
    assert runs_rounds()
    monkeypatch.setenv("PEARL_BACKEND", "reference")
    assert not runs_rounds()


def test_a_target_alone_needs_no_draft():
    batch = batch_of("greedy", [0.0])
    apart = batch.cloned()
    rounds = Rounds(batch.state, batch.params, window(batch.target), None, rule="greedy")
    found = rounds.run(0)
    assert isinstance(found, RoundOutput)
    assert (found.emitted, found.num_accepted) == one_by_one(apart, 0, 0, [])
