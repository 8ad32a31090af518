"""What a request gets back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pearl_decode.stats import DecodeStats

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class GenerationResult:
    """One answered request.

    text:          decoded text, cut exactly before a stop string
    token_ids:     emitted ids, every one verified by the target, the token that ended the text included
    finish_reason: "stop" (end-of-sequence, stop token or stop string) or "length" (max_tokens); "cancelled" where the
                   caller closed the stream first, "error" where the request failed
    error:         what went wrong with this request, else None; text and token_ids hold what came before
    seed:          the key its draws were made with: the same seed gives the same text again where `reproducible`
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    error: str | None
    seed: int
    stats: DecodeStats
