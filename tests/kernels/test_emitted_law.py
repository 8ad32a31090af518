"""The emitted tokens have the target's law: chi-square on 100,000 sequences in one batched call."""

from __future__ import annotations

import functools

import pytest
import torch

import pearl_kernels
from tests.kernels import law_checks
from tests.kernels.law_checks import (
    check_chain,
    check_coupled_text,
    check_residual_after_draft,
    check_rounds,
    telling_chain,
)
from tests.kernels.laws import assert_law, counts_of
from tests.kernels.rounds import ROWS, Outcome, make_world, one_round

FILTERS: dict[str, dict[str, float]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "all": {"temperature": 1.4, "top_k": 6, "top_p": 0.9, "min_p": 0.05},
}
RULES = ("token", "block", "coupled")
ROWS_EMULATED = 20_000


@functools.cache
def outcome(rule: str, filters: str, backend: str) -> Outcome:
    emulated = backend == "cuda" and not torch.cuda.is_available()
    rows = ROWS_EMULATED if emulated else ROWS
    return one_round(rule, make_world(8, 1, **FILTERS[filters]), 3, backend, rows)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("rule", RULES)
def test_first_token_has_the_targets_law(rule: str, filters: str, backend: str) -> None:
    law_checks.check_first_token(outcome(rule, filters, backend))


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("rule", RULES)
def test_first_two_tokens_have_the_targets_joint_law(rule: str, filters: str, backend: str) -> None:
    law_checks.check_two_tokens(outcome(rule, filters, backend))


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_accepted_length_has_the_rules_law(rule: str, filters: str, backend: str) -> None:
    law_checks.check_lengths(outcome(rule, filters, backend))


@pytest.mark.parametrize("filters", FILTERS)
def test_block_accepts_no_fewer_than_token_on_average(filters: str, backend: str) -> None:
    mean = {rule: float(outcome(rule, filters, backend).num_accepted.float().mean()) for rule in ("token", "block")}
    assert mean["block"] > mean["token"]


@pytest.mark.parametrize("rule", RULES)
def test_first_token_has_the_targets_law_on_32_tokens(rule: str, backend: str) -> None:
    law_checks.check_first_token(one_round(rule, make_world(32, 2), 2, backend))


@pytest.mark.parametrize("filters", ["plain", "top_p"])
def test_residual_is_independent_of_the_drafts_noise(filters: str, backend: str) -> None:
    check_residual_after_draft(make_world(32, 3, noise=1.5, **FILTERS[filters]), backend)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("filters", ["plain", "all"])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_length_and_next_token_given_the_chain_have_the_rules_laws(
    rule: str, filters: str, one_hot: bool, backend: str
) -> None:
    for world_seed in (4, 5):
        world = make_world(12, world_seed, **FILTERS[filters])
        chain = telling_chain(rule, world, one_hot=one_hot)
        check_chain(rule, world, chain, backend, one_hot=one_hot)


@pytest.mark.parametrize("one_hot", [False, True])
def test_block_is_token_in_law_for_one_token_or_a_certain_draft(one_hot: bool, backend: str) -> None:
    world = make_world(16, 5)
    chain = telling_chain("token", world, 3 if one_hot else 1, one_hot=one_hot)
    outs = [law_checks.verify_one_chain(rule, world, chain, backend, one_hot=one_hot) for rule in ("token", "block")]
    token, block = (torch.bincount(out.num_accepted, minlength=len(chain) + 1).double() for out in outs)
    # Two samples of one law: the difference of the counts has twice the variance of either.
    z = (token - block) / (token + block).clamp(min=1).sqrt()
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("ahead", [False, True], ids=["redrafted", "drafted ahead"])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_three_tokens_over_several_rounds_have_the_targets_joint_law(rule: str, ahead: bool, backend: str) -> None:
    check_rounds(rule, backend, ahead=ahead)


def test_epochs_of_the_drafts_noise_are_needed_by_block_and_not_by_token(backend: str) -> None:
    """The accepted length of a block tells of the tokens drafted past it, hence of their noise: if that is used again
    the text is biased. This is also the proof that the check above has power."""
    check_rounds("token", backend, ahead=False, draft_epoch=lambda _: None)
    with pytest.raises(AssertionError, match="unlikely"):
        check_rounds("block", backend, ahead=False, draft_epoch=lambda _: None)


@pytest.mark.parametrize("filters", FILTERS)
def test_sampled_tokens_have_the_filtered_law(filters: str, backend: str) -> None:
    world = make_world(32, 8, **FILTERS[filters])
    out = pearl_kernels.sample(
        world.target[:1].expand(ROWS, -1), world.params(ROWS), torch.arange(ROWS), backend=backend
    )
    assert_law(counts_of(out.tokens, 32), world.target_law(()))


def test_consecutive_positions_draw_independently(backend: str) -> None:
    world = make_world(6, 9)
    logits, params = world.target[:1].expand(ROWS, -1), world.params(ROWS)
    pair = [
        pearl_kernels.sample(logits, params, torch.full((ROWS,), position), backend=backend).tokens
        for position in (3, 4)
    ]
    law = torch.tensor(world.target_law(()), dtype=torch.float64)
    assert_law(counts_of(torch.stack(pair, 1), 6), torch.outer(law, law).flatten())


@pytest.mark.parametrize("coupled_draft", [False, True])
def test_coupled_text_is_autoregressive_text_whatever_the_draft(coupled_draft: bool, backend: str) -> None:
    check_coupled_text(backend, coupled_draft=coupled_draft)
