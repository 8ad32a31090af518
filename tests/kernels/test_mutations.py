"""The tests can fail: each way of breaking the reference, seen by the check that should see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pearl_kernels.advance.reference as advance_reference
from pearl_kernels import Purpose
from pearl_kernels.philox import gumbel_row, uniform
from tests.kernels import law_checks
from tests.kernels.advance_checks import check_commits, check_stories, stories_of_every_ending
from tests.kernels.rounds import make_world, one_round
from tests.kernels.vocabulary_checks import check_last_token_is_drawn, check_last_token_is_residual

# `import pearl_kernels.sample.reference` would look on the door `pearl_kernels.sample`, a function.
from pearl_kernels.sample import reference as sample_reference  # isort: skip
from pearl_kernels.verify import reference as verify_reference  # isort: skip

Mutation = Callable[[pytest.MonkeyPatch], None]


def replacing(module: Any, name: str, broken: Callable[..., Any]) -> Mutation:
    """A mutation that puts `broken(original, *arguments)` in place of module.name."""
    original = getattr(module, name)
    return lambda patch: patch.setattr(module, name, lambda *args, **kw: broken(original, *args, **kw))


def residual_shares_the_drafts_noise(patch: pytest.MonkeyPatch) -> None:
    def shared(seed: Tensor, position: Tensor, purpose: Tensor, *rest: Any) -> Tensor:
        return gumbel_row(seed, position, torch.full_like(purpose, int(Purpose.DRAFT)), *rest)

    patch.setattr(verify_reference, "gumbel_row", shared)


def epoch_is_always_0(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify_reference, "uniform", lambda seed, position, purpose, _: uniform(seed, position, purpose, 0))


def one_draw_for_the_whole_chain(original: Any, *args: Any) -> Any:
    return original(*args)[:, :1].expand_as(args[2])


def without_dividing_by_the_draft(_: Any, u: Tensor, target_prob: Tensor, draft_prob: Tensor) -> Tensor:
    return u < target_prob


def block_without_dividing_by_the_draft(judge: Any, u: Tensor, target: Any, draft: Any, chain: Any) -> Any:
    return judge(u, target, verify_reference.one_hot_model(chain.ids, target), chain)


def unscaled_residual(original: Any, target: Any, draft: Any, row: Tensor, scale: Tensor) -> Any:
    return original(target, draft, row, torch.ones_like(scale))


def whole_target(original: Any, target: Any, draft: Any, row: Tensor, scale: Tensor) -> Any:
    return target.probs(row)


def coupled_with_other_noise(original: Any, target: Any, seed: Tensor, positions: Tensor) -> Any:
    return original(target, seed + 1, positions)


def last_tile_skipped(original: Any, logits: Tensor, *args: Any, **kw: Any) -> Any:
    """The tail of a vocabulary that is no multiple of 16 is never looked at."""
    whole = max(logits.shape[1] // 16 * 16, 1)
    return original(torch.cat([logits[:, :whole], torch.full_like(logits[:, whole:], -torch.inf)], 1), *args, **kw)


def chain_one_longer(original: Any, target: Tensor, tokens: Tensor, chain_len: Tensor, *args: Any, **kw: Any) -> None:
    original(target, tokens, (chain_len + 1).clamp(max=target.shape[1]), *args, **kw)


def chain_one_shorter(original: Any, target: Tensor, tokens: Tensor, chain_len: Tensor, *args: Any, **kw: Any) -> None:
    original(target, tokens, (chain_len - 1).clamp(min=1), *args, **kw)


def positions_read_late(original: Any, *args: Any, **kw: Any) -> None:
    before, (positions, *after) = args[:8], args[8:]
    original(*before, positions + 1, *after, **kw)


def end_seen_in_accepted_tokens_only(
    original: Any, chain: Tensor, committed: Tensor, gained: Tensor, *rest: Any
) -> Any:
    offsets = torch.arange(chain.shape[1])
    return original(chain.masked_fill(offsets >= (gained - 1)[:, None], 0), committed, gained, *rest)


def length_not_cut(
    original: Any, chain: Tensor, committed: Tensor, gained: Tensor, max_len: Tensor, eos: Tensor
) -> Any:
    return original(chain, committed, gained, max_len + 1, eos)


def first_two(rule: str) -> Callable[[], None]:
    return lambda: law_checks.check_two_tokens(one_round(rule, make_world(8, 1), 3, "reference"))


def lengths(rule: str) -> Callable[[], None]:
    return lambda: law_checks.check_lengths(one_round(rule, make_world(8, 1), 3, "reference"))


def chain_law(rule: str, *, one_hot: bool = False) -> Callable[[], None]:
    world = make_world(12, 4)
    chain = law_checks.telling_chain(rule, world, one_hot=one_hot)
    return lambda: law_checks.check_chain(rule, world, chain, "reference", one_hot=one_hot)


def endings() -> None:
    check_stories(stories_of_every_ending(corrected=True), 3, "reference")


MUTATIONS: list[tuple[str, Mutation, Callable[[], None]]] = [
    (
        "residual reuses the draft's noise",
        residual_shares_the_drafts_noise,
        lambda: law_checks.check_residual_after_draft(make_world(32, 3, noise=1.5), "reference"),
    ),
    (
        "token: u reused along the chain",
        replacing(verify_reference, "accept_draws", one_draw_for_the_whole_chain),
        first_two("token"),
    ),
    (
        "block: u reused along the chain",
        replacing(verify_reference, "accept_draws", one_draw_for_the_whole_chain),
        lengths("block"),
    ),
    ("token: 1/q dropped", replacing(verify_reference, "accepts", without_dividing_by_the_draft), first_two("token")),
    (
        "block: 1/q dropped",
        replacing(verify_reference, "judge_block", block_without_dividing_by_the_draft),
        first_two("block"),
    ),
    ("block: residual not scaled", replacing(verify_reference, "residual", unscaled_residual), chain_law("block")),
    ("token: target for residual", replacing(verify_reference, "residual", whole_target), chain_law("token")),
    (
        "one-hot: refused token drawn again",
        replacing(verify_reference, "residual", whole_target),
        chain_law("token", one_hot=True),
    ),
    (
        "block: epoch always 0",
        epoch_is_always_0,
        lambda: law_checks.check_rounds("block", "reference", ahead=True),
    ),
    (
        "coupled: noise of another seed",
        replacing(verify_reference, "coupled_draws", coupled_with_other_noise),
        lambda: law_checks.check_coupled_text("reference", coupled_draft=True),
    ),
    (
        "sample: last tile skipped",
        replacing(sample_reference, "log_weights", last_tile_skipped),
        lambda: check_last_token_is_drawn(1000, "reference"),
    ),
    (
        "sample: last tile left out of the sum",
        replacing(sample_reference, "describe_rows", last_tile_skipped),
        lambda: check_last_token_is_drawn(1000, "reference"),
    ),
    (
        "verify: last tile skipped",
        replacing(verify_reference, "log_weights", last_tile_skipped),
        lambda: check_last_token_is_residual("block", 1000, "reference"),
    ),
    ("advance_: chain one longer", replacing(advance_reference, "verify_out", chain_one_longer), endings),
    ("advance_: chain one shorter", replacing(advance_reference, "verify_out", chain_one_shorter), endings),
    (
        "advance_: lengths read late",
        replacing(advance_reference, "verify_out", positions_read_late),
        lambda: check_commits("token", "reference", one_hot=False),
    ),
    (
        "advance_: EOS seen in accepted tokens only",
        replacing(advance_reference, "_cut", end_seen_in_accepted_tokens_only),
        endings,
    ),
    ("advance_: max_len missed by one", replacing(advance_reference, "_cut", length_not_cut), endings),
]


@pytest.mark.parametrize(("mutation", "check"), [row[1:] for row in MUTATIONS], ids=[row[0] for row in MUTATIONS])
def test_no_mutation_survives(mutation: Mutation, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_token_does_not_need_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it looks at is decided for good, so its draws are never wanted again: the check above sees block's bias."""
    epoch_is_always_0(monkeypatch)
    law_checks.check_rounds("token", "reference", ahead=True)
