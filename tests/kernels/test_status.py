"""A bad row gets a status, never garbage, and no other row notices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import Purpose, RowStats, SamplingTensors, Status, VerifyOutput
from tests.kernels.cases import VerifyCase, mixed_params, peaked_logits, verify_case

ROWS, WIDTH, VOCAB = 96, 4, 40
BAD_ROWS = {
    "all NaN": Status.TARGET_INVALID,
    "one NaN": Status.TARGET_INVALID,
    "+inf": Status.TARGET_INVALID,
    "NaN and +inf": Status.TARGET_INVALID,
    "all -inf": Status.EMPTY_DISTRIBUTION,
}
RULES = ("greedy", "token", "block", "coupled")


def poisoned(row: Tensor, kind: str) -> Tensor:
    """The same logits with the given defect. (..., vocab)"""
    row = row.clone()
    match kind:
        case "all NaN":
            row[...] = torch.nan
        case "one NaN":
            row[..., -1] = torch.nan
        case "+inf":
            row[..., 5] = torch.inf
        case "NaN and +inf":
            row[..., 5] = torch.inf
            row[..., 6] = torch.nan
        case "all -inf":
            row[...] = -torch.inf
    return row


def case_of(rule: str, **kind: bool) -> VerifyCase:
    case = verify_case(ROWS, WIDTH, VOCAB, rule=rule, placeholders=False, seed=11, **kind)  # type: ignore[arg-type]
    return case.with_(chain_len=torch.full((ROWS,), WIDTH, dtype=torch.int32))


def assert_rows_equal(got: VerifyOutput, wanted: VerifyOutput, rows: Tensor) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a[rows], b[rows])


@pytest.mark.parametrize("kind", BAD_ROWS)
@pytest.mark.parametrize("vocab", [7, 1000, 49152])
def test_sample_of_a_bad_row_is_token_0_with_a_status(kind: str, vocab: int, backend: str) -> None:
    logits = peaked_logits((16, vocab), torch.Generator().manual_seed(0))
    params, positions = mixed_params(16), torch.arange(16)
    clean = pearl_kernels.sample(logits, params, positions, backend=backend)
    bad = torch.arange(16) % 3 == 1
    logits[bad] = poisoned(logits[bad], kind)
    out = pearl_kernels.sample(logits, params, positions, backend=backend)
    assert out.status.tolist() == [int(BAD_ROWS[kind]) if b else 0 for b in bad]
    assert torch.equal(out.tokens, clean.tokens.masked_fill(bad, 0))
    assert torch.equal(out.stats.threshold, clean.stats.threshold.masked_fill(bad, -torch.inf))
    assert torch.equal(out.stats.lse, clean.stats.lse.masked_fill(bad, 0.0))


@pytest.mark.parametrize("index", range(WIDTH))
@pytest.mark.parametrize("kind", BAD_ROWS)
@pytest.mark.parametrize("rule", RULES)
def test_a_bad_target_row_stops_the_rows_that_need_it(rule: str, kind: str, index: int, backend: str) -> None:
    case = case_of(rule)
    clean = case.run(backend)
    target = case.target_logits.clone()
    target[::2, index] = poisoned(target[::2, index], kind)
    out = case.with_(target_logits=target).run(backend)
    poisoned_row = torch.arange(ROWS) % 2 == 0
    block = (case.params.temperature > 0) & (rule == "block")
    needed = poisoned_row & ((clean.num_accepted >= index) | block)
    assert_rows_equal(out, clean, ~needed)
    assert (out.status[needed] == BAD_ROWS[kind]).all()
    assert (out.next_token[needed] == 0).all()
    assert torch.equal(out.num_accepted[needed], torch.where(block, 0, index)[needed].int())
    assert needed.any()


def draft_parts(case: VerifyCase) -> tuple[Tensor, RowStats]:
    """Copies of the draft's logits and statistics, to break."""
    assert case.draft_logits is not None
    assert case.draft_stats is not None
    return case.draft_logits.clone(), RowStats(*(column.clone() for column in case.draft_stats))


def draft_defects(case: VerifyCase, index: int) -> dict[str, VerifyCase]:
    """The case with every kind of bad draft row at `index`, by name."""
    values = {"NaN": torch.nan, "+inf": torch.inf, "-inf": -torch.inf}
    defects = {}
    for name, value in values.items():
        logits, stats = draft_parts(case)
        stats.lse[:, index] = value
        defects[f"lse is {name}"] = case.with_(draft_stats=stats)
        if value == -torch.inf:
            continue  # a token of probability 0, which is legal
        logits[:, index] = logits[:, index].scatter(1, case.draft_tokens[:, index, None], value)
        defects[f"logit of the token is {name}"] = case.with_(draft_logits=logits)
    for kind in BAD_ROWS:
        logits, _ = draft_parts(case)
        logits[:, index] = poisoned(logits[:, index], kind)
        defects[f"no statistics, row has {kind}"] = case.with_(draft_logits=logits, draft_stats=None)
    return defects


DEFECTS = tuple(draft_defects(case_of("token"), 0))


