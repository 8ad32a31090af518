"""Drafts for one target, side by side: acceptance per token, tokens per target forward, and the cost of a step.

    python bench/bench_draft.py --prompts FILE.jsonl --limit 4

The target answers every prompt once greedily and once at temperature 0.7. On these texts each draft's acceptance is
exact, with no draft text needed: what a speculative decoder emits has the target's law whatever the draft, and its
token x was the draft's own with probability min(1, draft_prob(x) / target_prob(x)); when greedy, if both likeliest
tokens are the same. Tokens per target forward follow from these, round by round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness import describe_machine
from rich.console import Console
from rich.table import Table

from pearl_decode.cache import WindowCache
from pearl_decode.checkpoints import load_model, load_tokenizer
from pearl_decode.distill.answers import Job, answer_batch
from pearl_decode.distill.prompts import Prompt
from pearl_decode.drafts import draft_directory, load_draft
from pearl_decode.first_layers import first_layers
from pearl_decode.inputs import numbered_lines
from pearl_decode.lookup import NGRAMS, PromptLookup
from pearl_decode.models import CausalModel
from pearl_decode.storage import pack_weights, store_in_int8
from pearl_decode.text import encode_prompt

TEMPERATURES = (0.0, 0.7)
GAMMAS = (4, 8)
LOOKUP = "prompt lookup"
WITHOUT_INDUCTION = "without induction"
CONTEXT = 256  # cached tokens when a step is timed
# Of a text and the target's probabilities (positions, vocab): how likely each of its tokens was the draft's.
Guess = Callable[[list[int], int, float, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One draft on one task.

    acceptance: per token, given the target's text before it
    acceptance_by_match: the same by how many of the last tokens before it came before, in that order, as prompt lookup
                         counts them; and the share of the tokens that it is of
    """

    task: str
    draft: str
    temperature: float
    tokens: int
    acceptance: float
    acceptance_by_match: dict[int, tuple[float, float]]
    sequential_tokens_per_forward: dict[int, float]
    pearl_tokens_per_forward: dict[int, float]


def probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """One-hot when greedy."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits.float() / temperature).softmax(-1)


@torch.inference_mode()
def text_logits(model: CausalModel, ids: list[int], start: int) -> torch.Tensor:
    """Logits of the tokens ids[start:]: (positions, vocab)."""
    return model.forward(torch.tensor([ids[:-1]]), [0], WindowCache(len(ids)), keep=len(ids) - start)[0]


def model_guess(draft: CausalModel) -> Guess:
    d2t = draft.d2t

    def guess(ids: list[int], start: int, temperature: float, target_probs: torch.Tensor) -> torch.Tensor:
        own = probs(text_logits(draft, ids, start), temperature)
        draft_probs = own if d2t is None else torch.zeros_like(target_probs).index_copy_(1, d2t, own)
        tokens = torch.tensor(ids[start:])[:, None]
        return (draft_probs.gather(1, tokens) / target_probs.gather(1, tokens)).clamp(max=1)[:, 0]

    return guess


def lookup_guess(ids: list[int], start: int, temperature: float, target_probs: torch.Tensor) -> torch.Tensor:
    """The token after the latest earlier occurrence of the last 3, 2 or 1 tokens; one-hot, so accepted iff the same."""
    seen: dict[tuple[int, ...], int] = {}
    hits = []
    for place in range(1, len(ids)):
        known = [tuple(ids[place - n : place]) for n in (3, 2, 1) if place >= n]
        if place >= start:
            drafted = next((seen[gram] for gram in known if gram in seen), None)
            hits.append(float(drafted == ids[place]))
        for gram in known:
            seen[gram] = ids[place]
    return torch.tensor(hits)


def sequential_rounds(accepted: list[bool], gamma: int) -> int:
    """Target forwards for these tokens: each round up to gamma accepted tokens and one of the target's own."""
    place = rounds = 0
    while place < len(accepted):
        run = 0
        while run < gamma and place + run < len(accepted) and accepted[place + run]:
            run += 1
        place, rounds = place + run + 1, rounds + 1
    return rounds


def pearl_rounds(accepted: list[bool], gamma: int) -> int:
    """The same for PEARL: a chain of window + 1 drafted tokens, and no token of the target's own after it."""
    place = rounds = window = 0
    while place < len(accepted):
        chain = accepted[place : place + window + 1]
        refused = chain.index(False) if False in chain else None
        place += window + 1 if refused is None else refused + 1
        window = gamma - 1 if refused is None else 0
        rounds += 1
    return rounds


def measure(target: CausalModel, drafts: dict[str, Guess], tasks: dict[str, list[Prompt]], tokens: int) -> list[Row]:
    console = Console(stderr=True)
    rows = []
    for task, prompts in tasks.items():
        for temperature in TEMPERATURES:
            console.print(f"{task}, temperature {temperature:g}: {len(prompts)} prompts", highlight=False)
            jobs = [Job(prompt, 0, temperature, seed) for seed, prompt in enumerate(prompts)]
            with torch.inference_mode():
                answers = list(answer_batch(target, jobs, tokens, target.eos_ids()))
            chances: dict[str, list[torch.Tensor]] = defaultdict(list)
            matched: list[int] = []
            for answer in sorted(answers, key=lambda answer: answer.key):
                ids, start = answer.prompt_ids + answer.answer_ids, len(answer.prompt_ids)
                matched += matches(ids, start)
                target_probs = probs(text_logits(target, ids, start), temperature)
                # When greedy, near-ties may be rounded otherwise in one forward: the text's token is the target's.
                if temperature == 0:
                    target_probs = torch.nn.functional.one_hot(
                        torch.tensor(ids[start:]), target_probs.shape[-1]
                    ).float()
                for name, guess in drafts.items():
                    chances[name].append(guess(ids, start, temperature, target_probs))
            rows += [summarise(task, name, temperature, each, matched) for name, each in chances.items()]
    return rows


