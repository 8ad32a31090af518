"""One static round of a shape, as work for two lanes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pearl_decode.cache import WindowCache
from pearl_decode.device.draft import Drafted, StaticDraft, message_width
from pearl_decode.device.shape import Shape
from pearl_decode.lanes.queue import DeviceLane, Event
from pearl_decode.lookup import look_up
from pearl_decode.models import CausalModel
from pearl_decode.state import PLACEHOLDER
from pearl_kernels import DecodeState, Finished, SamplingTensors, advance_

LOGGER = logging.getLogger(__name__)
FACTS = 5  # columns of a report before the ids: tokens emitted, drafted ones among them, drafted ones, Finished, Status
Work = Callable[[], None]


@dataclass(eq=False)
class StaticBatch:
    """What rounds of all shapes share.

    state, params: of the sequences, on the target's device
    cache:         the target's, of at least the length of state.tokens
    draft:         None where there is none, or from when on it failed
    lanes:         target and draft lane
    d2t:           the draft's, on the target's device
    lacks_graphs:  whether there was too little memory for one, which may be there the next time
    """

    state: DecodeState
    params: SamplingTensors
    target: CausalModel
    cache: WindowCache
    draft: StaticDraft | None
    lanes: tuple[DeviceLane, DeviceLane]
    rule: str
    d2t: Tensor | None = None
    lacks_graphs: bool = False

    @property
    def apart(self) -> bool:
        """Whether the two models are on different devices: what one lane tells the other is then copied there."""
        return self.lanes[0].device != self.lanes[1].device


def firsts_of(batch: StaticBatch) -> int:
    """`StaticRound.firsts` of one that was never played."""
    return 1 + any(lane.can_capture for lane in batch.lanes)


class StaticRound:
    """The tensors of one shape, and what a round does with them. Nothing is read on the host.

    message: (batch, 2 + tokens) int64 on the target's device, what the draft needs to know; written by every round
    report:  (batch, FACTS + width) int64 on the target's device, what a round gave each row
    warm:    whether the last play did nothing for the first time, and what it did takes as long the next time
    firsts:  how many plays there will be that do something for the first time: to run it, and where a lane can, to
             capture it. Another view, which has its own, comes seldom
    """

    def __init__(self, batch: StaticBatch, shape: Shape) -> None:
        self.batch = batch
        self.shape = shape
        self.warm = False
        self.firsts = firsts_of(batch)
        tokens, target_lane = batch.state.tokens, batch.lanes[0]
        self.message = target_lane.make(lambda: tokens.new_zeros(len(tokens), message_width(shape)))
        self.report = target_lane.make(lambda: tokens.new_zeros(len(tokens), FACTS + shape.width))
        # What would else be a kernel in every round.
        self._count = target_lane.make(lambda: torch.arange(max(len(tokens), shape.reach), device=tokens.device))
        self._bonus = target_lane.make(lambda: tokens.new_full((len(tokens), 1), PLACEHOLDER))
        self._drafted_each = target_lane.make(lambda: torch.full_like(batch.state.window, shape.drafted))
        self._inbox: Tensor | None = None  # a copy of the message, where the draft has a device of its own
        self._drafts: Drafted | None = None  # where the draft is
        self._received: Drafted | None = None  # the same, where the target is
        self._done: Event | None = None  # of the draft's part of the present round
        self._chain: Drafted | None = None  # the windows' distributions: most were drafted a round earlier
        self._logits: dict[int, Tensor] = {}  # by view, since a replay writes what its own capture made
        self._played: set[tuple[str, int]] = set()  # parts that have run once in a view, and may be captured
        self._graphs: dict[tuple[str, int], Work] = {}

    def enter(self) -> None:
        """Before the first round of this shape after those of another one, or of none.

        A window that waits is forgotten unread. Nobody has looked at it, so that favours no token; and what is drafted
        in its place has noise of its own, as more has been committed since.
        """

        def work() -> None:
            self.batch.state.window.zero_()
            self.announce()

        self.batch.lanes[0].run(work)

    def leave(self, view: int) -> None:
        """Before rounds of a shape whose draft rereads less: let it read what this one's would have."""
        draft = self.batch.draft
        assert draft is not None
        inbox = self._send()
        self.batch.lanes[1].run(lambda: draft.read_again(inbox, self.shape, view))

    def play_draft(self, view: int) -> None:
        """Queue the draft's part. view: cached positions it may look at, at most the caches' capacity."""
        draft_lane = self.batch.lanes[1]
        self._send()
        self._part("draft", draft_lane, self._draft_ahead, view)
        if self.batch.apart:
            # By the draft's lane, beside the target's forward. Rounds before this one have read what they received:
            # the target had, when it wrote the message.
            draft_lane.run(self._deliver)
        self._done = draft_lane.record()

    def play_target(self, view: int) -> None:
        """Queue the target's part, after the draft's if the shape has one."""
        target_lane = self.batch.lanes[0]
        if self.shape.guessed:
            self._part("guess", target_lane, self._verify_guesses, view)
        elif not self.shape.drafted:
            self._part("alone", target_lane, self._go_alone, view)
        elif self.shape.runs_ahead:
            self._part("window", target_lane, self._read_window, view)
            self._join()
            self._part("verify", target_lane, self._verify_window, view)
        else:
            self._join()
            self._part("verify", target_lane, self._verify_drafts, view)

    def release(self) -> None:
        """Let go of all that was drafted or captured; nothing of it may be running."""
        self._graphs.clear()
        self._logits.clear()
        self._drafts = self._received = self._chain = None

    # The parts. Each is work of one lane, that looks at `view` cached positions.

    def _draft_ahead(self, view: int) -> None:
        assert self.batch.draft is not None
        inbox = self.message if self._inbox is None else self._inbox
        self._drafts = self.batch.draft.steps(inbox, self.shape, view, self._drafts)

    def _read_window(self, view: int) -> None:
        """The target's distributions of the tokens from `committed` on, for each row's window and the next one."""
        batch, width = self.batch, self.shape.width
        starts = batch.state.committed - 1
        inputs = batch.state.tokens.gather(1, self._columns(starts, width)).clamp(min=0)
        logits = batch.target.forward_at(inputs, starts, batch.cache, view, keep=width)
        kept = self._logits.get(view) if ("window", view) in self._graphs else None
        if kept is None:
            self._logits[view] = logits
        else:
            # It could not be captured; but a captured verification goes on reading where it did.
            kept.copy_(logits)

    def _verify_window(self, view: int) -> None:
        """Verify what was drafted in the round before, and the first token that was drafted in this one."""
        drafted, state = self._drafted(), self.batch.state
        head = state.committed + state.window
        state.tokens.scatter_(1, self._columns(head, self.shape.drafted), drafted.tokens)
        chain = None
        if drafted.logits is not None:
            chain = self._chain = self._chain or Drafted.empty(
                len(head), self.shape, drafted.logits[:, 0], drafted.logits.device
            )
            rows, window = self._count[: len(head)], state.window.long()
            for kept, new in _pairs(chain, drafted):
                kept[rows, window] = new[:, 0]
        self._advance(view, chain)
        if chain is not None:
            for kept, new in _pairs(chain, drafted):
                kept[:, : self.shape.next_window] = new[:, 1:]

    def _verify_drafts(self, view: int) -> None:
        """Verify what was drafted in this round."""
        drafted = self._drafted()
        self._read_chain(drafted.tokens, view)
        self._advance(view, drafted if drafted.logits is not None else None)

    def _verify_guesses(self, view: int) -> None:
        """Verify what prompt lookup finds, of which it is certain."""
        state = self.batch.state
        guesses = look_up(state.tokens[:, :view], state.committed, self.shape.guessed)
        self._read_chain(guesses, view)
        self._advance(view, None, num_drafted=(guesses != PLACEHOLDER).sum(1, dtype=torch.int32))

    def _read_chain(self, tokens: Tensor, view: int) -> None:
        """Put a chain in place with a placeholder after it, which becomes the target's own token, and read it."""
        state = self.batch.state
        places = self._columns(state.committed, self.shape.width)
        state.tokens.scatter_(1, places, torch.cat([tokens, self._bonus], dim=1))
        state.window.masked_fill_(state.finished == Finished.RUNNING, tokens.shape[1])
        self._read_window(view)

    def _go_alone(self, view: int) -> None:
        """A round without a draft: the placeholder becomes the target's own token."""
        state = self.batch.state
        state.tokens.scatter_(1, state.committed[:, None], PLACEHOLDER)
        self._read_window(view)
        self._advance(view, None)

    def _advance(self, view: int, chain: Drafted | None, num_drafted: Tensor | None = None) -> None:
        """num_drafted: (batch,) int32; None for what the draft always writes"""
        batch, state = self.batch, self.batch.state
        places = self._columns(state.committed, self.shape.width)
        emitted, accepted = advance_(
            state,
            self._logits[view],
            batch.params,
            draft_logits=chain.logits if chain else None,
            draft_stats=chain.stats if chain else None,
            d2t=batch.d2t if chain else None,
            rule=batch.rule,
            next_window=self.shape.next_window,
        )
        if num_drafted is None:
            num_drafted = self._drafted_each
        self.report[:, :FACTS] = torch.stack([emitted, accepted, num_drafted, state.finished, state.status], dim=1)
        self.report[:, FACTS:] = state.tokens.gather(1, places)
        self.announce()

    def announce(self) -> None:
        """Write the message of the next round, if it has a draft."""
        if not self.shape.drafted:
            return
        state = self.batch.state
        head = state.committed + state.window
        starts = (head - self.shape.reread).clamp(min=0)
        self.message[:, 0], self.message[:, 1] = state.committed, state.window
        self.message[:, 2:] = state.tokens.gather(1, self._columns(starts, self.shape.reread)).clamp(min=0)

    def _columns(self, starts: Tensor, width: int) -> Tensor:
        """`width` columns from starts (batch,) on."""
        return starts[:, None] + self._count[:width]

    # How they are queued.

    def _send(self) -> Tensor:
        """The draft goes on when the target has written its message. Returns it, where the draft is."""
        target_lane, draft_lane = self.batch.lanes
        draft_lane.wait(target_lane.record())
        if not self.batch.apart:
            return self.message
        if self._inbox is None:
            self._inbox = draft_lane.make(lambda: torch.zeros_like(self.message, device=draft_lane.device))
        inbox = self._inbox
        draft_lane.run(lambda: inbox.copy_(self.message, non_blocking=True))
        return inbox

    def _join(self) -> None:
        """The target goes on when the draft is done."""
        assert self._done is not None, "a draft is verified before one was queued"
        self.batch.lanes[0].wait(self._done)

    def _deliver(self) -> None:
        sent = self._drafts
        assert sent is not None, "a draft is delivered before one was written"
        if self._received is None:
            like = None if sent.logits is None else sent.logits[:, 0]
            self._received = Drafted.empty(len(sent.tokens), self.shape, like, self.batch.target.device)
        self._received.copy_(sent)

    def _drafted(self) -> Drafted:
        """This round's drafts, where the target is."""
        drafted = self._received if self.batch.apart else self._drafts
        assert drafted is not None, "a draft is verified before one was written"
        return drafted

    def _part(self, name: str, lane: DeviceLane, part: Callable[[int], None], view: int) -> None:
        """Run a part the first time in a view, capture it the second time, and replay it from then on."""
        key, work = (name, view), partial(part, view)
        if key not in self._played:
            self.warm = False
            lane.run(work)
            self._played.add(key)
            return
        if lane.can_capture and key not in self._graphs:
            self.warm = False
            self._graphs[key] = self._captured(name, lane, work)
        lane.run(self._graphs.get(key, work))

    def _captured(self, name: str, lane: DeviceLane, work: Work) -> Work:
        """As a graph where that can be: some models ask the host in their forward, for a length by which to scale."""
        try:
            return lane.capture(work)
        except Exception as error:
            LOGGER.warning("%s: queued call by call, as it cannot be captured: %r", name, error)
            self.batch.lacks_graphs |= isinstance(error, torch.OutOfMemoryError)
            return work


def _pairs(chain: Drafted, drafted: Drafted) -> list[tuple[Tensor, Tensor]]:
    """Each kept tensor of distributions with its new one."""
    return list(
        zip((chain.logits, *chain.stats), (drafted.logits, *drafted.stats), strict=True)  # type: ignore[arg-type]
    )
