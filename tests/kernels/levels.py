"""Kernels at one SIMD level, in a process of its own: a level is chosen once."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run_at(level: str, program: str) -> None:
    """Run a program that checks something; skip where the processor does not run the level."""
    program += '\nfrom pearl_kernels import _C\nprint(_C.build_info()["simd_level"])\n'
    run = subprocess.run(
        [sys.executable, "-c", program], check=False, env={"PEARL_SIMD": level}, capture_output=True, text=True
    )
    if "does not run on this processor" in run.stderr:
        pytest.skip(f"{level} does not run here")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [level]
