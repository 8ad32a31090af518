"""The laws a backend must keep, as functions of its name: the law tests call them, the mutation tests see them fail."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import NamedTuple

import torch

import pearl_kernels
from pearl_kernels import VerifyOutput
from tests.kernels import model
from tests.kernels.laws import assert_law, counts_of
from tests.kernels.rounds import ROWS, START, DraftEpoch, Outcome, World, decode, draft_chain, make_world


def check_first_token(outcome: Outcome) -> None:
    """The first emitted token has the target's law, whether it was drafted or corrected."""
    world = outcome.world
    assert_law(counts_of(outcome.first_two[:, 0], world.vocab), world.target_law(()), "first token")


def check_two_tokens(outcome: Outcome) -> None:
    """The first two emitted tokens have the target's joint law."""
    world = outcome.world
    wanted = model.joint(world.target_law, world.vocab, 2)
    cells = [wanted.get((a, b), 0.0) for a in range(world.vocab) for b in range(world.vocab)]
    assert_law(counts_of(outcome.first_two, world.vocab), cells, "tokens 1-2")


def check_lengths(outcome: Outcome) -> None:
    """The number of accepted tokens has the law that the rule gives exactly."""
    world = outcome.world
    law = model.length_law(outcome.rule, world.target_law, world.draft_law, world.vocab, outcome.width)
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
    law = model.next_law(world.target_law(()), world.draft_law(()), 1.0)
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


class Judged(NamedTuple):
    """What the model says of a chain: the laws of its rows, and its judgement."""

    target: list[model.Distribution]
    draft: list[model.Distribution]
    judgement: model.Judgement
    lengths: list[float]


def judge(rule: str, world: World, chain: tuple[int, ...], *, one_hot: bool) -> Judged:
    target = model.rows(world.target_law, chain, len(chain))
    draft = model.rows(world.draft_law, chain, len(chain))
    if one_hot:
        draft = [[float(v == x) for v in range(world.vocab)] for x in chain]
    judgement = model.JUDGES[rule](target, draft, chain)
    return Judged(target, draft, judgement, model.accepted_law(rule, judgement.pass_probs))


def telling_chain(rule: str, world: World, width: int = 3, *, one_hot: bool = False) -> tuple[int, ...]:
    """The chain under which every accepted length is as likely as can be, and in `block` its weight as small."""

    def score(chain: tuple[int, ...]) -> float:
        judged = judge(rule, world, chain, one_hot=one_hot)
        scaled = [1 - w if rule == "block" and n > 0 else 1.0 for n, w in enumerate(judged.judgement.weights)]
        return min(p * s for p, s in zip(judged.lengths[:width], scaled, strict=False))

    return max(itertools.product(range(world.vocab), repeat=width), key=score)


def check_chain(rule: str, world: World, chain: tuple[int, ...], backend: str, *, one_hot: bool = False) -> None:
    """Given the chain, the accepted length and the token after each length have exactly the rule's laws."""
    width = len(chain)
    out = verify_one_chain(rule, world, chain, backend, one_hot=one_hot)
    judged = judge(rule, world, chain, one_hot=one_hot)
    observed = torch.bincount(out.num_accepted, minlength=width + 1)
    assert_law(observed, judged.lengths, f"length given the chain, {rule}")
    for n in range(width):
        follow = model.next_law(judged.target[n], judged.draft[n], judged.judgement.weights[n])
        drawn = out.next_token[out.num_accepted == n]
        assert_law(counts_of(drawn, world.vocab), follow, f"token after {n} accepted, {rule}")


def check_coupled_text(backend: str, *, coupled_draft: bool, rows: int = 2000, width: int = 4) -> None:
    """What `coupled` emits is what plain decoding with the same seeds emits, token for token, whatever was drafted."""
    world = make_world(8, 10)
    params, positions = world.params(rows), torch.full((rows,), 3)
    last = torch.full_like(positions, START)
    if coupled_draft:
        chain = draft_chain(world, last, params, positions, width, backend).tokens
    else:
        chain = torch.randint(0, 8, (rows, width), generator=torch.Generator().manual_seed(0))
    before = torch.cat([last[:, None], chain[:, :-1]], dim=1)
    out = pearl_kernels.verify(
        world.target[before], chain, torch.full((rows,), width, dtype=torch.int32), params, positions,
        rule="coupled", backend=backend,
    )  # fmt: skip
    assert 0 < out.num_accepted.sum() < rows * width
    text = draft_chain(replace(world, draft=world.target), last, params, positions, width, backend).tokens
    emitted = torch.cat([chain, torch.zeros_like(chain[:, :1])], dim=1)
    emitted.scatter_(1, out.num_accepted.long()[:, None], out.next_token[:, None])
    agreed = torch.arange(width) <= out.num_accepted[:, None]
    assert torch.equal(emitted[:, :width][agreed], text[agreed]), "coupled text differs from plain decoding"


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
    wanted = list(model.joint(world.target_law, world.vocab, length).values())
    assert_law(counts_of(tokens, world.vocab), wanted, f"tokens 1-3, {rule}")
