"""The command line: pearl-decode generate | chat | bench | distill | doctor.

Exit status: 0 done; 1 a failure (a model that cannot be loaded, a request that failed, a broken batch line); 2 bad
arguments; 130 interrupted; 141 whoever read the output has left. Every error is one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import UnsupportedOperation
from typing import NoReturn, TextIO

from pearl_decode.cli import bench, chat, distill, doctor, generate
from pearl_decode.cli.console import BAD_ARGUMENTS, FAILED, INTERRUPTED, CliError, note, open_streams, take_any_text

__all__ = ["main"]

BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended


class Parser(argparse.ArgumentParser):
    """One line per mistake: argparse's own puts the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_ARGUMENTS, f"pearl-decode: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    parser = Parser(
        prog="pearl-decode", description="Speculative decoding with a draft and a target that work at the same time."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate.add_command(commands)
    chat.add_command(commands)
    bench.add_command(commands)
    distill.add_command(commands)
    doctor.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; argv as sys.argv[1:]."""
    open_streams()
    take_any_text()
    try:
        status = _run(argv)
        sys.stdout.flush()
    except CliError as error:
        note(f"pearl-decode: error: {error}")
        return error.status
    except KeyboardInterrupt:
        note("\npearl-decode: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:  # of standard output on a full disk, or of a file that could be written before
        _drop_output()
        note(f"pearl-decode: error: {error}")
        return FAILED
    return status


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as exit_:  # argparse has printed its help or its error
        return BAD_ARGUMENTS if exit_.code else 0
    with warnings.catch_warnings():
        warnings.showwarning = _note_warning
        status: int = args.run(args)
    return status


def _drop_output() -> None:
    """What standard output could not take: the flush at exit must not raise again."""
    with suppress(UnsupportedOperation):  # of a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _note_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    note(f"pearl-decode: warning: {message}")
