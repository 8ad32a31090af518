"""Prompts and their parameters as a caller gives them: what may come, and what is said of anything else."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from reprlib import repr as short
from typing import Any

from pearl_decode.sampling import SamplingParams

Prompt = str | Sequence[int]
NO_LISTS = (bytes, bytearray, Mapping, Set)  # they iterate too, but over no prompts and no ids, or in no order


def prompt_list(prompts: Any) -> list[Prompt]:
    """The prompts of any iterable, each as it came."""
    if isinstance(prompts, (str, *NO_LISTS)) or not isinstance(prompts, Iterable):
        raise ValueError(f"prompts: expected a string or a list of prompts, got {short(prompts)}")
    return list(prompts)


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines of a JSONL file that are not blank, each with its number.

    Unlike str.splitlines: a JSON string may hold separators of lines and paragraphs as they are.
    """
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def json_prompt(line: str | bytes) -> dict[str, Any]:
    """One line of a JSONL file of prompts: an object with a string "prompt", whatever else it holds.

    Raises ValueError saying what was expected, without the file and the number of the line, which the caller knows.
    """
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: nested too deeply") from error
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise ValueError('expected an object with a string "prompt"')
    check_text(value["prompt"])
    return value


def check_text(text: str, name: str = "prompt") -> None:
    """Raise ValueError for half a character (a lone surrogate), which no tokenizer takes: a cut emoji, no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise ValueError(f"{name}: expected text that is UTF-8, got {bad!r} at character {error.start}") from error


def token_ids(prompt: Any) -> list[int]:
    """The ids of a prompt that is no string: integers of Python, numpy or torch."""
    ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # or the truths of a tensor would pass for integers
    if isinstance(ids, NO_LISTS) or not isinstance(ids, Iterable):
        raise ValueError(f"prompt: expected a string or token ids, got {short(prompt)}")
    return [_token_id(token) for token in ids]


def _token_id(token: Any) -> int:
    with suppress(TypeError):
        if not isinstance(token, bool):
            return operator.index(token)
    raise ValueError(f"prompt: expected a string or token ids, got {short(token)} for an id")


def one_params(params: Any) -> SamplingParams:
    """The parameters of one prompt; None is the default."""
    if params is not None and not isinstance(params, SamplingParams):
        raise ValueError(f"params: one prompt takes one SamplingParams, got {short(params)}")
    return params or SamplingParams()


def params_of_each(params: Any, count: int) -> list[SamplingParams]:
    """The parameters of each of `count` prompts; None is the default, for all of them."""
    if params is None or isinstance(params, SamplingParams):
        return [one_params(params)] * count
    expected = f"params must be one SamplingParams or one for each of {count} prompts"
    each = list(params) if isinstance(params, Sequence) else [params]
    foreign = [one for one in each if not isinstance(one, SamplingParams)]
    if foreign or len(each) != count:
        raise ValueError(f"{expected}, got {short(foreign[0]) if foreign else len(each)}")
    return each
