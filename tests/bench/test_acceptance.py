"""bench_acceptance in short: what it reports follows from its runs, and the runs from the acceptance asked."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.scripted import lucky_pair
from pearl_decode import PearlDecoder
from pearl_decode.costs import pearl_tokens, sequential_tokens

BENCH = Path(__file__).parent.parent.parent / "bench"


def test_a_set_share_of_the_draft_is_right_in_every_row():
    target, draft, firsts = lucky_pair(0.8, rows=3, length=50, seed=1)
    positions = torch.arange(-1, 49).expand(3, -1)
    ids = firsts[:, None].expand(-1, 50)
    right, guessed = (model(ids, position_ids=positions).logits.argmax(-1) for model in (target, draft))
    assert (right == guessed).sum(1).tolist() == [40, 40, 40]
    assert (guessed[0] == 0).tolist() != (guessed[1] == 2).tolist()
    assert torch.equal(draft(guessed, position_ids=positions + 1).logits.argmax(-1)[:, :-1], guessed[:, 1:])


@pytest.mark.slow
def test_tokens_and_speeds_are_the_formulas(tmp_path):
    path = tmp_path / "acceptance.json"
    sizes = ("--acceptances", "0.8", "--ratios", "4", "--target-ms", "20", "--rows", "16", "--tokens", "160")
    command = [sys.executable, BENCH / "bench_acceptance.py", *sizes, "--candidates", "1", "--json", path]
    subprocess.run(command, check=True, timeout=300)
    [row] = json.loads(path.read_text())["rows"]
    plans = {plan["strategy"]: plan for plan in row["plans"]}
    assert plans.keys() == {"autoregressive", "sequential", "pearl"}
    assert plans["autoregressive"]["tokens"] == 1
    for name, tokens in (("sequential", sequential_tokens), ("pearl", pearl_tokens)):
        plan = plans[name]
        assert plan["acceptance"] == pytest.approx(0.8, abs=0.02)
        assert plan["tokens_formula"] == pytest.approx(tokens(0.8, plan["gamma"]))
        assert plan["tokens"] == pytest.approx(plan["tokens_formula"], rel=0.05)
        assert plan["round_over_lanes"] >= 0.99
    sequential, pearl = (plans[name]["tokens_per_s"][0] for name in ("sequential", "pearl"))
    assert row["pearl_over_sequential"]["measured"] == pytest.approx(pearl / sequential)
    gamma, other = row["pearl_gamma"], row["sequential_gamma"]
    said = pearl_tokens(0.8, gamma) / max(1, gamma / 4) * (1 + other / 4) / sequential_tokens(0.8, other)
    assert row["pearl_over_sequential"]["formula"] == pytest.approx(said)


def test_rounds_count_once_warm_and_until_a_row_ends(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    runs = importlib.import_module("decode_runs")
    target, draft, firsts = lucky_pair(0.5, rows=2, length=40, seed=2)
    prompts = [[token] for token in firsts.tolist()]
    with PearlDecoder(target, draft, max_batch=2) as decoder:
        alone = runs.run_own(decoder, prompts, 20, "autoregressive", 1)
        drafted = runs.run_own(decoder, prompts, 30, "sequential", 2)
        with pytest.raises(RuntimeError, match="needs 6 rounds before a text ends, got 4: ask for more tokens"):
            runs.run_own(decoder, prompts, 5, "autoregressive", 1)
    assert (alone.rounds, alone.tokens) == (20 - 1 - runs.WARM_ROUNDS, 2 * (20 - 1 - runs.WARM_ROUNDS))
    assert [len(text) for text in alone.texts] == [20, 20]
    fewest = min(each.rounds for each in drafted.stats)
    assert drafted.rounds == fewest - 1 - runs.WARM_ROUNDS
    assert drafted.draft_forwards == 2 * drafted.rounds
    assert 0 < drafted.target_busy_s < drafted.seconds
