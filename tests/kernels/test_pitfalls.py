"""What has gone wrong in other implementations, one test each."""

from __future__ import annotations

import pytest
import torch

import pearl_kernels
from pearl_kernels import Purpose, RowStats, SamplingTensors, Status, philox
from tests.kernels.cases import mixed_params, peaked_logits, verify_case

RULES = ("greedy", "token", "block", "coupled")

# Found by search: with these seeds the ACCEPT draw of position 5 and epoch 5 is the least and the greatest there is.
LEAST_SEED, GREATEST_SEED, POSITION = 358745, 4576706, 5


def one_row(
    target: list[float], draft: list[float] | None, seed: int, rule: str, backend: str, token: int = 0, **params: float
) -> pearl_kernels.VerifyOutput:
    """A chain of one token against one row of logits."""
    return pearl_kernels.verify(
        torch.tensor([[target]]), torch.tensor([[token]]), torch.ones(1, dtype=torch.int32),
        SamplingTensors.make(1, seed=seed, **params), torch.tensor([POSITION]),  # type: ignore[arg-type]
        draft_logits=None if draft is None else torch.tensor([[draft]]), rule=rule, backend=backend,
    )  # fmt: skip


def test_the_extreme_draws_are_what_the_seeds_promise() -> None:
    position = torch.tensor([POSITION, POSITION])
    u = philox.uniform(torch.tensor([LEAST_SEED, GREATEST_SEED]), position, Purpose.ACCEPT, position)
    assert u.tolist() == [2.0**-24, 1 - 2.0**-24]


@pytest.mark.parametrize("rule", ["token", "block"])
def test_the_least_draw_never_accepts_what_the_target_cannot_emit(rule: str, backend: str) -> None:
    for target in ([-torch.inf, 0.0, 0.0], [-200.0, 0.0, 0.0]):
        for draft in ([0.0, 0.0, 0.0], [-torch.inf, 0.0, 0.0], None):
            out = one_row(target, draft, LEAST_SEED, rule, backend)
            if target[0] == -200.0 and draft is not None and draft[0] == -torch.inf:
                continue  # a token the draft could not have proposed: nothing to hold it to
            assert int(out.num_accepted) == 0
            assert int(out.next_token) in (1, 2)


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize(
    ("seed", "target_prob", "accepted"),
    [
        (LEAST_SEED, 2.0**-24 * 1.001, 1),
        (LEAST_SEED, 2.0**-24 * 0.999, 0),
        (GREATEST_SEED, 1 - 1e-5, 0),
        (GREATEST_SEED, 1 - 1e-12, 1),
    ],
)
def test_extreme_draws_decide_exactly(seed: int, target_prob: float, accepted: int, rule: str, backend: str) -> None:
    odds = torch.tensor(target_prob, dtype=torch.float64).logit()
    assert int(one_row([float(odds), 0.0], None, seed, rule, backend).num_accepted) == accepted


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("vocab", [2, 33, 1000, 49152])
@pytest.mark.parametrize("stats", [False, True])
def test_a_draft_equal_to_the_target_is_accepted_by_the_greatest_draw(
    stats: bool, vocab: int, rule: str, backend: str
) -> None:
    logits = peaked_logits((6, 1, vocab), torch.Generator().manual_seed(vocab))
    params = SamplingTensors.make(
        6, seed=GREATEST_SEED, temperature=[1, 0.7, 1, 1, 1.3, 1], top_p=[1, 1, 0.9, 1, 0.5, 1]
    )
    positions = torch.full((6,), POSITION)
    drafted = pearl_kernels.sample(
        logits[:, 0], params, positions, purpose=Purpose.DRAFT, epochs=positions, backend=backend
    )
    out = pearl_kernels.verify(
        logits, drafted.tokens[:, None], torch.ones(6, dtype=torch.int32), params, positions,
        draft_logits=logits.clone(), draft_stats=RowStats(*(x[:, None] for x in drafted.stats)) if stats else None,
        rule=rule, backend=backend,
    )  # fmt: skip
    assert out.num_accepted.tolist() == [1] * 6


