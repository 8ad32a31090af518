"""The README tells the truth: its Python runs, and its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pearl_decode.cli import build_parser
from tests.cli.conftest import Cli
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^    (?:\$ |\.venv/bin/)?pearl-decode (.*?)(?:  +#.*| [<>] .*)?$", README, flags=re.MULTILINE)
ERRORS = re.findall(r"^    \$ pearl-decode (.*)\n    (pearl-decode: error: .*)$", README, flags=re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs(program: str, smollm2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PEARL_CACHE", str(smollm2.parent))
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command: str):
    build_parser().parse_args(shlex.split(command))


@pytest.mark.parametrize(("command", "error"), ERRORS)
def test_error_is_as_shown(
    command: str, error: str, cli: Cli, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PEARL_CACHE", str(smollm2.parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "max_tokens": 2}\n{"prompt": "b" "max_tokens": 2}\n')
    outcome = cli(*shlex.split(command))
    assert outcome.status != 0
    assert outcome.err.splitlines()[0] == error


def test_all_examples_were_found():
    assert (len(PROGRAMS), len(ERRORS)) == (2, 3)
    assert len(COMMANDS) >= 10
