"""A list of prompts of which each takes the row of one that ended, beside the same list cut into batches.

    python bench/bench_list.py [--target T] [--draft D] [--prompts FILE] [--limit N] [--batch N] [--tokens N]
                               [--repeat N] [--json FILE]

"rows given on" is one call with the whole list, "batch by batch" a call for each --batch of it, in its order; whichever
begins, the other one does in the next repeat. Texts are greedy and the same both ways, and of every strategy, or it is
an error. Speeds are tokens per second of whole calls, prompts and all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import describe_machine
from rich.console import Console
from rich.table import Table

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.bench.prompts import SHIPPED, read_prompts
from pearl_decode.text import encode_prompt

PLANS: dict[str, dict[str, Any]] = {
    "autoregressive": {"strategy": "autoregressive"},
    "sequential 3": {"strategy": "sequential", "gamma": 3},
    "auto": {"strategy": "auto"},
}
WAYS = ("batch by batch", "rows given on")
Texts = list[list[int]]


@dataclass(frozen=True)
class Row:
    """A strategy: how many times as fast the list is with rows given on, and that over the first strategy's."""

    strategy: str
    tokens: int
    faster: float
    over_first: float


def ways(decoder: PearlDecoder, prompts: Texts, params: SamplingParams) -> dict[str, Callable[[str], Texts]]:
    """What decodes the list, given a strategy."""

    def decode(strategy: str, size: int) -> Texts:
        parts = [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]
        results = [result for part in parts for result in decoder.generate(part, params, **PLANS[strategy])]
        if errors := [result.error for result in results if result.error]:
            raise SystemExit(f"{strategy}: {errors[0]}")
        return [result.token_ids for result in results]

    sizes = dict(zip(WAYS, (decoder.max_batch, len(prompts)), strict=True))
    return {way: lambda strategy, size=size: decode(strategy, size) for way, size in sizes.items()}


def measure(decoder: PearlDecoder, prompts: Texts, params: SamplingParams, repeat: int) -> list[Row]:
    decode = ways(decoder, prompts, params)
    seconds: dict[tuple[str, str], list[float]] = {(name, way): [] for name in PLANS for way in WAYS}
    wanted: Texts = []
    for turn in range(repeat + 1):  # in the first, times are learnt and memory is found
        for name in PLANS:
            for way in WAYS if turn % 2 else WAYS[::-1]:
                begin = time.perf_counter()
                texts = decode[way](name)
                if turn:
                    seconds[name, way].append(time.perf_counter() - begin)
                wanted = wanted or texts
                if texts != wanted:
                    raise SystemExit(f"{name}, {way}: the texts differ")
    first, tokens = next(iter(PLANS)), sum(map(len, wanted))
    cut, given_on = WAYS

    def ratio(slow: tuple[str, str], fast: tuple[str, str]) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    return [
        Row(name, tokens, ratio((name, cut), (name, given_on)), ratio((first, given_on), (name, given_on)))
        for name in PLANS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2-135m", help="path, hub id or built-in name (default: %(default)s)")
    parser.add_argument("--draft", default="smollm2-135m-draft", help="the same (default: %(default)s)")
    parser.add_argument("--prompts", default=SHIPPED, metavar="FILE", help="JSON lines (default: those that ship)")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts of each task (default: all)")
    parser.add_argument("--batch", type=int, default=8, help="requests at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=384, help="at most, of an answer (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parsed = parser.parse_args()
    with PearlDecoder.from_pretrained(parsed.target, parsed.draft, max_batch=parsed.batch) as decoder:
        read = read_prompts(parsed.prompts, parsed.limit)
        prompts = [encode_prompt(decoder.tokenizer, each.prompt) for each in read]
        rows = measure(decoder, prompts, SamplingParams(max_tokens=parsed.tokens), parsed.repeat)
    table = Table("strategy", "tokens", "x batch by batch", f"x {next(iter(PLANS))}", title=WAYS[1])
    for row in rows:
        table.add_row(row.strategy, str(row.tokens), f"{row.faster:.2f}", f"{row.over_first:.2f}")
    Console().print(table)
    if parsed.json:
        settings = {name: getattr(parsed, name) for name in ("target", "draft", "batch", "tokens", "repeat")}
        settings |= {"prompts": Path(parsed.prompts).name, "texts": len(prompts)}
        content = {"settings": settings, "machine": describe_machine(), "rows": list(map(asdict, rows))}
        parsed.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
