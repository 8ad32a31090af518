"""The prompts that are timed: a file of them, or those that ship."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pearl_decode.inputs import json_prompt, numbered_lines

SHIPPED = Path(__file__).parent.parent / "data" / "prompts.jsonl"
NO_TASK = "all"


@dataclass(frozen=True)
class BenchPrompt:
    """One prompt. task: the kind of text it asks for; numbers are given per task."""

    task: str
    prompt: str


def read_prompts(path: str | os.PathLike[str] = SHIPPED, limit: int | None = None) -> list[BenchPrompt]:
    """Every line of a file of {"prompt": ..., "task": ...}; other fields are ignored, a missing task is "all".

    limit: keep the first `limit` prompts of each task; None keeps all
    Raises ValueError naming file and line, what was expected and what came.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts: cannot read {os.fspath(path)!r}: {error}") from error
    kept: list[BenchPrompt] = []
    for number, line in numbered_lines(text):
        try:
            prompt = _parse(line)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}:{number}: {error}") from error
        if limit is None or sum(other.task == prompt.task for other in kept) < limit:
            kept.append(prompt)
    if not kept:
        raise ValueError(f"prompts: {os.fspath(path)!r} holds no prompts")
    return kept


def _parse(line: str) -> BenchPrompt:
    value = json_prompt(line)
    if not value["prompt"]:
        raise ValueError('"prompt" must not be empty')
    task = value.get("task", NO_TASK)
    if not isinstance(task, str) or not task:
        raise ValueError(f'"task" must be a string, got {task!r}')
    return BenchPrompt(task, value["prompt"])
