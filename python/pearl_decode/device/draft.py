"""The draft's part of a static round: gamma steps, from a message to drafted tokens and their distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pearl_decode.cache import WindowCache
from pearl_decode.device.shape import Shape
from pearl_decode.models import CausalModel
from pearl_decode.padding import read_texts
from pearl_decode.state import PLACEHOLDER
from pearl_kernels import DraftChain, Purpose, RowStats, SampleOutput, SamplingTensors, sample

MOST_READ = 1 << 12  # tokens of prompts at once, with padding: enough for arithmetic to be the cost


@dataclass(frozen=True, eq=False)
class Drafted:
    """A round's drafts, in memory that every round writes again.

    tokens: (batch, gamma) int64, PLACEHOLDER where the draft gave nothing to sample from
    logits: (batch, width, draft_vocab), the rows they were drawn from; None where verification needs none
    stats:  RowStats of (batch, width)
    Columns past gamma are never looked at. All lies column by column, so that those up to gamma are one piece.
    """

    tokens: Tensor
    logits: Tensor | None
    stats: RowStats

    @classmethod
    def empty(cls, batch: int, shape: Shape, logits: Tensor | None, device: torch.device) -> Drafted:
        """logits: (batch, draft_vocab) like those to come"""
        floats = (torch.zeros(shape.width, batch, device=device).mT for _ in range(2))
        rows = None
        if logits is not None:
            rows = logits.new_zeros(shape.width, batch, logits.shape[1], device=device).transpose(0, 1)
        return cls(torch.zeros(shape.drafted, batch, dtype=torch.int64, device=device).mT, rows, RowStats(*floats))

    def put(self, step: int, tokens: Tensor, logits: Tensor, stats: RowStats) -> None:
        self.tokens[:, step] = tokens
        if self.logits is not None:
            self.logits[:, step] = logits
            self.stats.threshold[:, step] = stats.threshold
            self.stats.lse[:, step] = stats.lse

    def chain(self) -> DraftChain:
        """What `draft_chain` writes, in place of `put` for all steps: the columns up to gamma, and a status."""
        gamma, status = self.tokens.shape[1], torch.empty_like(self.tokens.mT, dtype=torch.int32).mT
        stats = RowStats(*(each[:, :gamma] for each in self.stats))
        logits = None if self.logits is None else self.logits[:, :gamma]
        return DraftChain(SampleOutput(self.tokens, stats, status), logits)

    def copy_(self, other: Drafted) -> None:
        """What another device drafted, without waiting for it: the tokens and, where verification needs them, their
        rows, in the draft's own type, with the statistics.
        """
        self.tokens.copy_(other.tokens, non_blocking=True)
        if self.logits is None or other.logits is None:
            return
        drafted = self.tokens.shape[1]
        self.logits[:, :drafted].copy_(other.logits[:, :drafted], non_blocking=True)
        # All of it, and so in one piece: other copies go by way of another stream where the devices see no peer.
        for mine, theirs in zip(self.stats, other.stats, strict=True):
            mine.copy_(theirs, non_blocking=True)


def message_width(shape: Shape) -> int:
    """Columns of the message (batch, columns) int64 a draft works from: committed, window, and the tokens to read."""
    return 2 + shape.reread


class StaticDraft:
    """A draft model and its cache of one batch, for rounds of any shape.

    params:       SamplingTensors on the draft's device
    vocab_size:   the target's; a draft padded beyond it never draws an id the target lacks
    coupled:      whether it draws with the noise of the target's own draws
    keeps_logits: whether verification will need the distributions
    """

    def __init__(
        self,
        model: CausalModel,
        params: SamplingTensors,
        capacity: int,
        vocab_size: int,
        *,
        coupled: bool,
        keeps_logits: bool,
    ) -> None:
        self.model = model
        self.params = params
        self.vocab_size = vocab_size
        self.purpose = Purpose.SAMPLE if coupled else Purpose.DRAFT
        self.keeps_logits = keeps_logits
        self.cache = WindowCache(capacity)

    def read(self, tokens: Tensor, start: int, lengths: Sequence[int]) -> None:
        """Cache tokens (batch, width) int64, those of every row from position `start` on. At least one token each.

        lengths: of the rows, up to which at least they are read

        To read a token again is harmless, and so is one past a row's head: its place is written before it is looked at.
        """
        if start:
            self.model.read(tokens, start, self.cache)
        else:
            read_texts(self.model, self.cache, tokens, lengths, range(len(tokens)), len(tokens), MOST_READ)

    def read_again(self, message: Tensor, shape: Shape, view: int) -> None:
        """Cache the tokens that a message for this shape brings; the arguments are those of `steps`."""
        starts = (message[:, 0] + message[:, 1] - shape.reread).clamp(min=0)
        self.model.forward_at(message[:, 2:], starts, self.cache, view, keep=shape.reread)

    def steps(self, message: Tensor, shape: Shape, view: int, drafted: Drafted | None) -> Drafted:
        """Draft past each row's window.

        message: as `message_width` says; view: cached positions looked at
        drafted: where to, as an earlier call of this shape returned it; None for the first
        """
        committed, window = message[:, 0], message[:, 1]
        head = committed + window
        # A position may be drafted again in a later round; its noise must then be new.
        epochs = None if self.purpose is Purpose.SAMPLE else committed
        inputs = message[:, 2:]
        starts = (head - shape.reread).clamp(min=0)
        if self._draws_at_once():
            # Less than there is to read where the head is nearer to the beginning.
            lengths = head - starts if shape.reread > 1 else None
            return self._draw_at_once(inputs, starts, lengths, epochs, drafted or self._room(shape, len(head)))
        for step in range(shape.drafted):
            rows = self.model.forward_at(inputs, starts, self.cache, view, keep=inputs.shape[1])
            # The row of the last token before the head: not the last one where the head is nearer to the beginning.
            last = (head + step - 1 - starts)[:, None, None].expand(-1, -1, rows.shape[2])
            logits = rows.gather(1, last).squeeze(1) if rows.shape[1] > 1 else rows[:, 0]
            if self.model.d2t is None:
                logits = logits[:, : self.vocab_size]
            tokens, stats, status = sample(logits, self.params, head + step, purpose=self.purpose, epochs=epochs)
            if self.model.d2t is not None:
                tokens = self.model.d2t[tokens]
            if drafted is None:
                kept = logits if self.keeps_logits else None
                drafted = Drafted.empty(len(head), shape, kept, logits.device)
            drafted.put(step, tokens.masked_fill(status != 0, PLACEHOLDER), logits, stats)
            inputs, starts = tokens[:, None], head + step
        assert drafted is not None, "a round without drafts asks for some"
        return drafted

    def _draws_at_once(self) -> bool:
        """Whether all steps are one call, which writes all columns of its logits."""
        all_drawn = self.model.d2t is not None or self.model.vocab_size <= self.vocab_size
        return all_drawn and self.model.runs_at_once(self.cache)

    def _room(self, shape: Shape, batch: int) -> Drafted:
        kept = self.model.empty_logits(batch) if self.keeps_logits else None
        return Drafted.empty(batch, shape, kept, self.model.device)

    def _draw_at_once(
        self, inputs: Tensor, starts: Tensor, lengths: Tensor | None, epochs: Tensor | None, drafted: Drafted
    ) -> Drafted:
        out, steps = drafted.chain(), drafted.tokens.shape[1]
        self.model.draft(
            inputs, starts, self.cache, self.params, steps, self.vocab_size, purpose=self.purpose, epochs=epochs,
            lengths=lengths, out=out,
        )  # fmt: skip
        drafted.tokens.masked_fill_(out.drawn.status != 0, PLACEHOLDER)
        return drafted


def copy_fields(into: Any, source: Any) -> None:
    """Write the tensors of a dataclass into those of another of its kind, maybe on another device, without waiting."""
    for f in fields(into):
        getattr(into, f.name).copy_(getattr(source, f.name), non_blocking=True)
