"""Parallel speculative decoding for any causal model of transformers.

from pearl_decode import PearlDecoder, SamplingParams

with PearlDecoder.from_pretrained("smollm2-135m", "smollm2-135m-draft") as decoder:
    print(decoder.generate("The capital of France is", SamplingParams(max_tokens=32)).text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pearl_decode.decoder import PearlDecoder
    from pearl_decode.hook import generate
    from pearl_decode.result import GenerationResult
    from pearl_decode.sampling import SamplingParams
    from pearl_decode.session import Session
    from pearl_decode.stats import DecodeStats
    from pearl_decode.stream import TextStream

__all__ = ["DecodeStats", "GenerationResult", "PearlDecoder", "SamplingParams", "Session", "TextStream", "generate"]

# Imported on first use: the command line has to answer --help without waiting for torch and transformers.
_HOMES = {
    "DecodeStats": "stats",
    "GenerationResult": "result",
    "PearlDecoder": "decoder",
    "SamplingParams": "sampling",
    "Session": "session",
    "TextStream": "stream",
    "generate": "hook",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
