"""Prompts as the decoder takes them, and answers as the commands print them."""

from __future__ import annotations

from typing import Any

from pearl_decode.cli.console import FAILED, CliError, note
from pearl_decode.decoder import PearlDecoder
from pearl_decode.result import GenerationResult
from pearl_decode.text import encode_prompt


def encode(decoder: PearlDecoder, prompt: str, raw: bool) -> str | list[int]:
    """The prompt as one user message where the tokenizer has a chat template, as it is where not or if raw."""
    if raw or decoder.tokenizer is None:
        return prompt
    try:
        return encode_prompt(decoder.tokenizer, prompt)
    except ValueError as error:
        raise CliError(f"{error}; --raw leaves the template out") from error


def record(result: GenerationResult) -> dict[str, Any]:
    """An answer for JSON: the fields of GenerationResult, its statistics as an object."""
    return {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "error": result.error,
        "seed": result.seed,
        "stats": result.stats.to_dict(),
    }


def summary(result: GenerationResult) -> str:
    """One line about an answer, for stderr."""
    stats = result.stats
    drafting = f", gamma {stats.gamma}" if stats.draft_forwards else ""
    return (
        f"[{stats.emitted_tokens} tokens, {stats.tokens_per_s:.1f} tokens/s, "
        f"{stats.tokens_per_target_forward:.2f} tokens per target forward, {stats.strategy}{drafting}, "
        f"{result.finish_reason}, seed {result.seed}]"
    )


def report_failure(result: GenerationResult) -> int:
    """Say on stderr why a request failed. Returns the exit status it makes."""
    if result.error is None:
        return 0
    note(f"pearl-decode: error: {result.error}")
    return FAILED
