"""One static round of any strategy, as work for two lanes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pearl_decode.cache import WindowCache
from pearl_decode.device.draft import Drafted, StaticDraft, copy_fields, message_width
from pearl_decode.device.shape import ALONE, Shape
from pearl_decode.lanes.queue import DeviceLane
from pearl_decode.models import CausalModel
from pearl_decode.state import PLACEHOLDER
from pearl_kernels import DecodeState, Finished, SamplingTensors, advance_

LOGGER = logging.getLogger(__name__)
FACTS = 4  # columns of a report before the ids: tokens emitted, drafted ones among them, Finished, Status
Work = Callable[[], None]


class StaticRound:
    """The tensors of a batch and what a round does with them. `play` queues a round; nothing is read on the host.

    capacity: positions the target's cache holds of each row, at least the length of state.tokens
    message: (batch, 2 + tokens) int64 on the target's device, what the draft needs to know; written by every round
    report:  (batch, FACTS + width) int64 on the target's device, what a round gave each row
    """

    def __init__(
        self,
        state: DecodeState,
        params: SamplingTensors,
        target: CausalModel,
        draft: StaticDraft | None,
        lanes: tuple[DeviceLane, DeviceLane],
        shape: Shape,
        rule: str,
        capacity: int,
    ) -> None:
        self.state = state
        self.params = params
        self.target = target
        self.draft = draft
        self.lanes = lanes
        self.shape = shape
        self.rule = rule
        self.cache = WindowCache(capacity)
        self.view = 0
        batch, target_lane = len(state.tokens), lanes[0]
        self.message = target_lane.make(lambda: state.tokens.new_zeros(batch, message_width(shape)))
        self.report = target_lane.make(lambda: state.tokens.new_zeros(batch, FACTS + shape.width))
        # Where the two models are on different devices, what one lane tells the other is copied there.
        self._apart = apart = draft is not None and lanes[1].device != target_lane.device
        self._inbox = (
            lanes[1].make(lambda: torch.zeros_like(self.message, device=lanes[1].device)) if apart else self.message
        )
        self._received: Drafted | None = None
        d2t = draft.model.d2t if draft else None
        self._d2t = None if d2t is None else target_lane.make(lambda: d2t.to(target.device))
        self._chain: Drafted | None = None  # the windows' distributions: most were drafted a round earlier
        self._logits: Tensor | None = None
        self._played: set[tuple[str, int]] = set()  # parts that have run once in a view, and may be captured
        self._graphs: dict[tuple[str, int], Work] = {}

    @property
    def draft_forwards(self) -> int:
        """Draft forwards of a round from now on."""
        return self.shape.drafted

    def load(self, state: DecodeState, params: SamplingTensors) -> None:
        """Begin again with other sequences, in the same memory."""

        def work() -> None:
            copy_fields(self.state, state)
            copy_fields(self.params, params)
            self.cache.clear()

        self.lanes[0].make(work)

    def prefill(self, width: int) -> None:
        """Let both lanes read the first `width` tokens of every row, and tell the draft where to begin."""
        target_lane, draft_lane = self.lanes
        target_lane.run(self._announce)
        told = target_lane.record()
        prompts = self.state.tokens[:, :width]
        if width:
            starts = [0] * len(prompts)
            target_lane.run(lambda: self.target.forward(prompts, starts, self.cache, keep=1))
        if self.draft is not None:
            draft_lane.wait(told)
            self._try_draft(lambda: draft_lane.run(lambda: self._prefill_draft(prompts)))

    def _prefill_draft(self, prompts: Tensor) -> None:
        assert self.draft is not None
        self.draft.cache.clear()
        if self._apart:
            copy_fields(self.draft.params, self.params)
        if prompts.shape[1]:
            self.draft.prefill(prompts.to(self.draft.model.device))

    def play(self, view: int) -> None:
        """Queue one round. view: cached positions it may look at, at most the cache's capacity.

        A draft that fails to queue its part costs speed, never a request: it is dropped with a warning, its memory is
        given back, and from this very round on the target goes on alone.
        """
        self.view = view
        target_lane, draft_lane = self.lanes
        if self.draft is not None:
            draft_lane.wait(target_lane.record())
            self._try_draft(self._play_draft)
        if self.draft is None:
            self._part("alone", target_lane, self._go_alone)
        elif self.shape.runs_ahead:
            self._part("window", target_lane, self._read_window)
            self._join()
            self._part("verify", target_lane, self._verify_window)
        else:
            self._join()
            self._part("verify", target_lane, self._verify_drafts)

    def close(self) -> None:
        """Let neither lane use again what the other may still read; call before the tensors are freed."""
        target_lane, draft_lane = self.lanes
        draft_lane.wait(target_lane.record())
        target_lane.wait(draft_lane.record())

    # The parts. Each is work of one lane.

    def _draft_ahead(self) -> None:
        assert self.draft is not None
        self.draft.steps(self._inbox, self.view)

    def _read_window(self) -> None:
        """The target's distributions of the tokens from `committed` on, for each row's window and the next one."""
        starts = self.state.committed - 1
        inputs = self.state.tokens.gather(1, self._columns(starts, self.shape.width)).clamp(min=0)
        self._logits = self.target.forward_at(inputs, starts, self.cache, self.view, keep=self.shape.width)

    def _verify_window(self) -> None:
        """Verify what was drafted in the round before, and the first token that was drafted in this one."""
        drafted, state = self._drafted(), self.state
        window = state.window.long()
        state.tokens.scatter_(1, self._columns(state.committed + window, self.shape.drafted), drafted.tokens)
        chain = None
        if drafted.logits is not None:
            chain = self._chain = self._chain or Drafted.empty(
                len(window), self.shape, drafted.logits[:, 0], drafted.logits.device
            )
            rows = torch.arange(len(window), device=window.device)
            for kept, new in _pairs(chain, drafted):
                kept[rows, window] = new[:, 0]
        self._advance(chain)
        if chain is not None:
            for kept, new in _pairs(chain, drafted):
                kept[:, : self.shape.next_window] = new[:, 1:]

    def _verify_drafts(self) -> None:
        """Put the drafts in place with a placeholder after them, which becomes the target's own token; verify them."""
        drafted, state = self._drafted(), self.state
        bonus = drafted.tokens.new_full((len(drafted.tokens), 1), PLACEHOLDER)
        chain = torch.cat([drafted.tokens, bonus], dim=1)
        state.tokens.scatter_(1, self._columns(state.committed, self.shape.width), chain)
        state.window.masked_fill_(state.finished == Finished.RUNNING, self.shape.drafted)
        self._read_window()
        self._advance(drafted if drafted.logits is not None else None)

    def _go_alone(self) -> None:
        """A round without a draft: the placeholder becomes the target's own token."""
        self.state.tokens.scatter_(1, self.state.committed[:, None], PLACEHOLDER)
        self._read_window()
        self._advance(None)

    def _advance(self, chain: Drafted | None) -> None:
        assert self._logits is not None
        state, before = self.state, self.state.committed.clone()
        emitted, accepted = advance_(
            state,
            self._logits,
            self.params,
            draft_logits=chain.logits if chain else None,
            draft_stats=chain.stats if chain else None,
            d2t=self._d2t if chain else None,
            rule=self.rule,
            next_window=self.shape.next_window,
        )
        ids = state.tokens.gather(1, self._columns(before, self.shape.width))
        facts = torch.stack([emitted, accepted, state.finished, state.status], dim=1)
        self.report[:, : FACTS + self.shape.width] = torch.cat([facts.long(), ids], dim=1)
        self._announce()

    def _announce(self) -> None:
        """Write the message of the next round."""
        head = self.state.committed + self.state.window
        reread = self.message.shape[1] - 2
        starts = (head - reread).clamp(min=0)
        self.message[:, 0], self.message[:, 1] = self.state.committed, self.state.window
        self.message[:, 2:] = self.state.tokens.gather(1, self._columns(starts, reread)).clamp(min=0)

    def _columns(self, starts: Tensor, width: int) -> Tensor:
        return starts[:, None] + torch.arange(width, device=starts.device)

    # How they are queued.

    def _play_draft(self) -> None:
        draft_lane = self.lanes[1]
        if self._apart:
            draft_lane.run(lambda: self._inbox.copy_(self.message, non_blocking=True))
        self._part("draft", draft_lane, self._draft_ahead)

    def _join(self) -> None:
        """The target goes on when the draft is done."""
        target_lane, draft_lane = self.lanes
        target_lane.wait(draft_lane.record())
        if self._apart:
            target_lane.run(self._receive)

    def _receive(self) -> None:
        assert self.draft is not None
        assert self.draft.drafted is not None
        sent = self.draft.drafted
        if self._received is None:
            like = None if sent.logits is None else sent.logits[:, 0]
            self._received = Drafted.empty(len(sent.tokens), self.shape, like, self.target.device)
        self._received.copy_(sent)

    def _drafted(self) -> Drafted:
        """This round's drafts, where the target is."""
        assert self.draft is not None
        drafted = self._received if self._apart else self.draft.drafted
        assert drafted is not None, "a draft is verified before one was written"
        return drafted

    def _part(self, name: str, lane: DeviceLane, work: Work) -> None:
        """Run a part the first time in a view, capture it the second time, and replay it from then on."""
        key = (name, self.view)
        if not lane.can_capture or key not in self._played:
            lane.run(work)
            self._played.add(key)
            return
        if key not in self._graphs:
            self._graphs[key] = self._captured(name, lane, work)
        lane.run(self._graphs[key])

    def _captured(self, name: str, lane: DeviceLane, work: Work) -> Work:
        """As a graph where that can be: some models ask the host in their forward, for a length by which to scale."""
        try:
            return lane.capture(work)
        except Exception as error:
            LOGGER.warning("%s: queued call by call, as it cannot be captured: %r", name, error)
            return work

    def _try_draft(self, queue: Work) -> None:
        try:
            queue()
        except Exception as error:  # whatever it is, the target can go on
            warnings.warn(f"the draft failed, the target goes on alone: {error!r}", RuntimeWarning, stacklevel=2)
            self._drop_draft()

    def _drop_draft(self) -> None:
        """Go on alone. A window that waits is forgotten unread, which favours no token."""
        target_lane, draft_lane = self.lanes
        target_lane.record().synchronize()  # what is freed may still be in use
        self.draft = self._received = self._chain = None
        self._graphs.clear()
        self.shape = ALONE
        target_lane.run(self.state.window.zero_)
        draft_lane.release()


def _pairs(chain: Drafted, drafted: Drafted) -> list[tuple[Tensor, Tensor]]:
    """Each kept tensor of distributions with its new one."""
    return list(
        zip((chain.logits, *chain.stats), (drafted.logits, *drafted.stats), strict=True)  # type: ignore[arg-type]
    )
