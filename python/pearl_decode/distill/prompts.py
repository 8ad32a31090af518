"""Prompts and plain text to distill on, and the one way they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pearl_decode.inputs import check_text, numbered_lines
from pearl_decode.text import encode_prompt


@dataclass(frozen=True)
class Prompt:
    """One prompt. key is unique in its file and stays the same when the file grows.

    token_ids: as the target sees it, which may have the date in it, by its chat template
    text: as it was given; empty for the beginning of a prompt that is yet to be written
    """

    key: str
    token_ids: list[int]
    text: str = ""


def read_prompts(path: str | os.PathLike[str], tokenizer: Any, longest: int) -> list[Prompt]:
    """The prompts of a file of {"prompt": TEXT, "id": KEY} lines; without an id the line number is the key.

    A tokenizer with a chat template wraps each as one user message. Prompts of more than `longest` tokens are left out.
    Raises ValueError naming file and line for what is not such an object, for a key used twice, for no prompt at all.
    """
    prompts: dict[str, Prompt] = {}
    for number, line in _lines(path):
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"prompts: {place}: not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # of very long numbers, and of what is nested too deeply
            raise ValueError(f"prompts: {place}: not JSON that can be read: {error}") from error
        text = entry.get("prompt") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'prompts: {place}: expected an object with a non-empty string "prompt", got {line[:80]}')
        name = entry.get("id")
        key = str(number if name is None else name)
        try:
            check_text(text)
            check_text(key, "id")
        except ValueError as error:
            raise ValueError(f"prompts: {place}: {error}") from error
        if key in prompts:
            raise ValueError(f"prompts: {place}: the id {key!r} was used before")
        prompts[key] = Prompt(key, encode_prompt(tokenizer, text), text)
    fitting = [prompt for prompt in prompts.values() if len(prompt.token_ids) <= longest]
    if not fitting:
        reason = "the file is empty" if not prompts else f"all {len(prompts)} have more than {longest} tokens"
        raise ValueError(f"prompts: {path}: no prompt to answer: {reason}")
    return fitting


def read_text(paths: Sequence[str | os.PathLike[str]], tokenizer: Any, length: int) -> list[list[int]]:
    """Plain text files as sequences of at most `length` tokens. Raises ValueError naming a file without text."""
    pieces: list[list[int]] = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"text: cannot read {path}: {error}") from error
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) < 2:
            raise ValueError(f"text: {path} holds no text")
        pieces += [ids[start : start + length] for start in range(0, len(ids) - 1, length)]
    return pieces


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"prompts: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    return numbered_lines(text)