@pytest.mark.parametrize("temperature", [1e-38, 1e-39, 1e-45])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_a_temperature_whose_inverse_is_no_number_is_the_least_that_has_one(
    temperature: float, filters: dict[str, float], backend: str
) -> None:
    logits = torch.tensor([[0.0, -1.0, -2.0, -3.0]])
    params = SamplingTensors.make(1, temperature=temperature, **filters)  # type: ignore[arg-type]
    out = pearl_kernels.sample(logits, params, torch.tensor([POSITION]), backend=backend)
    assert (int(out.tokens), int(out.status), float(out.stats.lse)) == (0, 0, 0.0)
    for rule in ("token", "block", "coupled"):
        judged = one_row(logits[0].tolist(), None, 3, rule, backend, token=-1, temperature=temperature, **filters)
        assert [int(each) for each in judged] == [0, 0, 0], rule


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_token_the_draft_could_not_propose_is_accepted_if_the_target_may_emit_it(rule: str, backend: str) -> None:
    assert int(one_row([0.0, 1.0], [-torch.inf, 1.0], GREATEST_SEED, rule, backend).num_accepted) == 1
    refused = one_row([-torch.inf, 1.0], [-torch.inf, 1.0], LEAST_SEED, rule, backend)
    assert (int(refused.num_accepted), int(refused.next_token)) == (0, 1)


def test_block_is_not_mended_by_a_token_the_draft_could_not_propose(backend: str) -> None:
    """The first token has target probability 0, the second an infinite ratio: 0 * inf must not count as 1."""
    target = torch.tensor([[-torch.inf, 0.0], [0.0, 0.0]]).expand(50, -1, -1)
    draft = torch.tensor([[0.0, 0.0], [-torch.inf, 0.0]]).expand(50, -1, -1)
    out = pearl_kernels.verify(
        target, torch.zeros(50, 2, dtype=torch.int64), torch.full((50,), 2, dtype=torch.int32),
        SamplingTensors.make(50, seed=range(50)), torch.zeros(50, dtype=torch.int64), draft_logits=draft,
        rule="block", backend=backend,
    )  # fmt: skip
    assert out.num_accepted.tolist() == [0] * 50
    assert out.next_token.tolist() == [1] * 50


def test_block_counts_nothing_left_over_as_a_pass(backend: str) -> None:
    """Equal rows leave no mass and no doubt, 0/0: the tokens before a certain refusal stand."""
    rows, width = 200, 3
    logits = torch.tensor([0.3, 1.0, -torch.inf]).expand(rows, width, -1)
    tokens = torch.tensor([0, 1, 2]).expand(rows, -1)  # neither side can have the last one
    out = pearl_kernels.verify(
        logits, tokens, torch.full((rows,), width, dtype=torch.int32), SamplingTensors.make(rows, seed=range(rows)),
        torch.zeros(rows, dtype=torch.int64), draft_logits=logits.clone(), rule="block", backend=backend,
    )  # fmt: skip
    assert out.num_accepted.tolist() == [2] * rows
    assert set(out.next_token.tolist()) == {0, 1}


@pytest.mark.parametrize("rule", ["token", "block"])
def test_an_empty_residual_falls_back_to_the_target(rule: str, backend: str) -> None:
    """The draft's stated probabilities exceed the target's everywhere: only a refusal with no residual is left."""
    rows, logits = 2000, torch.tensor([0.5, 0.0, 1.0])
    stats = RowStats(torch.full((rows, 1), -torch.inf), (logits.logsumexp(0) - 1.0).expand(rows, 1))
    chain, length = torch.zeros(rows, 1, dtype=torch.int64), torch.ones(rows, dtype=torch.int32)
    params, positions = SamplingTensors.make(rows, seed=range(rows)), torch.full((rows,), POSITION)
    out = pearl_kernels.verify(
        logits.expand(rows, 1, -1), chain, length, params, positions,
        draft_logits=logits.expand(rows, 1, -1), draft_stats=stats, rule=rule, backend=backend,
    )  # fmt: skip
    own = pearl_kernels.sample(logits.expand(rows, -1), params, positions, purpose=Purpose.RESIDUAL, backend=backend)
    refused = out.num_accepted == 0
    assert 0.5 < refused.float().mean() < 0.75
    assert torch.equal(out.next_token[refused], own.tokens[refused])


