"""What a microbenchmark leaves when some of it fails."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_what_fails_is_said_and_takes_nothing_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    harness, report = importlib.import_module("harness"), importlib.import_module("report")
    path = tmp_path / "results.json"
    parsed = argparse.Namespace(json=path, plot=None, threads=1, device="cpu")
    written = []

    def works(name: str):
        written.append(json.loads(path.read_text())["rows"] if path.exists() else [])
        if name == "bad":
            raise ValueError("no such case")
        if name == "wrong":
            raise SystemExit("two backends differ")
        return harness.compare(name, "greedy", {harness.FLOOR: [1.0] * 3, "cpu": [2.0] * 3}, 1000.0)

    names = ["first", "bad", "second", "wrong"]
    with pytest.raises(SystemExit, match=r"^ValueError: no such case\nSystemExit: two backends differ$"):
        report.measure("sample", [lambda name=name: works(name) for name in names], parsed, {"gpu": "a GPU"})
    found = json.loads(path.read_text())
    assert {row["case"] for row in found["rows"]} == {"first", "second"}
    assert found["errors"] == ["ValueError: no such case", "SystemExit: two backends differ"]
    assert found["machine"]["gpu"] == "a GPU"
    assert [{row["case"] for row in rows} for rows in written] == [set(), {"first"}, {"first"}, {"first", "second"}]
