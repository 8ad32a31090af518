"""The SIMD levels, and kernels at one of them, in a process of its own: a level is chosen once."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pearl_kernels import _C
from tests.conftest import REPOSITORY

# As CMakeLists.txt compiles the kernels: the levels, from the one that runs everywhere up, and their options.
LEVELS = dict(
    re.findall(r"^ *pearl_add_simd_level\((\w+)([^)]*)\)", (REPOSITORY / "CMakeLists.txt").read_text(), re.MULTILINE)
)
OPTIONS = ["-std=c++17", "-O3", "-w", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]


def run_at(level: str, program: str, **env: str) -> None:
    """Run a program that checks something, with this environment; skip where the processor does not run the level."""
    if list(LEVELS).index(level) > list(LEVELS).index(_C.build_info()["simd_level"]):
        pytest.skip(f"{level} does not run here")
    program += '\nfrom pearl_kernels import _C\nprint(_C.build_info()["simd_level"])\n'
    run = subprocess.run(
        [sys.executable, "-c", program], check=False, env={"PEARL_SIMD": level, **env}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [level]
