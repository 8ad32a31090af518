"""pearl-decode generate: answer prompts."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pearl_decode.builtin import BUILTIN_TARGET, BuiltinModelError, ensure_builtin
from pearl_decode.cli import options
from pearl_decode.cli.console import BAD_ARGUMENTS, INTERRUPTED, CliError, note, progress
from pearl_decode.inputs import check_text

if TYPE_CHECKING:
    from pearl_decode import PearlDecoder, SamplingParams

DESCRIPTION = """Answer prompts with a target model and a draft that guesses for it.
The text is the target's own: speculation changes how fast it comes, not what it says."""


def add_command(commands: Any) -> None:
    parser = commands.add_parser("generate", help="answer prompts", description=DESCRIPTION)
    options.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    options.check(args)
    params = options.sampling_params(args)
    if args.batch is not None:
        from pearl_decode.cli.batch import answer_lines, read_lines

        lines = read_lines(args.batch, params)
        with load(args) as decoder:
            return answer_lines(decoder, args, lines)
    prompts = read_prompts(args.prompt)
    with load(args) as decoder:
        if args.compare:
            from pearl_decode.cli.compare import run_compare

            return run_compare(decoder, args, prompts[0], params)
        if len(prompts) > 1 or args.json or args.no_stream:
            from pearl_decode.cli.batch import Line, answer_lines

            return answer_lines(decoder, args, [Line(n, text, params) for n, text in enumerate(prompts, start=1)])
        return answer_streaming(decoder, args, prompts[0], params)


def read_prompts(prompts: list[str]) -> list[str]:
    """The prompts of the command line, or the one on standard input."""
    if not prompts and sys.stdin.isatty():
        raise CliError("no prompt: give one as an argument, on standard input, or with --batch", BAD_ARGUMENTS)
    if not prompts or prompts == ["-"]:
        prompts = [sys.stdin.read().strip("\n")]
        if not prompts[0]:
            raise CliError("no prompt: standard input is empty", BAD_ARGUMENTS)
    try:
        for prompt in prompts:
            check_text(prompt)
    except ValueError as error:
        raise CliError(error, BAD_ARGUMENTS) from error
    return prompts


def load(args: argparse.Namespace) -> PearlDecoder:
    """Load the pair. A path that does not exist is a bad argument; a model that does not load is a failure."""
    with progress(f"loading {args.target}") as report:
        target = args.target
        try:
            if target == BUILTIN_TARGET:
                target = str(ensure_builtin(report))
        except BuiltinModelError as error:
            raise CliError(error) from error
        import torch
        import transformers

        from pearl_decode import PearlDecoder
        from pearl_decode.checkpoints import resolve
        from pearl_decode.loading import SPREAD, find_device

        quiet: Any = transformers.logging  # untyped in transformers
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()
        try:
            resolve("target", target)
            if args.target_device != SPREAD:
                find_device("--target-device", args.target_device)
            find_device("--draft-device", args.draft_device)
            if args.draft is not None and not args.draft.startswith("first-layers:"):
                resolve("draft", args.draft)
        except ValueError as error:
            raise CliError(error, BAD_ARGUMENTS) from error
        try:
            decoder = PearlDecoder.from_pretrained(
                target,
                args.draft,
                dtype=getattr(torch, args.dtype) if args.dtype else None,
                target_device=args.target_device,
                draft_device=args.draft_device if args.draft is not None else None,
                compile=False if args.no_compile else None,
                gamma=args.gamma,
                strategy=args.strategy,
                rule=args.rule,
            )
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            raise CliError(error) from error
    if decoder.tokenizer is None:
        raise CliError(f"target: expected a tokenizer beside the model, there is none in {target!r}")
    if decoder.target.is_compiled:
        note("[models are compiled as they are first used, which may take minutes; --no-compile starts at once]")
    return decoder


def answer_streaming(decoder: PearlDecoder, args: argparse.Namespace, prompt: str, params: SamplingParams) -> int:
    from pearl_decode.cli.answers import encode, report_failure, summary

    try:
        stream = decoder.stream(encode(decoder, prompt, args.raw), params)
    except ValueError as error:
        raise CliError(options.bare(error), BAD_ARGUMENTS) from error
    interrupted = False
    with stream:
        try:
            for piece in stream:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            interrupted = True
    print(flush=True)
    note(summary(stream.result))
    if interrupted:
        note("pearl-decode: interrupted")
        return INTERRUPTED
    return report_failure(stream.result)
