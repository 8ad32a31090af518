"""What make gives to pip."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# In place of the environment's: it cannot import torch, and writes down what else it is asked for, a line each.
PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 1
printf '%s|' "$@" >> {log}
echo >> {log}
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "torch==2.13.0"),
        (("TORCH=torch --index-url https://there/cpu",), "torch|--index-url|https://there/cpu"),
        (("TORCH=torch>=2.9",), "torch>=2.9"),
    ],
)
def test_torch_is_installed_first_in_the_words_that_are_given(tmp_path: Path, given: tuple[str, ...], words: str):
    python, log = tmp_path / "bin" / "python", tmp_path / "log"
    python.parent.mkdir()
    python.write_text(PYTHON.format(log=log))
    python.chmod(0o755)
    subprocess.run(["make", f"VENV={tmp_path}", *given, f"{tmp_path}/.installed"], cwd=ROOT, check=True)
    first, then = log.read_text().splitlines()
    assert first.endswith(f"|--no-compile|{words}|")
    assert then.endswith("|--editable|.[demo,dev]|")
