"""The options of `pearl-decode generate`, and what they mean together."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pearl_decode.builtin import BUILTIN_DRAFT, BUILTIN_TARGET
from pearl_decode.cli.console import BAD_ARGUMENTS, CliError

if TYPE_CHECKING:
    from pearl_decode.sampling import SamplingParams

NO_DRAFT = "none"
STRATEGIES = ("auto", "pearl", "sequential", "lookup", "autoregressive")
DRAFTLESS = ("auto", "lookup", "autoregressive")
RULES = ("token", "block", "coupled", "greedy")
DEFAULT_RULE = "block"
DTYPES = ("float32", "bfloat16", "float16")
DTYPE_HELP = "of both models (default: the checkpoint's; on a CPU of the weights only, computed in float32)"
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "seed", "max_tokens", "ignore_eos")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="prompts; none, or -, reads one from standard input")

    models = parser.add_argument_group("models")
    models.add_argument(
        "--target", default=BUILTIN_TARGET, help=f"path, hub id, or the built-in {BUILTIN_TARGET} (default)"
    )
    models.add_argument(
        "--draft",
        help="path, hub id, what distill made, first-layers:N (the target's own first N layers) or none; "
        f"default for the built-in target: {BUILTIN_DRAFT}, distilled for it",
    )
    models.add_argument("--dtype", choices=DTYPES, help=DTYPE_HELP)
    add_devices(models)

    decoding = parser.add_argument_group("decoding")
    add_decoding(decoding)

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    sampling.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K likeliest; 0 is off (default)")
    sampling.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="keep this much mass; 1 is off (default)"
    )
    sampling.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="keep what is at least P times as likely as the likeliest; 0 is off (default)",
    )
    sampling.add_argument("--seed", type=int, help="the same seed gives the same text (default: a fresh one)")
    sampling.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default: %(default)s")
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    sampling.add_argument("--ignore-eos", action="store_true", help="go on past the model's end-of-sequence token")

    output = parser.add_argument_group("input and output")
    output.add_argument("--raw", action="store_true", help="do not apply the tokenizer's chat template")
    output.add_argument("--no-stream", action="store_true", help="print the text when it is complete")
    output.add_argument("--json", action="store_true", help="print one JSON object per answer")
    output.add_argument(
        "--batch",
        metavar="FILE.jsonl",
        help='answer every line {"prompt": ...}, which may set its own sampling; prints one JSON object per line',
    )
    output.add_argument("--compare", action="store_true", help="measure every strategy on the prompt and print a table")
    output.add_argument(
        "--repeat", type=positive, default=3, metavar="N", help="with --compare: runs per strategy (default: 3)"
    )


def add_devices(group: Any) -> None:
    """Where the models of a pair are, and whether they are compiled there."""
    group.add_argument(
        "--target-device",
        metavar="DEVICE",
        help="such as cpu or cuda:1; auto spreads the target over all GPUs (default: the GPU if there is one)",
    )
    group.add_argument("--draft-device", metavar="DEVICE", help="default: the target's")
    group.add_argument(
        "--no-compile",
        action="store_true",
        help="on a GPU, start within seconds whatever the model: torch does not fuse its small kernels",
    )


def add_decoding(group: Any) -> None:
    """How to decode: strategy, gamma and rule."""
    group.add_argument("--strategy", choices=STRATEGIES, default="auto", help="default: %(default)s")
    group.add_argument(
        "--gamma",
        type=positive_or_auto,
        default="auto",
        metavar="N",
        help="tokens drafted per round (default: %(default)s)",
    )
    group.add_argument(
        "--rule",
        choices=RULES,
        help=f"rule of acceptance (default: {DEFAULT_RULE}; coupled with --seed, which then always gives one text)",
    )


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {value}")
    return value


def positive_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return positive(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1 or auto, got {text!r}") from None


def check(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other, and fill in the rule and the draft that were left open."""
    settle_rule(args)
    if args.batch is not None and args.prompt:
        raise CliError("--batch reads its prompts from the file: give no other prompt", BAD_ARGUMENTS)
    if args.batch is not None and args.compare:
        raise CliError("--compare measures one prompt, not a batch", BAD_ARGUMENTS)
    if args.compare and len(args.prompt) > 1:
        raise CliError(f"--compare measures one prompt, got {len(args.prompt)}", BAD_ARGUMENTS)
    settle_draft(args)


def settle_draft(args: argparse.Namespace) -> None:
    """Fill in the draft that was left open, leave out one that would not be used, and refuse to draft without one."""
    fill_in_draft(args)
    if args.strategy in ("lookup", "autoregressive") and not args.compare:
        args.draft = None
        return
    if args.draft is None and (args.strategy not in DRAFTLESS or args.compare):
        raise CliError(
            f"strategy {args.strategy} needs a draft: give --draft a path, a hub id or first-layers:N, "
            "or use --strategy autoregressive",
            BAD_ARGUMENTS,
        )


def fill_in_draft(args: argparse.Namespace) -> None:
    if args.draft is None and args.target == BUILTIN_TARGET:
        args.draft = BUILTIN_DRAFT
    if args.draft == NO_DRAFT:
        args.draft = None


def settle_rule(args: argparse.Namespace) -> None:
    """Only a coupled text is the seed's alone: the others also depend on who drafted what, and so on time."""
    if args.rule is None:
        args.rule = DEFAULT_RULE if args.seed is None else "coupled"


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The sampling options as the decoder takes them; out-of-range values end the command."""
    from pearl_decode.sampling import SamplingParams

    try:
        return SamplingParams(stop=tuple(args.stop), **{name: getattr(args, name) for name in SAMPLING_FIELDS})
    except ValueError as error:
        raise CliError(bare(error), BAD_ARGUMENTS) from error


def bare(error: object) -> str:
    """The message without the class it comes from, which means nothing on a command line."""
    return str(error).removeprefix("SamplingParams: ")
