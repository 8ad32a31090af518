"""The options that name a pair of models, for the commands that take a pair but no prompt."""

from __future__ import annotations

import argparse

from pearl_decode.builtin import BUILTIN_DRAFT, BUILTIN_TARGET
from pearl_decode.cli import options


def add_pair(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("models")
    models.add_argument(
        "--target", default=BUILTIN_TARGET, help=f"path, hub id, or the built-in {BUILTIN_TARGET} (default)"
    )
    models.add_argument(
        "--draft",
        help="path, hub id, what distill made, first-layers:N or none; "
        f"default for the built-in target: {BUILTIN_DRAFT}, distilled for it",
    )
    models.add_argument("--dtype", choices=options.DTYPES, help=options.DTYPE_HELP)
    options.add_devices(models)
