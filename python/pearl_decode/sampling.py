"""What one request asks for: how to draw its tokens and when to stop."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_TEMPERATURE = 1e-5  # below it, logits divided by the temperature leave the range of float32
FLOAT32 = 2.0**-126, (2 - 2**-23) * 2.0**127  # its smallest number of full precision, and its largest
INT32, INT64 = 2**31 - 1, 2**63 - 1  # the largest


def _number(name: str, value: Any, expected: str, *, low: float, high: float, open_low: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (low < value if open_low else low <= value) or not value <= high:
        raise ValueError(f"SamplingParams: {name} must be {expected}, got {value!r}")
    if value and not FLOAT32[0] <= value <= FLOAT32[1]:
        raise ValueError(f"SamplingParams: {name} must be a number that float32 holds, got {value!r}")


def _integer(name: str, value: object, expected: str, *, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"SamplingParams: {name} must be {expected}, got {value!r}")
    if value > high:
        raise ValueError(f"SamplingParams: {name} must be at most {high}, got {value!r}")


def _tuple(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"SamplingParams: {name} must be {expected}, got {value!r}")
    return tuple(value)


@dataclass(frozen=True)
class SamplingParams:
    """Sampling and stopping of one request.

    temperature:    0 is greedy (the default); otherwise logits are divided by it
    top_k:          keep the k largest logits; 0 is off
    top_p:          keep the smallest set of tokens whose mass reaches top_p; 1 is off
    min_p:          keep tokens at least min_p times as probable as the most probable one; 0 is off
    seed:           64-bit key of every random draw; None takes a fresh one, which the result reports
    max_tokens:     most tokens emitted
    stop:           strings that end the text, which is cut just before the one that is complete first, not the one
                    that starts first; a string is one of them, None none
    stop_token_ids: token ids that end the text, beside the model's own end-of-sequence ids; None is none
    ignore_eos:     do not stop at the model's end-of-sequence ids

    Filters apply in the order temperature, top_k, top_p, min_p, each to what the one before kept.
    Raises ValueError naming the field, what was expected and what came.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, "a finite number >= 0", low=0.0, high=sys.float_info.max)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"SamplingParams: temperature must be 0 (greedy) or at least {MIN_TEMPERATURE}, "
                f"got {self.temperature!r}"
            )
        _integer("top_k", self.top_k, "an integer >= 0 (0 is off)", low=0, high=INT32)
        _number("top_p", self.top_p, "in (0, 1]", low=0.0, high=1.0, open_low=True)
        _number("min_p", self.min_p, "in [0, 1]", low=0.0, high=1.0)
        _integer("max_tokens", self.max_tokens, "an integer >= 1", low=1, high=INT32)
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if self.seed is not None and not (whole and -(2**63) <= self.seed < 2**64):
            raise ValueError(f"SamplingParams: seed must be None or a 64-bit integer, got {self.seed!r}")
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"SamplingParams: ignore_eos must be true or false, got {self.ignore_eos!r}")
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _tuple("stop", stop, "a string or a list of strings"))
        ends = _tuple("stop_token_ids", self.stop_token_ids, "a list of token ids")
        object.__setattr__(self, "stop_token_ids", ends)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"SamplingParams: stop must hold non-empty strings, got {text!r}")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, "token ids >= 0", low=0, high=INT64)

    def resolved_seed(self) -> int:
        """The request's key as a signed 64-bit integer; a fresh one where none was given."""
        seed = secrets.randbits(64) if self.seed is None else self.seed % 2**64
        return seed - 2**64 if seed >= 2**63 else seed
