"""A list of prompts of which each takes the row of one that ended, beside the same list cut into batches.

    python bench/bench_list.py [--target T] [--draft D] [--prompts FILE] [--limit N] [--batch N] [--tokens N]
                               [--repeat N] [--json FILE]
    python bench/bench_list.py --synthetic PAIR [--device D] [--texts N] [--context N] [--acceptance A] ...

"rows given on" is one call with the whole list, "batch by batch" a call for each --batch of it, in its order; whichever
begins, the other one does in the next repeat. Texts are greedy and the same both ways, and of every strategy, or it is
an error. Speeds are tokens per second of whole calls, prompts and all. Texts of a pair with random weights never end:
each is cut at a length of its own, an eighth of --tokens to all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness import describe_machine
from model_pairs import DTYPES, PAIRS, make_pair
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
FIRST = next(iter(PLANS))
CUT, GIVEN_ON = WAYS = ("batch by batch", "rows given on")
Ids = list[list[int]]


@dataclass(frozen=True)
class Row:
    """A strategy: how many times as fast the list is with rows given on, and that over the first strategy's."""

    strategy: str
    tokens: int
    faster: float
    over_first: float


@dataclass(frozen=True)
class Texts:
    """What is decoded, and by what."""

    decoder: PearlDecoder
    prompts: Ids
    params: list[SamplingParams]

    def decode(self, strategy: str, way: str) -> Ids:
        count = len(self.prompts)
        size = count if way == GIVEN_ON else self.decoder.max_batch
        answers: Ids = []
        for part in (slice(begin, begin + size) for begin in range(0, count, size)):
            for result in self.decoder.generate(self.prompts[part], self.params[part], **PLANS[strategy]):
                if result.error is not None:
                    raise SystemExit(f"{strategy}: {result.error}")
                answers.append(result.token_ids)
        return answers


def measure(texts: Texts, repeat: int) -> list[Row]:
    seconds: dict[tuple[str, str], list[float]] = {(name, way): [] for name in PLANS for way in WAYS}
    wanted: Ids = []
    for turn in range(repeat + 1):  # in the first, times are learnt and memory is found
        for name in PLANS:
            for way in WAYS if turn % 2 else WAYS[::-1]:
                begin = time.perf_counter()
                answers = texts.decode(name, way)
                if turn:
                    seconds[name, way].append(time.perf_counter() - begin)
                wanted = wanted or answers
                if answers != wanted:
                    raise SystemExit(f"{name}, {way}: the texts differ")

    def ratio(slow: tuple[str, str], fast: tuple[str, str]) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    tokens = sum(map(len, wanted))
    return [
        Row(name, tokens, ratio((name, CUT), (name, GIVEN_ON)), ratio((FIRST, GIVEN_ON), (name, GIVEN_ON)))
        for name in PLANS
    ]


def read_texts(args: argparse.Namespace) -> Texts:
    decoder = PearlDecoder.from_pretrained(args.target, args.draft, max_batch=args.batch)
    prompts = [encode_prompt(decoder.tokenizer, each.prompt) for each in read_prompts(args.prompts, args.limit)]
    return Texts(decoder, prompts, [SamplingParams(max_tokens=args.tokens)] * len(prompts))


def make_texts(args: argparse.Namespace) -> Texts:
    pair = make_pair(args.synthetic, torch.device(args.device), DTYPES[args.device])
    decoder = PearlDecoder(pair.target, pair.draft, max_batch=args.batch)
    prompts, whole = pair.prompts(args.texts, args.context), SamplingParams(max_tokens=args.tokens, ignore_eos=True)
    texts = Texts(decoder, prompts, [whole] * args.texts)
    if pair.agreement is not None:
        known = [prompt + text for prompt, text in zip(prompts, texts.decode(FIRST, CUT), strict=True)]
        pair.agreement.follow(known, args.context, args.acceptance)
    least, lot = max(1, args.tokens // 8), torch.Generator().manual_seed(1)
    lengths = torch.randint(least, args.tokens + 1, (args.texts,), generator=lot).tolist()
    return Texts(decoder, prompts, [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2-135m", help="path, hub id or built-in name (default: %(default)s)")
    parser.add_argument("--draft", default="smollm2-135m-draft", help="the same (default: %(default)s)")
    parser.add_argument("--prompts", default=SHIPPED, metavar="FILE", help="JSON lines (default: those that ship)")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts of each task (default: all)")
    parser.add_argument("--synthetic", choices=PAIRS, help="a pair with random weights in their place")
    parser.add_argument("--device", choices=DTYPES, default="cpu", help="of that pair (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=48, help="of that pair (default: %(default)s)")
    parser.add_argument("--context", type=int, default=128, help="tokens of its prompts (default: %(default)s)")
    parser.add_argument("--acceptance", type=float, default=0.8, help="of its draft (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="requests at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=384, help="at most, of an answer (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    args = parser.parse_args()
    texts = make_texts(args) if args.synthetic else read_texts(args)
    with texts.decoder:
        rows = measure(texts, args.repeat)
    table = Table("strategy", "tokens", f"x {CUT}", f"x {FIRST}", title=GIVEN_ON)
    for row in rows:
        table.add_row(row.strategy, str(row.tokens), f"{row.faster:.2f}", f"{row.over_first:.2f}")
    Console().print(table)
    if args.json:
        made, read = ("synthetic", "device", "context", "acceptance"), ("target", "draft")
        settings = {
            name: getattr(args, name) for name in ("batch", "tokens", "repeat", *(made if args.synthetic else read))
        }
        settings |= {"texts": len(texts.prompts)} | ({} if args.synthetic else {"prompts": Path(args.prompts).name})
        content = {"settings": settings, "machine": describe_machine(), "rows": list(map(asdict, rows))}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
