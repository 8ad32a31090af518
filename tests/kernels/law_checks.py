"""The laws a backend must keep, as functions of its name: the law tests call them, the mutation tests see them fail."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import SamplingTensors, VerifyOutput
from tests.kernels import model
from tests.kernels.laws import assert_law, counts_of
from tests.kernels.rounds import ROWS, START, DraftEpoch, Outcome, World, decode, draft_chain, make_world


def check_first_token(outcome: Outcome) -> None:
    """The first emitted token has the target's law, whether it was drafted or corrected."""
    world = outcome.world
    assert_law(counts_of(outcome.first_two[:, 0], world.vocab), world.law(world.target)(()), "first token")


def check_two_tokens(outcome: Outcome) -> None:
    """The first two emitted tokens have the target's joint law."""
    world = outcome.world
    wanted = model.joint(world.law(world.target), world.vocab, 2)
    cells = [wanted.get((a, b), 0.0) for a in range(world.vocab) for b in range(world.vocab)]
    assert_law(counts_of(outcome.first_two, world.vocab), cells, "tokens 1-2")


def check_lengths(outcome: Outcome) -> None:
    """The number of accepted tokens has the law that the rule gives exactly."""
    world = outcome.world
    law = model.length_law(outcome.rule, world.law(world.target), world.law(world.draft), world.vocab, outcome.width)
    assert_law(torch.bincount(outcome.num_accepted, minlength=outcome.width + 1), law, "accepted length")


def check_residual_after_draft(world: World, backend: str) -> None:
    """What replaces a refused token has the residual's law, the refused one having been drawn with the same seed.

    One row of logits for all sequences, so that the residual is one distribution of many tokens.
    """
    params, positions = world.params(ROWS), torch.full((ROWS,), 7)
    drafted = pearl_kernels.sample(
        world.draft[START].expand(ROWS, -1), params, positions, purpose=pearl_kernels.Purpose.DRAFT, backend=backend
    )
    out = pearl_kernels.verify(
        world.target[START].expand(ROWS, 1, -1), drafted.tokens[:, None], torch.ones(ROWS, dtype=torch.int32), params,
        positions, draft_logits=world.draft[START].expand(ROWS, 1, -1), backend=backend,
    )  # fmt: skip
    law = model.next_law(world.law(world.target)(()), world.law(world.draft)(()), 1.0)
    assert sum(p > 0 for p in law) >= 3, "a residual of one or two tokens hides shared noise"
    assert_law(counts_of(out.next_token[out.num_accepted == 0], world.vocab), law, "residual")


def verify_one_chain(rule: str, world: World, chain: tuple[int, ...], backend: str, *, one_hot: bool) -> VerifyOutput:
    """The same chain in every row, under different seeds."""
    width = len(chain)
    before = torch.tensor((START, *chain[:-1]))
    return pearl_kernels.verify(
        world.target[before].expand(ROWS, -1, -1), torch.tensor(chain).expand(ROWS, -1),
        torch.full((ROWS,), width, dtype=torch.int32), world.params(ROWS), torch.full((ROWS,), 11),
        draft_logits=None if one_hot else world.draft[before].expand(ROWS, -1, -1), rule=rule, backend=backend,
    )  # fmt: skip


def check_chain(rule: str, world: World, chain: tuple[int, ...], backend: str, *, one_hot: bool = False) -> None:
    """Given the chain, the accepted length and the token after each length have exactly the rule's laws."""
    width = len(chain)
    out = verify_one_chain(rule, world, chain, backend, one_hot=one_hot)
    target = model.rows(world.law(world.target), chain, width)
    draft = model.rows(world.law(world.draft), chain, width)
    if one_hot:
        draft = [[float(v == x) for v in range(world.vocab)] for x in chain]
    judged = model.JUDGES[rule](target, draft, chain)
    law = model.accepted_law(rule, judged.pass_probs)
    assert_law(torch.bincount(out.num_accepted, minlength=width + 1), law, f"length given the chain, {rule}")
    for n in range(width):
        drawn = out.next_token[out.num_accepted == n]
        if len(drawn) > 1000:
            follow = model.next_law(target[n], draft[n], judged.weights[n])
            assert_law(counts_of(drawn, world.vocab), follow, f"token after {n} accepted, {rule}")


def coupled_draft(world: World, params: SamplingTensors, positions: Tensor, width: int, backend: str) -> Tensor:
    """A chain drafted with the noise the target will use. (rows, width)"""
    last = torch.full_like(positions, START)
    return draft_chain(world, last, params, positions, width, backend).tokens


@functools.cache
def rounds_world() -> World:
    """A target and a draft far enough apart for many refusals, small enough for a joint law of three tokens."""
    return make_world(3, 2, noise=1.5)


def check_rounds(
    rule: str, backend: str, *, ahead: bool, draft_epoch: DraftEpoch = lambda committed: committed
) -> None:
    """Over several rounds, with redrafting at positions drafted before, the first three tokens are jointly the
    target's."""
    world, length = rounds_world(), 3
    tokens = decode(rule, world, 3, length, backend, ahead=ahead, draft_epoch=draft_epoch)
    wanted = list(model.joint(world.law(world.target), world.vocab, length).values())
    assert_law(counts_of(tokens, world.vocab), wanted, f"tokens 1-3, {rule}")