@pytest.mark.parametrize("rule", ["token", "block"])
def test_the_drafts_statistics_are_those_it_sampled_with(rule: str, backend: str) -> None:
    case = verify_case(600, 3, 30, rule=rule, seed=1)
    for a, b in zip(case.run(backend), case.with_(draft_stats=None).run(backend), strict=True):
        assert int((a != b).sum()) <= 600 // 2000
    assert case.draft_stats is not None
    other = RowStats(case.draft_stats.threshold, case.draft_stats.lse + 0.5)
    assert not torch.equal(case.run(backend).num_accepted, case.with_(draft_stats=other).run(backend).num_accepted)


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-3}])
@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_parameters_hold_at_every_position(rule: str, filters: dict[str, float], backend: str) -> None:
    """Filters that leave one token make every rule greedy, at every position of the chain."""
    width, vocab = 5, 40
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(width, width, vocab, generator=generator).argsort(-1).float()
    best = target.argmax(-1)
    chain = best.clone()
    chain[range(width), range(width)] = (best.diagonal() + 1) % vocab  # row b is wrong at position b
    out = pearl_kernels.verify(
        target, chain, torch.full((width,), width, dtype=torch.int32),
        SamplingTensors.make(width, **filters),  # type: ignore[arg-type]
        torch.zeros(width, dtype=torch.int64), rule=rule, backend=backend,
    )  # fmt: skip
    assert out.num_accepted.tolist() == list(range(width))
    assert torch.equal(out.next_token, best.diagonal())


@pytest.mark.parametrize("rule", RULES)
def test_plain_decoding_is_a_chain_of_one_placeholder(rule: str, backend: str) -> None:
    rows = 300
    logits = peaked_logits((rows, 1, 80), torch.Generator().manual_seed(0))
    params, positions = mixed_params(rows), torch.arange(rows)
    for placeholder in (-1, 80, 1 << 40):
        out = pearl_kernels.verify(
            logits, torch.full((rows, 1), placeholder), torch.ones(rows, dtype=torch.int32), params, positions,
            rule=rule, backend=backend,
        )  # fmt: skip
        own = logits[:, 0].argmax(-1)
        if rule != "greedy":
            own = pearl_kernels.sample(logits[:, 0], params, positions, backend=backend).tokens
        assert torch.equal(out.next_token, own)
        assert not out.num_accepted.any()
        assert (out.status == Status.OK).all()


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_a_placeholder_at_the_end_draws_the_bonus_token(rule: str, backend: str) -> None:
    """Where all drafted tokens stand, the token after them is the one that plain decoding draws there."""
    case = verify_case(500, 3, 8, rule=rule, placeholders=False, seed=8)
    case.draft_tokens[:, 2] = -1
    case.chain_len.fill_(3)
    out = case.run(backend)
    stand = out.num_accepted == 2
    own = pearl_kernels.sample(case.target_logits[:, 2], case.params, case.positions + 2, backend=backend).tokens
    assert stand.sum() > 50
    assert torch.equal(out.next_token[stand], own[stand])


def test_a_token_outside_the_drafts_map_has_draft_probability_0(backend: str) -> None:
    """Drafted by someone else's hand: it is accepted wherever the target may emit it, and refused where it may not."""
    target = torch.zeros(2, 1, 6)
    target[1, 0, 4] = -torch.inf
    out = pearl_kernels.verify(
        target, torch.tensor([[4], [4]]), torch.ones(2, dtype=torch.int32), SamplingTensors.make(2, seed=GREATEST_SEED),
        torch.full((2,), POSITION), draft_logits=torch.zeros(2, 1, 3), d2t=torch.tensor([0, 2, 5]), backend=backend,
    )  # fmt: skip
    assert out.num_accepted.tolist() == [1, 0]
    assert int(out.next_token[1]) in (1, 3)  # the draft has 1/3 on each of 0, 2 and 5, the target 1/5
