"""pearl-decode bench: strategies and other projects' decoders on one pair, side by side in one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pearl_decode.builtin import BUILTIN_DRAFT, BUILTIN_TARGET
from pearl_decode.cli import bench_output, options, pair
from pearl_decode.cli.console import BAD_ARGUMENTS, FAILED, CliError, note
from pearl_decode.cli.timed import countdown

if TYPE_CHECKING:
    from pearl_decode.bench.measure import Job, Measurement
    from pearl_decode.bench.sweep import Point
    from pearl_decode.bench.systems import System
    from pearl_decode.decoder import PearlDecoder

DESCRIPTION = """Measure every strategy, and other projects' decoders if wanted, on one pair of models.
Runs are taken in turns; only verified tokens up to the end of the text count; times include prompt processing.
With no options: the built-in pair on the prompts that ship with it."""
PEERS = ("transformers", "flashspec", "economize")
PEER_MODELS = ("shared", "plain")
GAMMAS = range(1, 9)  # of --gamma-sweep
SWEEP = "gamma sweep"  # among the systems that failed
DEFAULT_GAMMA = 4
# The draft that ships is right in 40 to 70% of its tokens: of a much longer chain little would be accepted.
BUILTIN_GAMMA = 3


def add_command(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure strategies and peers side by side", description=DESCRIPTION)
    pair.add_pair(parser)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--prompts", metavar="FILE.jsonl", help='lines of {"prompt": ..., "task": ...} (default: ours)')
    what.add_argument("--limit", type=options.positive, metavar="N", help="the first N prompts of each task only")
    what.add_argument("--strategies", type=_names(options.STRATEGIES), metavar="A,B", help="default: all")
    what.add_argument("--peers", type=_names(PEERS), default=[], metavar="A,B", help=f"of {', '.join(PEERS)}")
    what.add_argument(
        "--peer-models",
        choices=PEER_MODELS,
        default="shared",
        help="give peers the models as we run them (default), or plain float32 copies with torch's own layers",
    )
    what.add_argument(
        "--gamma",
        type=options.positive,
        metavar="N",
        help="tokens drafted per round, by peers too "
        f"(default: {DEFAULT_GAMMA}, {BUILTIN_GAMMA} for the built-in pair; auto and lookup choose their own)",
    )
    what.add_argument("--rule", choices=options.RULES, default=options.DEFAULT_RULE, help="default: %(default)s")
    what.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    what.add_argument("--seed", type=int, default=1, help="of sampled texts (default: %(default)s)")
    what.add_argument("--batch", type=options.positive, default=1, metavar="N", help="prompts per call (default: 1)")
    what.add_argument("--tokens", type=options.positive, default=64, metavar="N", help="most per prompt (default: 64)")
    what.add_argument("--repeat", type=options.positive, default=3, metavar="N", help="default: %(default)s")
    what.add_argument("--raw", action="store_true", help="do not apply the tokenizer's chat template")
    what.add_argument("--gamma-sweep", action="store_true", help="also measure gamma 1 to 8, on one prompt per task")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    output.add_argument("--plot", metavar="DIR", help="write plots, bench.json and a trace for Perfetto here")
    parser.set_defaults(run=run, strategy=bench_output.BASELINE)


def run(args: argparse.Namespace) -> int:
    strategies = _settle(args)
    from pearl_decode.bench.prompts import SHIPPED, read_prompts
    from pearl_decode.cli.generate import load

    try:
        prompts = read_prompts(args.prompts or SHIPPED, args.limit)
    except ValueError as error:
        raise CliError(error, BAD_ARGUMENTS) from error
    if args.plot is not None:
        bench_output.check_plots(args.plot)
    with load(args) as decoder:
        from pearl_decode.bench.report import build_report
        from pearl_decode.bench.summary import summarise

        decoder.max_batch = max(decoder.max_batch, args.batch)
        jobs = _jobs(decoder, args, prompts)
        measurement, points = _measure(decoder, args, strategies, jobs)
        if not measurement.samples:
            raise CliError("; ".join(f"{name}: {error}" for name, error in measurement.errors.items()))
        rows = summarise(measurement, greedy=args.temperature == 0)
        report = build_report(
            bench_output.settings(args, decoder, strategies, prompts), measurement, rows, points, args.peers
        )
        if args.json:
            print(json.dumps(report, ensure_ascii=False), flush=True)
        else:
            bench_output.print_tables(args, report, rows)
        for name, reason in measurement.errors.items():
            note(f"pearl-decode: error: {name}: {reason}")
        if args.plot is not None:
            bench_output.write_plots(Path(args.plot), decoder, strategies, args, jobs, rows, points, report)
    return FAILED if any(name in measurement.errors for name in (*strategies, SWEEP)) else 0


def _names(known: Sequence[str]) -> Any:
    """An argparse type: a list of these names, split at commas."""

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"expected names of {', '.join(known)}, got {text!r}")
        return names

    return parse


def _settle(args: argparse.Namespace) -> list[str]:
    """Fill in what was left open. Returns the strategies to measure, the one they are compared with first."""
    from pearl_decode.sampling import SamplingParams

    options.fill_in_draft(args)
    args.own_gamma = args.gamma is None
    if args.gamma is None:
        args.gamma = BUILTIN_GAMMA if (args.target, args.draft) == (BUILTIN_TARGET, BUILTIN_DRAFT) else DEFAULT_GAMMA
    try:  # or each strategy would refuse them by itself
        SamplingParams(max_tokens=args.tokens, temperature=args.temperature, seed=args.seed)
    except ValueError as error:
        raise CliError(options.bare(error), BAD_ARGUMENTS) from error
    chosen: list[str] = args.strategies or list(options.STRATEGIES)
    if args.draft is None and (
        (args.strategies and args.strategies != [bench_output.BASELINE]) or args.peers or args.gamma_sweep
    ):
        raise CliError("drafting needs a draft: give --draft a path, a hub id or first-layers:N", BAD_ARGUMENTS)
    if args.draft is None:
        return [bench_output.BASELINE]
    return [bench_output.BASELINE, *(name for name in chosen if name != bench_output.BASELINE)]


def _jobs(decoder: PearlDecoder, args: argparse.Namespace, prompts: Sequence[Any]) -> list[Job]:
    """Prompts of the same task, --batch of them at a time."""
    from pearl_decode.bench.measure import Job
    from pearl_decode.cli.answers import encode

    tokenizer: Any = decoder.tokenizer
    jobs = []
    for task in dict.fromkeys(prompt.task for prompt in prompts):
        texts = [prompt.prompt for prompt in prompts if prompt.task == task]
        ids: Any = [tokenizer(text)["input_ids"] if args.raw else encode(decoder, text, raw=False) for text in texts]
        jobs += [Job(task, ids[start : start + args.batch]) for start in range(0, len(ids), args.batch)]
    return jobs


def _measure(
    decoder: PearlDecoder, args: argparse.Namespace, strategies: list[str], jobs: list[Job]
) -> tuple[Measurement, list[Point]]:
    from pearl_decode.bench.measure import measure
    from pearl_decode.bench.sweep import SPEEDS, sweep
    from pearl_decode.bench.systems import own_systems

    eos_ids = _eos_ids(decoder)
    # These choose their gamma as they go, unless one is asked for.
    gammas: dict[str, int | str] = {"auto": "auto", "lookup": "auto"} if args.own_gamma else {}
    systems = own_systems(decoder, strategies, args.temperature, args.seed, gammas)
    systems += _peers(decoder, args, eos_ids)
    timing = {"max_tokens": args.tokens, "repeat": args.repeat, "eos_ids": eos_ids}
    with countdown("measuring") as report:
        measurement = measure(systems, jobs, **timing, report=report)
    points: list[Point] = []
    if args.gamma_sweep:
        firsts = list({job.task: job for job in reversed(jobs)}.values())
        swept = [name for name in SPEEDS if name in strategies]
        sampling = {"temperature": args.temperature, "seed": args.seed}
        try:
            with countdown("gamma 1 to 8:") as report:
                points = sweep(decoder, swept, GAMMAS, firsts, **sampling, **timing, report=report)
        except RuntimeError as error:
            measurement.errors[SWEEP] = str(error)
    return measurement, points


def _eos_ids(decoder: PearlDecoder) -> list[int]:
    tokenizer: Any = decoder.tokenizer
    return sorted({*decoder.target.eos_ids(), *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})


def _peers(decoder: PearlDecoder, args: argparse.Namespace, eos_ids: list[int]) -> list[System]:
    if not args.peers or decoder.draft is None:
        return []
    from pearl_decode.bench.peer_models import plain
    from pearl_decode.bench.peers import Pair, peer_systems

    models = decoder.target.model, decoder.draft.model
    if args.peer_models == "plain":
        models = plain(models[0]), plain(models[1])
    return peer_systems(args.peers, Pair(*models, eos_ids, args.gamma, args.temperature, args.seed))
