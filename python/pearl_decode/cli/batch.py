"""Prompts that are answered together and printed in order: the lines of a file, or those of the command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from pearl_decode.cli.answers import encode, record, report_failure, summary
from pearl_decode.cli.console import BAD_ARGUMENTS, FAILED, INTERRUPTED, CliError, note, print_json
from pearl_decode.cli.options import bare
from pearl_decode.decoder import PearlDecoder
from pearl_decode.inputs import json_prompt
from pearl_decode.request import Request
from pearl_decode.sampling import SamplingParams

_SAMPLING = tuple(field.name for field in fields(SamplingParams))


@dataclass(frozen=True)
class Line:
    """One line of the file, or one prompt of the command line, with its sampling, or what is wrong with it."""

    number: int
    prompt: str
    params: SamplingParams
    error: str | None = None


def read_lines(name: str, defaults: SamplingParams) -> list[Line]:
    """Every line that is not blank. A broken one is reported on stderr by file and number, and kept as an error."""
    try:
        texts = Path(os.path.expanduser(name)).read_bytes().splitlines()
    except OSError as error:
        raise CliError(f"cannot read batch file {name!r}: {error.strerror}", BAD_ARGUMENTS) from error
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            prompt, params = _parse(text, defaults)
            lines.append(Line(number, prompt, params))
        except ValueError as error:
            note(f"pearl-decode: error: {name}:{number}: {bare(error)}")
            lines.append(Line(number, "", defaults, f"{name}:{number}: {bare(error)}"))
    if not lines:
        raise CliError(f"batch file {name!r} has no lines", BAD_ARGUMENTS)
    return lines


def _parse(text: bytes, defaults: SamplingParams) -> tuple[str, SamplingParams]:
    value = json_prompt(text)
    sampling = {name: value[name] for name in value if name != "prompt"}
    unknown = sorted(sampling.keys() - set(_SAMPLING))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are prompt, {', '.join(_SAMPLING)}")
    return value["prompt"], replace(defaults, **sampling)


def answer_lines(decoder: PearlDecoder, args: argparse.Namespace, lines: list[Line]) -> int:
    """Answer the good lines and print every line, in order, as soon as it is known.

    Returns 0 if every line was answered, 1 if any was not, 130 if interrupted: what there was is printed then too.
    """
    good = [line for line in lines if line.error is None]
    asked = [_asked(decoder, line, args.raw) for line in good]
    requests, rounds = decoder.start([prompt for prompt, _ in asked], [line.params for line in good])
    for request, (_, refusal) in zip(requests, asked, strict=True):
        if refusal is not None:
            request.fail(refusal)
    answers = dict(zip([line.number for line in good], requests, strict=True))
    show = _print_line if args.batch is not None else partial(_print_prompt, args.json, len(lines))
    failed = waiting = 0
    interrupted = False
    try:
        for _ in rounds:
            while waiting < len(lines) and _is_known(lines[waiting], answers):
                failed += show(lines[waiting], answers)
                waiting += 1
    except KeyboardInterrupt:
        interrupted = True
    for line in lines[waiting:]:
        failed += show(line, answers)
    if args.batch is not None:
        note(f"[{len(lines)} lines, {len(lines) - failed} answered, {failed} failed]")
    if interrupted:
        note("pearl-decode: interrupted")
        return INTERRUPTED
    return FAILED if failed else 0


def _asked(decoder: PearlDecoder, line: Line, raw: bool) -> tuple[str | list[int], str | None]:
    """A line's prompt as the decoder takes it; without tokens, and why, where the chat template refuses it."""
    try:
        return encode(decoder, line.prompt, raw), None
    except CliError as error:
        return [], str(error)


def _is_known(line: Line, answers: dict[int, Request]) -> bool:
    return line.error is not None or answers[line.number].finish_reason is not None


def _print_line(line: Line, answers: dict[int, Request]) -> bool:
    """Print a line's answer or error. Returns whether it failed."""
    head = {"line": line.number, "prompt": line.prompt}
    if line.error is not None:
        body: dict[str, object] = {"text": "", "token_ids": [], "finish_reason": "error", "error": line.error}
        body |= {"seed": None, "stats": None}
    else:
        body = record(answers[line.number].result())
    print_json(head | body)
    return body["finish_reason"] not in ("stop", "length")


def _print_prompt(as_json: bool, count: int, line: Line, answers: dict[int, Request]) -> bool:
    """Print the answer to one of `count` prompts of the command line. Returns whether it failed."""
    result = answers[line.number].result()
    if as_json:
        print_json({"prompt": line.prompt, **record(result)})
    else:
        if count > 1:
            print(f"--- {line.number}: {line.prompt}")
        print(result.text, flush=True)
        note(summary(result))
    return bool(report_failure(result))
