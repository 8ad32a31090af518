"""The draft's lane: it writes gamma tokens past the window while the target verifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pearl_decode.cache import WindowCache, starts_on
from pearl_decode.lanes.cpu import CpuLane
from pearl_decode.lanes.prefill import go_on, prefill
from pearl_decode.lanes.worker import Job
from pearl_decode.models import MOST_ROWS, CausalModel
from pearl_decode.past import Read
from pearl_decode.state import PLACEHOLDER, Batch
from pearl_kernels import DraftRows, Purpose, RowStats, SampleOutput, sample

# Draws of (batch, gamma), and step by step the logits (batch, draft_vocab) they were drawn from, where those are kept.
Drawn = tuple[SampleOutput, Sequence[torch.Tensor]]


@dataclass(frozen=True)
class ChainLogits:
    """What verification needs of the draft's distributions, chain position by chain position.

    rows: those of the token at committed + i are in slot 1 + i. Slot 0 is for a draft that writes all of them in a row,
    of which the first belongs to another chain
    """

    rows: DraftRows

    @classmethod
    def empty(cls, like: torch.Tensor, width: int) -> ChainLogits:
        """like: (batch, draft_vocab)"""
        return cls(DraftRows.empty(1 + width, like))

    def put(self, columns: list[int], logits: torch.Tensor, stats: RowStats) -> None:
        slots, batch = [1 + column for column in columns], list(range(len(columns)))
        for rows, new in zip(self.rows, (logits, *stats), strict=True):
            rows[slots, batch] = new

    def first(self, width: int) -> tuple[torch.Tensor, RowStats]:
        """Logits (batch, width, draft_vocab) and statistics of (batch, width)."""
        logits, *stats = (rows[1 : 1 + width].transpose(0, 1) for rows in self.rows)
        return logits, RowStats(*stats)

    def keep(self, index: torch.Tensor) -> ChainLogits:
        return ChainLogits(DraftRows(*(rows.index_select(1, index) for rows in self.rows)))


class DraftLane:
    """The draft model, its lane, its cache of one batch, and the distributions its tokens were drawn from.

    most_drafted: the most tokens a round may draft
    vocab_size: the target's; a draft padded beyond it never draws an id the target lacks
    purpose:    the noise drafts are drawn with: Purpose.SAMPLE couples them to the target's own draws
    keeps_logits: whether verification will need the distributions (not when greedy or coupled)

    Two sets of chain rows take turns. A round's first new token completes the chain being verified (`chain`), the
    others are the next chain's beginning (`ahead`), which `turn` brings forward.
    """

    def __init__(
        self,
        model: CausalModel,
        lane: CpuLane,
        batch: Batch,
        most_drafted: int,
        vocab_size: int,
        purpose: Purpose,
        keeps_logits: bool,
    ) -> None:
        self.model = model
        self.lane = lane
        self.batch = batch
        self.most_drafted = most_drafted
        self.vocab_size = vocab_size
        self.purpose = purpose
        self.keeps_logits = keeps_logits
        self.cache = WindowCache(batch.capacity)
        self.cached = [0] * len(batch.committed)  # positions of each row that hold the present tokens' keys
        self.chain: ChainLogits | None = None
        self.ahead: ChainLogits | None = None
        self.forwards = 0

    def go_on(self, read: Read, capacity: int) -> None:
        """Begin with what was read of the batch's only text before, in a cache of this capacity or more."""
        self.cache = WindowCache(capacity)
        self.cached = [go_on(self.model, self.lane, self.cache, self.batch, read)]

    def prefill(self) -> Job[None]:
        """Read the rows as far as they are committed."""
        start, self.cached = min(self.cached), [committed - 1 for committed in self.batch.committed]
        return self.lane.run(lambda: prefill(self.model, self.lane, self.cache, self.batch, start))

    def replace(self, rows: list[int]) -> None:
        """These rows of the batch are others now, of which nothing was read."""
        for row in rows:
            self.cached[row] = 0
        if not self.model.reads_lengths:
            self.lane.run(lambda: self.cache.clear(rows))

    @property
    def draws_all(self) -> bool:
        """Whether it draws from all columns that its model's head has."""
        return self.model.d2t is not None or self.model.vocab_size <= self.vocab_size

    @property
    def has_new(self) -> bool:
        """Whether nothing was read of some rows, while others were."""
        return any(self.cached) and not all(self.cached)

    def read_new(self) -> Job[None]:
        """Read those rows of which nothing was, as far as they are committed."""
        rows = [row for row, cached in enumerate(self.cached) if not cached]
        for row in rows:
            self.cached[row] = self.batch.committed[row] - 1
        return self.lane.run(lambda: prefill(self.model, self.lane, self.cache, self.batch, 0, rows))

    def write_ahead(self, gamma: int) -> Job[torch.Tensor]:
        """Draft gamma tokens (batch, gamma) past the window, the first of them for the present chain."""
        return self._draft(gamma, run_ahead=True)

    def write_chain(self, gamma: int) -> Job[torch.Tensor]:
        """Draft the whole chain (batch, gamma) that is to be verified next."""
        return self._draft(gamma, run_ahead=False)

    @property
    def missed(self) -> list[int]:
        """Per row, the tokens up to where the draft writes next that it has not read."""
        return [head - cached for head, cached in zip(self.batch.heads, self.cached, strict=True)]

    def settle(self) -> None:
        """After a commit: forget the cache of what was refused."""
        self.cached = [min(c, head - 1) for c, head in zip(self.cached, self.batch.heads, strict=True)]

    def chains(self, like: torch.Tensor) -> tuple[ChainLogits, ChainLogits]:
        """`chain` and `ahead`, made where they were not. like: (batch, draft_vocab)"""
        self.chain = self.chain or ChainLogits.empty(like, self.most_drafted + 1)
        self.ahead = self.ahead or ChainLogits.empty(like, self.most_drafted + 1)
        return self.chain, self.ahead

    def turn(self) -> None:
        """The tokens written ahead become the chain."""
        self.chain, self.ahead = self.ahead, self.chain

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(rows)
        self.cached = [self.cached[row] for row in rows]
        index = torch.tensor(rows, device=self.model.device)
        self.chain = self.chain.keep(index) if self.chain else None
        self.ahead = self.ahead.keep(index) if self.ahead else None

    def _draft(self, gamma: int, run_ahead: bool) -> Job[torch.Tensor]:
        heads, windows, reading = self.batch.heads, self.batch.window, []
        if self.has_new:
            reading.append(self.read_new())
        # One token per row as a rule; two after a round that ended in a token the draft never saw; all since it drafted
        # last where rounds went without it.
        width = max(self.missed)
        if width > min(MOST_ROWS, *heads):  # more than is read at once, or than another row has
            reading.append(self.prefill())
            width = max(windows) + 1
        inputs = self.batch.gather([head - width for head in heads], width)
        committed = self.batch.state.committed
        self.cached = [head + gamma - 1 for head in heads]

        def steps() -> torch.Tensor:
            # What comes between forwards would wake threads of torch, to be in the way of those of the kernels.
            for read in reading:
                read.result()  # it has ended, but may have failed
            with self.model.kernels_alone():
                return self._steps(inputs, committed, heads, windows, gamma, run_ahead)

        return self.lane.run(steps)

    def _steps(
        self,
        inputs: torch.Tensor,
        committed: torch.Tensor,
        heads: list[int],
        windows: list[int],
        gamma: int,
        run_ahead: bool,
    ) -> torch.Tensor:
        # A position may be drafted again in a later round; its noise must then be new.
        epochs = None if self.purpose is Purpose.SAMPLE else committed
        at_once = self.model.is_whole and self.model.runs_at_once(self.cache)
        draw = self._draw_at_once if at_once else self._draw
        drawn, rows = draw(inputs, heads, gamma, epochs)
        for step in range(gamma) if self.keeps_logits else ():
            logits, stats = rows[step], RowStats(*(each[:, step] for each in drawn.stats))
            if step == 0 or not run_ahead:
                self.chain = self.chain or ChainLogits.empty(logits, self.most_drafted + 1)
                self.chain.put([window + step for window in windows], logits, stats)
            else:
                self.ahead = self.ahead or ChainLogits.empty(logits, self.most_drafted + 1)
                self.ahead.put([step - 1] * len(windows), logits, stats)
        if not any(map(any, drawn.status.tolist())):
            return drawn.tokens
        return drawn.tokens.masked_fill(drawn.status != 0, PLACEHOLDER)

    def _draw_at_once(self, inputs: torch.Tensor, heads: list[int], gamma: int, epochs: torch.Tensor | None) -> Drawn:
        self.forwards += gamma
        starts = starts_on(inputs.device, [head - inputs.shape[1] for head in heads])
        with self.lane.forward(gamma):
            drawn, logits = self.model.draft(
                inputs, starts, self.cache, self.batch.params, gamma, self.vocab_size, purpose=self.purpose,
                epochs=epochs,
            )  # fmt: skip
        if not self.keeps_logits:
            return drawn, ()
        assert logits is not None, "new tensors have all"
        return drawn, self._columns(logits).unbind(1)

    def _draw(self, inputs: torch.Tensor, heads: list[int], gamma: int, epochs: torch.Tensor | None) -> Drawn:
        device = inputs.device
        positions = torch.tensor([[head + step for head in heads] for step in range(gamma)], device=device)
        outputs, rows = [], []
        for step, position in enumerate(positions.unbind()):
            self.forwards += 1
            with self.lane.forward():
                starts = [head + step - inputs.shape[1] for head in heads]
                logits = self._columns(self.model.forward(inputs, starts, self.cache, keep=1)[:, -1])
            tokens, stats, status = sample(logits, self.batch.params, position, purpose=self.purpose, epochs=epochs)
            if self.model.d2t is not None:
                tokens = self.model.d2t[tokens]
            inputs = tokens[:, None]
            outputs.append((tokens, *stats, status))
            rows.append(logits)
        tokens, threshold, lse, status = (torch.stack(column, dim=1) for column in zip(*outputs, strict=True))
        return SampleOutput(tokens, RowStats(threshold, lse), status), rows

    def _columns(self, logits: torch.Tensor) -> torch.Tensor:
        """Those of ids that the target has too."""
        return logits if self.model.d2t is not None else logits[..., : self.vocab_size]
