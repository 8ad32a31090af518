"""pearl-decode distill: make a draft for a target."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from pearl_decode.builtin import BUILTIN_TARGET, BuiltinModelError
from pearl_decode.cli.console import BAD_ARGUMENTS, FAILED, CliError, note
from pearl_decode.cli.options import positive

FILES = ("prompts", "out", "text", "initial_draft")  # options whose values are somebody's paths


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "distill",
        help="make a draft for a target",
        description="Make a draft for a target: a few of its layers, trained on its own answers to prompts.",
    )
    parser.add_argument(
        "--target", default=BUILTIN_TARGET, help=f"path, hub id, or the built-in {BUILTIN_TARGET} (default)"
    )
    parser.add_argument("--prompts", metavar="FILE.jsonl", help='lines of {"prompt": ..., "id": ...}')
    parser.add_argument(
        "--own-prompts",
        type=positive,
        metavar="N",
        help="let the target write so many itself, beside those of the file or without one",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the draft is written, with all work on it")
    parser.add_argument("--resume", action="store_true", help="go on with what DIR holds")
    parser.add_argument(
        "--text", action="append", default=[], metavar="FILE", help="plain text to learn from as well; may be repeated"
    )
    parser.add_argument("--layers", type=positive, metavar="N", help="of the draft (default: 2)")
    parser.add_argument(
        "--draft-vocab", type=positive, metavar="N", help="ids it can draw: the likeliest (default: 16384)"
    )
    parser.add_argument(
        "--initial-draft",
        metavar="DRAFT",
        help="go on from this one, with its ids unless --draft-vocab is given",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="learn from this many tokens, over all passes (default: 10 passes); "
        "0 only fits how far the draft trusts repetitions",
    )
    parser.add_argument(
        "--hours", type=float, metavar="H", help="answer and train at most this long; a last measurement comes after"
    )
    parser.add_argument("--answers", type=positive, default=3, metavar="N", help="per prompt (default: 3)")
    parser.add_argument("--answer-tokens", type=positive, default=256, metavar="N", help="at most (default: 256)")
    parser.add_argument("--batch-answers", type=positive, metavar="N", help="answers decoded at once")
    parser.add_argument(
        "--batch-tokens",
        type=positive,
        metavar="N",
        help="tokens per training step (default: 32768 on a GPU, 512 on a CPU)",
    )
    parser.add_argument("--learning-rate", type=float, default=2e-3, metavar="R", help="default: 0.002")
    parser.add_argument("--loss", choices=("kl", "tv", "mix"), default="mix", help="default: mix")
    parser.add_argument("--learn-prompts", action="store_true", help="learn from the words of the prompts as well")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from transformers.utils import logging

    from pearl_decode.checkpoints import LoadError
    from pearl_decode.distill import distill
    from pearl_decode.distill.report import Bars

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options = {name: value for name, value in vars(args).items() if name not in ("command", "run")}
    try:
        quality = distill(**options, command=_command(args), report=Bars())
    except (OSError, BuiltinModelError, LoadError) as error:
        raise CliError(error, FAILED) from error
    except ValueError as error:
        raise CliError(error, BAD_ARGUMENTS) from error
    note(
        f"{args.out}: acceptance {quality.acceptance:.3f} at temperature 1, greedy {quality.agreement:.3f}, "
        "on held-out prompts"
    )
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command as it can be typed again; of files only the names, which are nobody else's paths."""
    words = ["pearl-decode", "distill"]
    for name, value in vars(args).items():
        option = "--" + name.replace("_", "-")
        if name in ("command", "run", "resume") or value is None or value is False:
            continue
        if value is True:
            words.append(option)
            continue
        for each in value if isinstance(value, list) else [value]:
            shown = str(each).rstrip("/").rsplit("/", 1)[-1] if name in FILES else str(each)
            words += [option, shown]
    return shlex.join(words)
