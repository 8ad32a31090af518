"""Every program in bench/ finds what it imports."""

from __future__ import annotations

import json
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


def test_a_list_is_decoded_both_ways(tmp_path: Path) -> None:
    sizes = ("--texts", "7", "--context", "12", "--tokens", "16", "--batch", "3", "--repeat", "1")
    command = [sys.executable, BENCH / "bench_list.py", "--synthetic", "tiny", *sizes]
    done = subprocess.run([*command, "--json", tmp_path / "list.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "list.json").read_text())["rows"]
    assert [row["strategy"] for row in rows] == ["autoregressive", "sequential 3", "auto"]
    assert rows[0]["over_first"] == 1
    for row in rows:
        assert 7 * 2 <= row["tokens"] <= 7 * 16
        assert row["faster"] > 0
