"""How a round must end, told row by row on greedy chains whose outcome is chosen. Usable on any backend."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import AdvanceOutput, DecodeState, Finished, SamplingTensors
from tests.kernels.cases import VerifyCase, verify_case

WIDTH, VOCAB, START = 4, 10, 6
EOS = 9
LENGTH = 40


class Story(NamedTuple):
    """One sequence: what is drafted, what the target makes of it, and where it should end."""

    window: int
    accepted: int  # of the window + 1 tokens of the chain
    eos: int | None  # chain index of the EOS token, accepted or (at `accepted`) corrected
    limit: int  # max_len - committed


class Ending(NamedTuple):
    emitted: int
    accepted: int
    window: int
    finished: Finished


def told(story: Story, next_window: int) -> Ending:
    """What must come of a story, in the words of the docstring of `advance_`."""
    whole = story.accepted == story.window + 1
    emitted = story.accepted if whole else story.accepted + 1
    finished = Finished.RUNNING
    if emitted >= story.limit:
        emitted, finished = story.limit, Finished.LENGTH
    if story.eos is not None and story.eos < emitted:
        emitted, finished = story.eos + 1, Finished.STOP
    window = next_window if whole and finished == Finished.RUNNING else 0
    return Ending(emitted, min(story.accepted, emitted), window, finished)


def stories_of_every_ending(*, corrected: bool) -> list[Story]:
    """All windows, accepted lengths, places of EOS in the chain (as the corrected token too), and places of max_len."""
    return [
        Story(window, accepted, eos, limit)
        for window in range(WIDTH)
        for accepted in range(window + 2)
        for eos in (None, *range(accepted + (corrected and accepted <= window)))
        for limit in range(1, WIDTH + 2)
    ]


def run_stories(
    stories: list[Story], next_window: int, backend: str, eos_ids: Tensor | None = None
) -> tuple[DecodeState, DecodeState, AdvanceOutput]:
    """The states before and after. Chain index i holds token i + 1, and EOS where the story says."""
    rows = len(stories)
    best = (torch.arange(WIDTH) + 1).repeat(rows, 1)  # what the target would take
    for b, story in enumerate(stories):
        if story.eos is not None:
            best[b, story.eos] = EOS
    chain = best.clone()
    for b, story in enumerate(stories):
        if story.accepted <= story.window:
            chain[b, story.accepted] = 0  # refused; what follows would be right, and must not count
    tokens = torch.full((rows, START + WIDTH + 6), 7)
    tokens[:, START : START + WIDTH] = chain
    before = DecodeState(
        tokens=tokens,
        committed=torch.full((rows,), START),
        window=torch.tensor([story.window for story in stories], dtype=torch.int32),
        max_len=torch.tensor([START + story.limit for story in stories]),
        eos_ids=torch.tensor([[EOS]]).repeat(rows, 1) if eos_ids is None else eos_ids,
        finished=torch.zeros(rows, dtype=torch.int32),
        status=torch.zeros(rows, dtype=torch.int32),
    )
    after = DecodeState(*(getattr(before, f.name).clone() for f in fields(before)))
    logits = torch.nn.functional.one_hot(best, VOCAB).float()
    out = pearl_kernels.advance_(
        after, logits, SamplingTensors.make(rows, temperature=0.0), next_window=next_window, backend=backend
    )
    return before, after, out


def check_stories(stories: list[Story], next_window: int, backend: str) -> None:
    before, after, out = run_stories(stories, next_window, backend)
    got = zip(out.num_emitted, out.num_accepted, after.window, after.finished, strict=True)
    for story, ending in zip(stories, got, strict=True):
        wanted = told(story, next_window)
        assert tuple(int(x) for x in ending) == tuple(wanted), f"{story}: {ending}, not {wanted}"
    assert torch.equal(after.committed - before.committed, out.num_emitted.long())


class Sequences(NamedTuple):
    """A batch of states whose next chains are those of a VerifyCase."""

    state: DecodeState
    case: VerifyCase


def sequences(rule: str, *, one_hot: bool = False, rows: int = 240, seed: int = 0) -> Sequences:
    """Ragged windows at ragged positions, with nothing to end them."""
    case = verify_case(rows, 4, 50, rule=rule, one_hot=one_hot, placeholders=False, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    committed = torch.randint(1, LENGTH - 4, (rows,), generator=generator)
    tokens = torch.randint(0, 50, (rows, LENGTH), generator=generator)
    tokens.scatter_(1, committed[:, None] + torch.arange(4), case.draft_tokens)
    state = DecodeState(
        tokens=tokens,
        committed=committed,
        window=case.chain_len - 1,
        max_len=torch.full((rows,), LENGTH),
        eos_ids=torch.full((rows, 2), -1),
        finished=torch.zeros(rows, dtype=torch.int32),
        status=torch.zeros(rows, dtype=torch.int32),
    )
    return Sequences(state, case.with_(positions=committed.clone()))


def advance(
    state: DecodeState, case: VerifyCase, backend: str | None, next_window: int = 0
) -> pearl_kernels.AdvanceOutput:
    return pearl_kernels.advance_(
        state, case.target_logits, case.params, draft_logits=case.draft_logits, draft_stats=case.draft_stats,
        rule=case.rule, d2t=case.d2t, next_window=next_window, backend=backend,
    )  # fmt: skip


def copy_of(state: DecodeState) -> DecodeState:
    return DecodeState(*(getattr(state, f.name).clone() for f in fields(state)))


def assert_same_state(a: DecodeState, b: DecodeState, rows: Tensor | slice = slice(None)) -> None:
    for f in fields(a):
        assert torch.equal(getattr(a, f.name)[rows], getattr(b, f.name)[rows]), f.name


def check_commits(rule: str, backend: str, *, one_hot: bool) -> None:
    """A round commits `verify`'s outcome. Positions are the committed lengths before the call: reading them after their
    update would shift the noise."""
    state, case = sequences(rule, one_hot=one_hot)
    before = copy_of(state)
    verdict = case.run(backend)
    out = advance(state, case, backend, next_window=3)
    whole = verdict.num_accepted == case.chain_len
    emitted = torch.where(whole, verdict.num_accepted, verdict.num_accepted + 1)
    assert 0 < whole.sum() < len(whole)
    assert torch.equal(out.num_emitted, emitted)
    assert torch.equal(out.num_accepted, verdict.num_accepted)
    assert torch.equal(state.committed, before.committed + emitted)
    assert torch.equal(state.window, torch.where(whole, 3, 0).int())
    assert not state.finished.any()
    wanted = before.tokens
    for b in (~whole).nonzero().flatten().tolist():
        wanted[b, before.committed[b] + verdict.num_accepted[b]] = verdict.next_token[b]
    assert torch.equal(state.tokens, wanted)
