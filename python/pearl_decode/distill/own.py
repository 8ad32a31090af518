"""Prompts that a target writes itself, when it is made to go on with the user's message of a chat (Magpie, Xu et al.
2406.08464).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pearl_decode.distill.answers import Answer, Job, seed_of, write_answers
from pearl_decode.distill.prompts import Prompt
from pearl_decode.models import CausalModel
from pearl_decode.text import encode_prompt

LONGEST = 128  # tokens; longer ones are not ended, and are left out
KEYS = "own/"  # what their keys begin with
_MESSAGE = "@message@"


def write_prompts(
    target: CausalModel,
    tokenizer: Any,
    count: int,
    path: Path,
    *,
    seed: int,
    batch: int,
    eos_ids: Sequence[int],
    deadline: float | None = None,
    report: Callable[[Answer], None] = lambda answer: None,
) -> list[Prompt]:
    """Let the target write `count` messages into the file, those that it lacks, and return what they are as prompts.

    The messages have temperature 1. Those without an end or without text are left out, equal ones are taken once.
    deadline: time.monotonic() after which no new batch is begun
    Raises ValueError for a tokenizer whose chat template does not show where a user's message goes.
    """
    opening, closing = _around_message(tokenizer)
    ends = {*eos_ids, *closing[:1]}
    keys = [f"{KEYS}{number}" for number in range(count)]
    jobs = [Job(Prompt(key, opening), 0, 1.0, seed_of(seed, 0, key)) for key in keys]
    written = write_answers(
        target, jobs, path, max_tokens=LONGEST, batch=batch, eos_ids=list(ends), deadline=deadline, report=report
    )
    prompts: dict[str, Prompt] = {}
    for answer in sorted(written, key=lambda answer: int(answer.key.removeprefix(KEYS))):
        text = tokenizer.decode(answer.answer_ids, skip_special_tokens=True).strip()
        if answer.answer_ids[-1] in ends and text and text not in prompts:
            prompts[text] = Prompt(answer.key, encode_prompt(tokenizer, text), text)
    return list(prompts.values())


def _around_message(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids before a user's message and after it, of a chat of this message alone."""
    if not tokenizer.chat_template:
        raise ValueError("own_prompts: the target's tokenizer has no chat template, so no place for a user's message")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": _MESSAGE}], tokenize=False)
    before, found, after = chat.partition(_MESSAGE)
    if not found or not before:
        raise ValueError(
            f"own_prompts: the chat template must show a message as it is, after a beginning, got {chat!r}"
        )
    opening, closing = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
    return opening, closing
