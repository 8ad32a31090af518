"""One request on the host: its prompt, what it has got so far, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pearl_decode.result import FinishReason, GenerationResult
from pearl_decode.sampling import SamplingParams
from pearl_decode.state import Batch
from pearl_decode.stats import DecodeStats
from pearl_decode.text import Detokenizer, StopStrings
from pearl_kernels import Finished, Status


class Request:
    """Collects a request's verified tokens, turns them into text, and cuts it where it ends."""

    def __init__(
        self, prompt_ids: list[int], params: SamplingParams, eos_ids: Sequence[int], tokenizer: Any, stats: DecodeStats
    ) -> None:
        self.prompt_ids = prompt_ids
        self.params = params
        self.eos_ids = [*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)]
        self.seed = params.resolved_seed()
        self.stats = stats
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self._since = 0.0, 0.0, 0.0
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(params.stop)

    @property
    def longest(self) -> int:
        """Tokens of its prompt and of the longest answer."""
        return len(self.prompt_ids) + self.params.max_tokens

    def push(self, tokens: Sequence[int], finished: Finished, status: Status) -> tuple[int, str]:
        """Take a round's tokens. Returns how many of them belong to the text, and the new piece of text."""
        piece = ""
        for count, token in enumerate(tokens, start=1):
            self.token_ids.append(token)
            ends = finished is Finished.STOP and count == len(tokens)
            if not ends:
                piece += self._stop.push(self._detokenizer.push(token))
            if self._stop.found:
                self.finish_reason = "stop"
                self.text += piece
                return count, piece
        if finished is not Finished.RUNNING:
            piece += self._finish(finished, status)
        self.text += piece
        return len(tokens), piece

    def begin(self, now: float, target_s: float, draft_s: float) -> None:
        """Its decoding begins now, in seconds, when the lanes have computed for so long."""
        self._since = now, target_s, draft_s

    def count_time(self, now: float, target_s: float, draft_s: float) -> None:
        """It has taken part so far. The arguments are those of `begin`."""
        begun, target_before_s, draft_before_s = self._since
        self.stats.count_time(now - begun, target_s - target_before_s, draft_s - draft_before_s)

    def fail(self, message: str) -> None:
        """End with an error, keeping what there is."""
        self.finish_reason, self.error = "error", message

    def result(self) -> GenerationResult:
        """The answer, or the part of it there is."""
        reason = self.finish_reason or "cancelled"
        return GenerationResult(self.text, list(self.token_ids), reason, self.error, self.seed, self.stats)

    def _finish(self, finished: Finished, status: Status) -> str:
        if finished is Finished.ERROR:
            bad = "NaN or infinite logits" if status & Status.TARGET_INVALID else "no token with a finite logit"
            position = len(self.prompt_ids) + len(self.token_ids)
            self.fail(f"the target model gave {bad} at position {position}")
        else:
            self.finish_reason = "stop" if finished is Finished.STOP else "length"
        rest = self._stop.push(self._detokenizer.flush())
        if self._stop.found:
            self.finish_reason = "stop"
            return rest
        return rest + self._stop.flush()


def lay_down(
    requests: Sequence[Request], spare: int, device: torch.device, *, capacity: int = 0, ends: int = 0
) -> Batch:
    """A batch of the prompts of requests; the other arguments are those of `Batch.start`."""
    return Batch.start(
        [request.prompt_ids for request in requests],
        [request.params for request in requests],
        [request.seed for request in requests],
        [request.eos_ids for request in requests],
        spare,
        device,
        capacity=capacity,
        ends=ends,
    )
