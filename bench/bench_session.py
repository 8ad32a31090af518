"""A conversation in a session, which does not read again what was said, beside the same one read anew for every answer.

    python bench/bench_session.py [--target T] [--draft D] [--tokens N] [--repeat N] [--json FILE]

Each question stands after all that was said before it, as a chat template puts it; texts are greedy and the same both
ways, or it is an error. A turn is answered both ways, one after the other, and the other one begins in the next repeat.
"first" is the time until the first piece of the answer, "answer" until its end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import describe_machine
from rich.console import Console
from rich.table import Table

from pearl_decode import GenerationResult, PearlDecoder, SamplingParams, Session

QUESTIONS = (
    "What is a tide?",
    "Why are there two of them each day?",
    "Who was the first to explain it?",
    "Write a short poem about the sea.",
    "Now tell a child of seven why the water comes and goes.",
    "Which three words from all of this should she learn first?",
)
WAYS = ("anew", "session")


@dataclass(frozen=True)
class Row:
    """A turn: tokens of its prompt, those that were not read again, and how many times as fast the session was."""

    turn: int
    prompt_tokens: int
    reused_tokens: int
    first_faster: float
    answer_faster: float


@dataclass(frozen=True)
class Answer:
    prompt_tokens: int
    result: GenerationResult
    first_s: float
    answer_s: float


def answer(source: PearlDecoder | Session, ids: list[int], params: SamplingParams) -> Answer:
    begin, first_s = time.perf_counter(), 0.0
    with source.stream(ids, params) as stream:
        for _ in stream:
            first_s = first_s or time.perf_counter() - begin
    return Answer(len(ids), stream.result, first_s, time.perf_counter() - begin)


def converse(decoder: PearlDecoder, params: SamplingParams, begin: int) -> list[dict[str, Answer]]:
    """Both answers of each turn. begin: which way is the first in the first turn; they take turns."""
    tokenizer: Any = decoder.tokenizer
    messages: list[dict[str, str]] = []
    turns = []
    with decoder.session() as session:
        sources = {"anew": decoder, "session": session}
        for turn, question in enumerate(QUESTIONS):
            messages.append({"role": "user", "content": question})
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            order = WAYS if (begin + turn) % 2 else WAYS[::-1]
            answers = {way: answer(sources[way], ids, params) for way in order}
            if answers["anew"].result.token_ids != answers["session"].result.token_ids:
                raise SystemExit(f"turn {turn + 1}: the answers differ")
            messages.append({"role": "assistant", "content": answers["session"].result.text})
            turns.append(answers)
    return turns


def rows_of(conversations: list[list[dict[str, Answer]]]) -> list[Row]:
    ratios: dict[tuple[int, str], list[float]] = defaultdict(list)
    for turns in conversations:
        for turn, answers in enumerate(turns):
            for what in ("first_s", "answer_s"):
                anew, kept = (getattr(answers[way], what) for way in WAYS)
                ratios[turn, what].append(anew / kept)
    last = [answers["session"] for answers in conversations[-1]]
    return [
        Row(
            turn + 1,
            given.prompt_tokens,
            given.result.stats.reused_tokens,
            *(statistics.median(ratios[turn, what]) for what in ("first_s", "answer_s")),
        )
        for turn, given in enumerate(last)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2-135m", help="path, hub id or built-in name (default: %(default)s)")
    parser.add_argument("--draft", default="smollm2-135m-draft", help="the same (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="at most, of an answer (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="conversations (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parsed = parser.parse_args()
    params = SamplingParams(max_tokens=parsed.tokens)
    with PearlDecoder.from_pretrained(parsed.target, parsed.draft) as decoder:
        converse(decoder, params, 0)  # times are learnt, memory is found
        rows = rows_of([converse(decoder, params, begin) for begin in range(parsed.repeat)])
    table = Table(
        "turn", "prompt tokens", "not read again", "x sooner: first piece", "x faster: answer", title="sessions"
    )
    for row in rows:
        counts = (row.turn, row.prompt_tokens, row.reused_tokens)
        table.add_row(*map(str, counts), f"{row.first_faster:.2f}", f"{row.answer_faster:.2f}")
    Console().print(table)
    if parsed.json:
        settings = {name: getattr(parsed, name) for name in ("target", "draft", "tokens", "repeat")}
        content = {"settings": settings, "machine": describe_machine(), "rows": list(map(asdict, rows))}
        parsed.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
