"""Rounds of drafting and verification on tiny Markov models, many sequences at once, each with its own seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import DecodeState, Finished, Purpose, RowStats, SamplingTensors
from tests.kernels.model import Conditional, filtered

ROWS = 100_000
START = 0  # the token every sequence begins with


@dataclass(frozen=True, eq=False)
class World:
    """A target and a draft whose next token depends on the last one, and how both are sampled."""

    target: Tensor  # (vocab, vocab) logits of the next token by the last
    draft: Tensor  # (vocab, vocab)
    filters: dict[str, float] = field(default_factory=dict)  # arguments of SamplingTensors.make

    @property
    def vocab(self) -> int:
        return len(self.target)

    def params(self, rows: int, first_seed: int = 0) -> SamplingTensors:
        every = SamplingTensors.make(rows, **self.filters)  # type: ignore[arg-type]
        seeds = torch.arange(first_seed, first_seed + rows)
        return SamplingTensors(every.temperature, every.top_k, every.top_p, every.min_p, seeds)

    @cached_property
    def target_law(self) -> Conditional:
        """The filtered law of the target's next token after any prefix."""
        return self._law(self.target)

    @cached_property
    def draft_law(self) -> Conditional:
        return self._law(self.draft)

    def _law(self, table: Tensor) -> Conditional:
        rows = [filtered(row, **self.filters) for row in table.double().tolist()]  # type: ignore[arg-type]
        return lambda prefix: rows[prefix[-1] if prefix else START]


def make_world(vocab: int, seed: int, *, noise: float = 1.0, **filters: float) -> World:
    """noise: how far the draft's logits are from the target's."""
    generator = torch.Generator().manual_seed(seed)
    target = 1.2 * torch.randn(vocab, vocab, generator=generator)
    return World(target, target + noise * torch.randn(vocab, vocab, generator=generator), filters)


class Drafted(NamedTuple):
    tokens: Tensor  # (rows, width)
    logits: Tensor  # (rows, width, vocab)
    stats: RowStats


def draft_chain(
    world: World, last: Tensor, params: SamplingTensors, positions: Tensor, width: int, backend: str, **noise: object
) -> Drafted:
    """Draw `width` tokens after `last` from the draft. noise: purpose and epochs of `sample`."""
    tokens, logits, stats = [], [], []
    for i in range(width):
        logits.append(world.draft[last])
        out = pearl_kernels.sample(logits[-1], params, positions + i, backend=backend, **noise)  # type: ignore[arg-type]
        last = out.tokens
        tokens.append(last)
        stats.append(out.stats)
    columns = RowStats(*(torch.stack(column, dim=1) for column in zip(*stats, strict=True)))
    return Drafted(torch.stack(tokens, 1), torch.stack(logits, 1), columns)


class Outcome(NamedTuple):
    """What one round did to every sequence."""

    num_accepted: Tensor  # (rows,)
    first_two: Tensor  # (rows, 2); where the round emitted one token, the second is the target's own
    world: World
    width: int
    rule: str


def one_round(rule: str, world: World, width: int, backend: str, rows: int = ROWS) -> Outcome:
    """Draft and verify one chain per sequence, from START."""
    params, positions = world.params(rows), torch.full((rows,), 5)
    last = torch.full((rows,), START)
    noise = {"purpose": Purpose.SAMPLE} if rule == "coupled" else {"purpose": Purpose.DRAFT, "epochs": positions}
    drafted = draft_chain(world, last, params, positions, width, backend, **noise)
    before = torch.cat([last[:, None], drafted.tokens[:, :-1]], dim=1)
    out = pearl_kernels.verify(
        world.target[before], drafted.tokens, torch.full((rows,), width, dtype=torch.int32), params, positions,
        draft_logits=drafted.logits, draft_stats=drafted.stats, rule=rule, backend=backend,
    )  # fmt: skip
    assert not out.status.any()
    emitted = torch.cat([drafted.tokens, torch.full((rows, 2), -1)], dim=1)
    refused = out.num_accepted < width
    column = out.num_accepted.long()[:, None]
    emitted.scatter_(1, column, torch.where(refused, out.next_token, -1)[:, None])
    own = pearl_kernels.sample(world.target[emitted[:, 0]], params, positions + 1, backend=backend).tokens
    second = torch.where(out.num_accepted + refused.int() >= 2, emitted[:, 1], own)
    return Outcome(out.num_accepted, torch.stack([emitted[:, 0], second], 1), world, width, rule)


DraftEpoch = Callable[[Tensor], Tensor | None]


def decode(
    rule: str,
    world: World,
    gamma: int,
    length: int,
    backend: str,
    *,
    ahead: bool,
    draft_epoch: DraftEpoch = lambda committed: committed,
    rows: int = ROWS,
) -> Tensor:
    """Emit `length` tokens after START in as many rounds as it takes, by `advance_`. Returns (rows, length).

    ahead:       the draft runs during verification, so that accepted chains are followed by a window (PEARL);
                 else every round drafts gamma tokens afresh
    draft_epoch: the epoch of the draft's noise, from the committed length
    """
    params = world.params(rows)
    state = DecodeState(
        tokens=torch.full((rows, length + 2 * gamma + 2), START),
        committed=torch.ones(rows, dtype=torch.int64),
        window=torch.zeros(rows, dtype=torch.int32),
        max_len=torch.full((rows,), length + 1),
        eos_ids=torch.full((rows, 1), -1),
        finished=torch.zeros(rows, dtype=torch.int32),
        status=torch.zeros(rows, dtype=torch.int32),
    )
    offsets = torch.arange(gamma)
    while bool((state.finished == Finished.RUNNING).any()):
        _draft_ahead(world, state, params, gamma, draft_epoch(state.committed), backend)
        if not ahead:
            state.window.fill_(gamma - 1)
        before = state.tokens.gather(1, state.committed[:, None] - 1 + offsets)
        pearl_kernels.advance_(
            state, world.target[before], params, draft_logits=world.draft[before], rule=rule,
            next_window=gamma - 1 if ahead else 0, backend=backend,
        )  # fmt: skip
    assert (state.finished == Finished.LENGTH).all()
    return state.tokens[:, 1 : length + 1]


def _draft_ahead(
    world: World, state: DecodeState, params: SamplingTensors, gamma: int, epochs: Tensor | None, backend: str
) -> None:
    """Write gamma drafted tokens after each window."""
    first = state.committed + state.window
    last = state.tokens.gather(1, first[:, None] - 1).squeeze(1)
    drafted = draft_chain(world, last, params, first, gamma, backend, purpose=Purpose.DRAFT, epochs=epochs)
    state.tokens.scatter_(1, first[:, None] + torch.arange(gamma), drafted.tokens)