def matches(ids: list[int], start: int) -> list[int]:
    """Before each of the tokens ids[start:], how much of the text's end came before."""
    lookup, found = PromptLookup(ids[:start]), []
    for token in ids[start:]:
        found.append(lookup.matched)
        lookup.extend([token])
    return found


def summarise(task: str, name: str, temperature: float, chances: list[torch.Tensor], matched: list[int]) -> Row:
    generator = random.Random(0)
    accepted = [[generator.random() < chance for chance in text.tolist()] for text in chances]
    total = sum(len(text) for text in accepted)

    def per_forward(rounds: Callable[[list[bool], int], int]) -> dict[int, float]:
        return {gamma: total / sum(rounds(text, gamma) for text in accepted) for gamma in GAMMAS}

    every, of = torch.cat(chances), torch.tensor(matched)
    by_match = {
        n: (float(every[of == n].mean()), float((of == n).float().mean())) for n in (0, *sorted(NGRAMS)) if n in matched
    }
    rounds = per_forward(sequential_rounds), per_forward(pearl_rounds)
    return Row(task, name, temperature, total, float(every.mean()), by_match, *rounds)


def step_ms(models: dict[str, CausalModel], repeats: int = 40) -> dict[str, float]:
    """Median milliseconds of one token at batch 1 with CONTEXT tokens cached, one thread, in turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ids = torch.randint(0, 1000, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
    caches = {name: WindowCache(CONTEXT + 1) for name in models}
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for name, model in models.items():
            model.forward(ids, [0], caches[name], keep=1)
        for turn in range(repeats + 3):
            for name, model in models.items():
                start = time.perf_counter()
                model.forward(ids[:, :1], [CONTEXT], caches[name], keep=1)
                if turn >= 3:
                    times[name].append(1e3 * (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return {name: statistics.median(values) for name, values in times.items()}


def read_tasks(path: Path, limit: int | None, tokenizer: Any) -> dict[str, list[Prompt]]:
    tasks: dict[str, list[Prompt]] = defaultdict(list)
    for _, line in numbered_lines(path.read_text(encoding="utf-8")):
        entry = json.loads(line)
        if limit is None or len(tasks[entry["task"]]) < limit:
            tasks[entry["task"]].append(Prompt(str(entry["id"]), encode_prompt(tokenizer, entry["prompt"])))
    return dict(tasks)


def show(rows: list[Row], steps: dict[str, float]) -> None:
    columns = ["task", "draft", "temperature", "tokens", "acceptance"]
    columns += [f"{kind} {gamma}" for kind in ("sequential", "pearl") for gamma in GAMMAS]
    table = Table(*columns, title="acceptance per token, and tokens per target forward at gamma")
    for row in rows:
        forwards = [*row.sequential_tokens_per_forward.values(), *row.pearl_tokens_per_forward.values()]
        cells = [row.task, row.draft, f"{row.temperature:g}", str(row.tokens), f"{row.acceptance:.3f}"]
        table.add_row(*cells, *(f"{value:.2f}" for value in forwards))
    console = Console(width=140, highlight=False)
    console.print(table)
    for name, milliseconds in steps.items():
        console.print(f"{name}: {milliseconds:.2f} ms per token, target/this {steps['target'] / milliseconds:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=Path, required=True, help='lines of {"id", "task", "prompt"}')
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default="smollm2-135m-draft", help="directory of a distilled draft, or its name")
    parser.add_argument("--truncated", type=int, nargs="*", default=[2, 6], help="first-layers:N beside it")
    parser.add_argument("--limit", type=int, help="prompts per task")
    parser.add_argument("--tokens", type=int, default=128, help="per answer, at most")
    parser.add_argument("--json", type=Path, help="write versions and rows there")
    args = parser.parse_args()
    tokenizer = load_tokenizer("target", args.target)
    target = CausalModel(load_model("target", args.target, None, torch.device("cpu")), "target")
    directory = draft_directory(args.draft)
    if directory is None:
        parser.error(f"--draft: {args.draft} holds no distilled draft")
    bare: Any = load_draft(directory, target.model)
    bare.induction = None
    loaded = {directory.name: load_draft(directory, target.model), f"{directory.name} {WITHOUT_INDUCTION}": bare}
    loaded |= {f"first-layers:{count}": first_layers(target.model, count) for count in args.truncated}
    for model in loaded.values():
        store_in_int8(model)  # as decoders do
    pack_weights(target.model, *loaded.values())
    models = {name: CausalModel(model, "draft") for name, model in loaded.items()}
    steps = step_ms({"target": target, **models})
    drafts: dict[str, Guess] = {name: model_guess(model) for name, model in models.items()}
    drafts[LOOKUP] = lookup_guess
    tasks = read_tasks(args.prompts, args.limit, tokenizer)
    rows = measure(target, drafts, tasks, args.tokens)
    show(rows, steps)
    if args.json:
        report = {
            "machine": describe_machine(),
            "settings": {"limit": args.limit, "tokens": args.tokens, "context_of_steps": CONTEXT},
            "step_ms": steps,
            "rows": [asdict(row) for row in rows],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
