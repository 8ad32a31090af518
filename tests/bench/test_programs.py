"""Every program in bench/ finds what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_every_program_imports() -> None:
    names = sorted(path.stem for path in BENCH.glob("*.py"))
    assert "bench_forward" in names
    script = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    path = os.pathsep.join([str(BENCH), str(BENCH.parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
