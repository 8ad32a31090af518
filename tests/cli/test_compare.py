"""--compare: every strategy on one prompt, measured in one run."""

from __future__ import annotations

import pytest

from pearl_decode import DecodeStats, GenerationResult
from pearl_decode.cli.compare import MEASURED, summarise
from tests.cli.conftest import Cli


def test_text_comes_first_and_the_table_last(generate: Cli):
    outcome = generate("--compare", "--repeat", "2", "a prompt")
    assert outcome.status == 0
    assert outcome.out.startswith(generate("a prompt").out)
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines() if line.startswith(MEASURED)}
    assert list(rows) == list(MEASURED)
    assert rows["autoregressive"][-1] == "1.00x"
    assert rows["autoregressive"][3] == "1.00"  # tokens per target forward
    assert "median of 2 runs each, taken in turns" in outcome.out
    assert "every run gave the same text" in outcome.out


def test_json_has_one_row_per_strategy(generate: Cli):
    report = generate("--compare", "--repeat", "2", "--json", "a prompt").json()
    assert [row["strategy"] for row in report["rows"]] == list(MEASURED)
    assert all(len(row["tokens_per_s"]) == 2 for row in report["rows"])
    assert report["same_text"] is True
    assert report["text"] == generate("--json", "a prompt").json()["text"]


def test_sampled_text_is_not_claimed_to_be_the_same(generate: Cli):
    sampled = ("--compare", "--repeat", "1", "--json", "--temperature", "1", "a prompt")
    assert generate(*sampled).json()["same_text"] is None
    assert generate(*sampled, "--rule", "coupled").json()["same_text"] is True


def run_of(
    strategy: str, *, seconds: float, forwards: int, accepted_lengths: list[int], emitted: int, refused: int = 0
) -> GenerationResult:
    stats = DecodeStats(strategy, 4, "token", rounds=forwards, target_forwards=forwards, emitted_tokens=emitted)
    stats.draft_forwards = 0 if strategy == "autoregressive" else 4 * forwards
    stats.accepted_lengths = accepted_lengths
    stats.accepted_tokens = sum(length * rounds for length, rounds in enumerate(accepted_lengths))
    stats.judged_tokens = stats.accepted_tokens + refused
    stats.decode_s = seconds
    return GenerationResult("", [], "length", None, 0, stats)


def test_ratio_and_acceptance_are_computed_from_the_statistics():
    alone = [run_of("autoregressive", seconds=s, forwards=40, accepted_lengths=[40], emitted=40) for s in (1, 2, 4)]
    # Two rounds of 4 accepted (and a bonus token), six of 2 accepted and one refused.
    sequential = run_of("sequential", seconds=1, forwards=8, accepted_lengths=[0, 0, 6, 0, 2], emitted=28, refused=6)
    # Five rounds of 4 accepted and nothing more; five of 1 accepted and one refused.
    pearl = run_of("pearl", seconds=0.5, forwards=10, accepted_lengths=[0, 5, 0, 0, 5], emitted=30, refused=5)
    runs = {"autoregressive": alone, "sequential": [sequential], "pearl": [pearl]}
    rows = {row.strategy: row for row in summarise(runs)}
    assert rows["autoregressive"].acceptance is None
    assert rows["sequential"].acceptance == pytest.approx(20 / 26)
    assert rows["pearl"].acceptance == pytest.approx(25 / 30)
    assert rows["pearl"].tokens_per_target_forward == pytest.approx(3.0)
    assert rows["pearl"].ratio == pytest.approx(60 / 20)