@pytest.mark.parametrize("index", range(WIDTH))
@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_bad_draft_row_ends_the_chain_as_a_placeholder_would(
    rule: str, defect: str, index: int, backend: str
) -> None:
    case = case_of(rule)
    cut = case.draft_tokens.clone()
    cut[:, index] = -1
    wanted = case.with_(draft_tokens=cut).run(backend)
    out = draft_defects(case, index)[defect].run(backend)
    sampled = case.params.temperature > 0
    reached = sampled & ((wanted.num_accepted == index) | (rule == "block"))
    assert_rows_equal(out, case.run(backend), ~sampled)  # greedy rows do not look at the draft's logits
    assert torch.equal(out.num_accepted[sampled], wanted.num_accepted[sampled])
    assert torch.equal(out.next_token[sampled], wanted.next_token[sampled])
    assert torch.equal(out.status, reached.int() * int(Status.DRAFT_INVALID))
    assert reached.any()


@pytest.mark.parametrize("rule", ["greedy", "coupled"])
def test_rules_without_draft_probabilities_do_not_look_at_them(rule: str, backend: str) -> None:
    case = case_of(rule)
    logits, stats = draft_parts(case)
    broken = case.with_(draft_logits=logits.fill_(torch.nan), draft_stats=stats)
    assert_rows_equal(broken.run(backend), case.run(backend), torch.arange(ROWS))


@pytest.mark.parametrize("kind", BAD_ROWS)
@pytest.mark.parametrize("rule", RULES)
def test_a_placeholder_on_a_bad_target_row_is_an_error(rule: str, kind: str, backend: str) -> None:
    case = case_of(rule)
    tokens = case.draft_tokens.clone()
    tokens[:, 0] = -1
    target = case.target_logits.clone()
    target[:, 0] = poisoned(target[:, 0], kind)
    out = case.with_(draft_tokens=tokens, target_logits=target).run(backend)
    assert (out.status == BAD_ROWS[kind]).all()
    assert out.num_accepted.tolist() == out.next_token.tolist() == [0] * ROWS


@pytest.mark.parametrize("rule", RULES)
def test_a_placeholder_hides_a_bad_draft_row(rule: str, backend: str) -> None:
    """Nothing was drafted there, so there is nothing to be invalid: plain decoding may pass unset statistics."""
    case = case_of(rule)
    tokens = case.draft_tokens.clone()
    tokens[:, 1] = VOCAB
    wanted = case.with_(draft_tokens=tokens).run(backend)
    _, stats = draft_parts(case)
    stats.lse[:, 1:] = torch.nan
    out = case.with_(draft_tokens=tokens, draft_stats=stats).run(backend)
    assert_rows_equal(out, wanted, torch.arange(ROWS))
    assert not out.status.any()


@pytest.mark.parametrize("rule", RULES)
def test_columns_past_chain_len_may_hold_anything(rule: str, backend: str) -> None:
    case = case_of(rule)
    chain_len = torch.arange(ROWS, dtype=torch.int32) % WIDTH + 1
    wanted = case.with_(chain_len=chain_len).run(backend)
    outside = torch.arange(WIDTH) >= chain_len[:, None]
    logits, stats = draft_parts(case)
    out = case.with_(
        chain_len=chain_len,
        target_logits=case.target_logits.masked_fill(outside[:, :, None], torch.nan),
        draft_logits=logits.masked_fill(outside[:, :, None], torch.inf),
        draft_tokens=case.draft_tokens.masked_fill(outside, 1 << 62),
        draft_stats=RowStats(*(column.masked_fill(outside, torch.nan) for column in stats)),
    ).run(backend)
    assert_rows_equal(out, wanted, torch.arange(ROWS))


def test_the_first_bad_row_of_a_block_gives_the_status(backend: str) -> None:
    case = case_of("block")
    target = case.target_logits.clone()
    target[:, 1] = -torch.inf
    target[:, 3] = torch.nan
    out = case.with_(target_logits=target).run(backend)
    assert (out.status[case.params.temperature > 0] == Status.EMPTY_DISTRIBUTION).all()


@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_any_mixture_of_defects_is_judged_as_the_reference_judges_it(rule: str, stats: bool, backend: str) -> None:
    rows = 4000
    case = verify_case(rows, WIDTH, 12, rule=rule, stats=stats, seed=12)
    generator = torch.Generator().manual_seed(0)
    dice = torch.rand(2, rows, WIDTH, generator=generator)
    target, draft = case.target_logits.clone(), case.draft_logits
    assert draft is not None
    for i, kind in enumerate(BAD_ROWS):
        hit = (dice >= 0.03 * i) & (dice < 0.03 * (i + 1))
        target[hit[0]] = poisoned(target[hit[0]], kind)
        draft[hit[1]] = poisoned(draft[hit[1]], kind)
    case = case.with_(target_logits=target, draft_logits=draft)
    got, wanted = case.run(backend), case.judged()
    for a, b in zip(got, wanted, strict=True):
        assert int((a != b).sum()) <= rows // 2000
    assert len(set(wanted.status.tolist())) == (3 if rule in ("greedy", "coupled") else 6)


def test_an_empty_batch_is_an_empty_answer(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    out = pearl_kernels.sample(torch.zeros(0, 9), SamplingTensors.make(0), none, purpose=Purpose.DRAFT, backend=backend)
    assert out.tokens.shape == (0,)
    verified = pearl_kernels.verify(
        torch.zeros(0, 2, 9), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int32),
        SamplingTensors.make(0), none, backend=backend,
    )  # fmt: skip
    assert verified.num_accepted.shape == (0,)
