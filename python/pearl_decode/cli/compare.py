"""pearl-decode generate --compare: every strategy on one prompt, side by side in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

from pearl_decode.cli.answers import encode, summary
from pearl_decode.cli.console import BAD_ARGUMENTS, CliError, note, print_json, progress, table
from pearl_decode.cli.options import bare
from pearl_decode.decoder import PearlDecoder
from pearl_decode.lanes.cpu import available_cores
from pearl_decode.result import GenerationResult
from pearl_decode.sampling import SamplingParams

BASELINE = "autoregressive"
MEASURED = (BASELINE, "sequential", "pearl", "auto")
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Row:
    """One strategy's measurements. acceptance: None where nothing was drafted."""

    strategy: str
    tokens_per_s: list[float]
    tokens_per_target_forward: float
    acceptance: float | None
    ratio: float


def run_compare(decoder: PearlDecoder, args: argparse.Namespace, prompt: str, params: SamplingParams) -> int:
    """Stream the answer once, measure every strategy, and print the table."""
    # One seed for all runs, or each would draw another text.
    params = replace(params, seed=params.resolved_seed())
    ids = encode(decoder, prompt, args.raw)
    text = _stream(decoder, ids, params, quiet=args.json)
    with progress("measuring") as report:
        runs = measure(decoder, ids, params, args.repeat, report)
    rows = summarise(runs)
    same = same_text(runs, params, args.rule)
    if args.json:
        print_json(_as_json(args, prompt, text, rows, same))
    else:
        _print_table(args, params, decoder, rows, same)
    return 0


def _stream(decoder: PearlDecoder, ids: str | list[int], params: SamplingParams, *, quiet: bool) -> str:
    try:
        stream = decoder.stream(ids, params)
    except ValueError as error:
        raise CliError(bare(error), BAD_ARGUMENTS) from error
    with stream:
        for piece in stream:
            if not quiet:
                print(piece, end="", flush=True)
    if not quiet:
        print(flush=True)
    note(summary(stream.result))
    return _checked(stream.result).text


def measure(
    decoder: PearlDecoder, ids: str | list[int], params: SamplingParams, repeat: int, report: Callable[[str], None]
) -> dict[str, list[GenerationResult]]:
    """Run every strategy `repeat` times, in turns, after a short warm-up of each."""
    for strategy in MEASURED:
        short = replace(params, max_tokens=min(WARM_UP_TOKENS, params.max_tokens))
        _checked(decoder.generate([ids], short, strategy=strategy)[0])
    runs: dict[str, list[GenerationResult]] = {strategy: [] for strategy in MEASURED}
    for turn in range(repeat):
        report(f"measuring {', '.join(MEASURED)}: run {turn + 1} of {repeat}")
        # Another one begins each turn, so that a machine that warms up or slows down favours none.
        first = turn % len(MEASURED)
        for strategy in MEASURED[first:] + MEASURED[:first]:
            runs[strategy].append(_checked(decoder.generate([ids], params, strategy=strategy)[0]))
    return runs


def summarise(runs: dict[str, list[GenerationResult]]) -> list[Row]:
    baseline = median(result.stats.tokens_per_s for result in runs[BASELINE])
    rows = []
    for strategy, results in runs.items():
        speeds = [result.stats.tokens_per_s for result in results]
        emitted = sum(result.stats.emitted_tokens for result in results)
        forwards = sum(result.stats.target_forwards for result in results)
        ratio = median(speeds) / baseline if baseline else 0.0
        rows.append(Row(strategy, speeds, emitted / max(forwards, 1), _acceptance(results), ratio))
    return rows


def _acceptance(results: Sequence[GenerationResult]) -> float | None:
    """Of the drafted tokens that were judged one by one, the share that was accepted."""
    judged = sum(result.stats.judged_tokens for result in results)
    return sum(result.stats.accepted_tokens for result in results) / judged if judged else None


def same_text(runs: dict[str, list[GenerationResult]], params: SamplingParams, rule: str) -> bool | None:
    """Whether every run gave the same tokens; None where the rule does not promise it."""
    if params.temperature > 0 and rule not in ("coupled", "greedy"):
        return None
    texts = {tuple(result.token_ids) for results in runs.values() for result in results}
    return len(texts) == 1


def _checked(result: GenerationResult) -> GenerationResult:
    if result.error is not None:
        raise CliError(bare(result.error))
    return result


def _print_table(
    args: argparse.Namespace, params: SamplingParams, decoder: PearlDecoder, rows: list[Row], same: bool | None
) -> None:
    columns = ("strategy", "tokens/s", "range", "tokens/target forward", "acceptance", "ratio")
    cells = [
        (
            row.strategy,
            f"{median(row.tokens_per_s):.1f}",
            f"{min(row.tokens_per_s):.1f}-{max(row.tokens_per_s):.1f}",
            f"{row.tokens_per_target_forward:.2f}",
            "-" if row.acceptance is None else f"{row.acceptance:.0%}",
            f"{row.ratio:.2f}x",
        )
        for row in rows
    ]
    print()
    table(columns, cells)
    dtype = str(decoder.target.model.dtype).removeprefix("torch.")
    print(f"target {args.target}, draft {args.draft}, {dtype}, gamma {args.gamma}, rule {args.rule},")
    print(
        f"temperature {params.temperature:g}, up to {params.max_tokens} tokens, {len(available_cores())} cores; "
        f"median of {args.repeat} runs each, taken in turns"
    )
    if same is not None:
        print(
            "every run gave the same text"
            if same
            else "NOT every run gave the same text: near-ties were rounded differently"
        )


def _as_json(args: argparse.Namespace, prompt: str, text: str, rows: list[Row], same: bool | None) -> dict[str, object]:
    return {
        "prompt": prompt,
        "text": text,
        "target": args.target,
        "draft": args.draft,
        "gamma": args.gamma,
        "rule": args.rule,
        "same_text": same,
        "rows": [asdict(row) for row in rows],
    }
