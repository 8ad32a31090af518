"""bench_decode on a CPU, with tiny models: what it reports, and that drafts are accepted as often as was asked."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.agreement import Agreement, write_text
from pearl_decode import SamplingParams
from pearl_decode.costs import pearl_tokens, sequential_tokens
from tests.runtime.device import DeviceDecoder, TapeLane, no_host_reads
from tests.runtime.tiny import VOCAB, build

BENCH = Path(__file__).parent.parent.parent / "bench"
FIELDS = {
    "pair", "target", "draft", "context", "batch", "acceptance_asked", "strategy", "gamma", "best", "tokens_per_s",
    "ratio", "tokens_per_target_forward", "acceptance", "round_ms", "round_over_longer_lane", "host_ms_per_round",
    "target_idle", "draft_idle", "target_window_ms", "draft_step_ms", "target_window_over_weights",
    "target_window_over_weights_and_cache", "draft_step_over_weights", "peak_gb", "same_text", "choices",
    "counted_rounds",
}  # fmt: skip
OWN = {"autoregressive", "sequential", "pearl", "auto"}


@pytest.fixture(scope="module")
def plots(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("plots")


@pytest.fixture(scope="module")
def report(plots) -> dict:
    sizes = ("--shapes", "tiny", "--batches", "1,3", "--contexts", "24", "--acceptances", "0.6,0.9")
    effort = ("--tokens", "128", "--repeats", "1", "--candidates", "1", "--budget-s", "900")
    path = plots / "decode.json"
    command = [sys.executable, BENCH / "bench_decode.py", "--synthetic", "--device", "cpu", *sizes, *effort]
    subprocess.run([*command, "--json", path, "--plot", plots], check=True, timeout=900)
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_cell_has_a_row_of_every_system_with_every_field(report):
    found = {(row["context"], row["batch"], row["acceptance_asked"], row["strategy"]) for row in report["rows"]}
    assert found == {
        (24, batch, asked, strategy)
        for batch in (1, 3)
        for asked in (0.6, 0.9)
        for strategy in OWN | ({"assisted"} if batch == 1 else set())
    }
    assert report["errors"] == report["skipped"] == report["warnings"] == []
    assert report["settings"]["dtype"] == "float32"
    assert report["machine"]["read_gb_per_s"] > 0
    for row in report["rows"]:
        assert row.keys() == FIELDS
        assert row["best"]
        assert 0 < row["tokens_per_s"]["low"] <= row["tokens_per_s"]["median"] <= row["tokens_per_s"]["high"]
        assert row["round_ms"] > 0
        assert row["peak_gb"] > 0
        if row["strategy"] in OWN:
            assert 0 <= row["target_idle"] < 1
            assert row["target_window_over_weights"] > row["target_window_over_weights_and_cache"] > 0
            assert (row["round_over_longer_lane"] is None) == (row["strategy"] == "auto")
        if row["strategy"] in ("sequential", "pearl"):
            assert row["draft_step_over_weights"] > 0
            assert row["round_ms"] >= row["target_window_ms"]


@pytest.mark.slow
def test_every_text_is_the_targets_own(report):
    assert all(row["same_text"] == [row["batch"], row["batch"]] for row in report["rows"])


@pytest.mark.slow
def test_acceptance_is_what_was_asked(report):
    drafted = [row for row in report["rows"] if row["strategy"] in ("sequential", "pearl")]
    assert drafted
    for row in drafted:
        assert row["acceptance"] == pytest.approx(row["acceptance_asked"], abs=0.08), row


@pytest.mark.slow
def test_tokens_per_forward_follow_from_the_acceptance(report):
    for row in report["rows"]:
        a, gamma = row["acceptance_asked"], row["gamma"]
        if row["strategy"] == "autoregressive":
            assert row["tokens_per_target_forward"] == 1
            assert row["ratio"] == {"median": 1, "low": 1, "high": 1}
        if row["strategy"] in ("sequential", "assisted"):
            wanted = sequential_tokens(a, gamma)
            assert row["tokens_per_target_forward"] == pytest.approx(wanted, rel=0.25), row
        if row["strategy"] == "pearl":
            assert row["tokens_per_target_forward"] == pytest.approx(pearl_tokens(a, gamma), rel=0.25), row


@pytest.mark.slow
def test_speeds_lanes_and_a_trace_are_drawn(report, plots):
    for name in ("speed-tiny", "timeline-tiny"):
        assert (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    events = json.loads((plots / "trace-tiny.json").read_text())["traceEvents"]
    assert {event["args"]["name"].partition(",")[0] for event in events if event["name"] == "process_name"} == {
        "autoregressive", "sequential", "pearl",
    }  # fmt: skip


@pytest.fixture
def bench_decode(monkeypatch):
    """Its main, to be called with arguments, in this process."""
    monkeypatch.syspath_prepend(BENCH)
    module = importlib.import_module("bench_decode")

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["bench_decode.py", *arguments])
        module.main()

    return call


def test_what_the_budget_has_no_time_for_is_named(bench_decode, tmp_path):
    path = tmp_path / "decode.json"
    sizes = ("--synthetic", "--shapes", "tiny", "--batches", "1", "--acceptances", "0.9,0.8", "--budget-s", "0")
    with pytest.raises(SystemExit, match="nothing was measured"):
        bench_decode(*sizes, "--json", str(path))
    skipped = json.loads(path.read_text())["skipped"]
    assert [cell["acceptance"] for cell in skipped] == [0.8, 0.9]
    assert all("left for this pair" in cell["reason"] for cell in skipped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--pairs must be of 8b+1b, 8b+160m, smollm2-135m, 32b+0.6b, tiny, got none: give --synthetic"),
        (("--pairs", "9b"), "--pairs must be of 8b+1b, 8b+160m, smollm2-135m, 32b+0.6b, tiny, got 9b"),
        (("--batches", "1,x"), "argument --batches: invalid list of int value: '1,x'"),
    ],
)
def test_bad_arguments_say_what_was_expected(bench_decode, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        bench_decode("--shapes", "tiny", *arguments)
    assert message in capsys.readouterr().err


def test_transformers_and_auto_have_a_turn_that_does_not_count(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    cell, ran = importlib.import_module("decode_cell"), []
    outcome = cell.Outcome()
    plans = {"autoregressive": None, "auto": None, "assisted": 1}
    systems = [cell.System(name, 1, lambda name=name: ran.append(name), turns) for name, turns in plans.items()]
    samples = cell._take_turns(systems, 2, outcome)
    assert ran == ["auto", "assisted", "autoregressive", "auto", "assisted", "auto", "autoregressive"]
    assert [len(runs) for runs in samples.values()] == [2, 2, 1]
    assert not outcome.errors


STRIDE = 7


def _written(seed: int):
    """A model in which each token is followed by the one 7 ids further."""
    model = build("llama", seed=seed)
    write_text(model, STRIDE)
    return model


def _texts(rows: int, length: int) -> list[list[int]]:
    starts = torch.arange(rows)[:, None] * (VOCAB // rows)
    return ((starts + STRIDE * torch.arange(length)) % VOCAB).tolist()


def _hits(model, texts: list[list[int]], acceptance: float, begin: int, agreement: Agreement) -> list[list[bool]]:
    agreement.follow(texts, begin, acceptance)
    with torch.inference_mode():
        guesses = model(input_ids=torch.tensor(texts), use_cache=False).logits[:, begin - 1 : -1].argmax(-1)
    return (guesses == torch.tensor(texts)[:, begin:]).tolist()


def test_a_set_share_of_guesses_is_right_and_more_of_them_at_a_higher_acceptance():
    model, texts, begin = _written(0), _texts(2, 25), 5
    agreement = Agreement(model, STRIDE)
    low, high, all_right = (_hits(model, texts, asked, begin, agreement) for asked in (0.6, 0.9, 1.0))
    assert [sum(row) for row in low] == [12] * 2
    assert [sum(row) for row in high] == [18] * 2
    assert [sum(row) for row in all_right] == [20] * 2
    assert low[0] != low[1]
    assert all(b or not a for row in range(2) for a, b in zip(low[row], high[row], strict=True))


def test_texts_that_cannot_be_followed_are_refused():
    texts, agreement = _texts(2, 20), Agreement(_written(0), STRIDE)
    with pytest.raises(ValueError, match="texts must go on by 7 ids from position 5 on, got another at 12"):
        agreement.follow([texts[0], [*texts[1][:12], texts[1][12] + 1, *texts[1][13:]]], 5, 0.5)
    with pytest.raises(ValueError, match="texts must come to no token twice"):
        agreement.follow([texts[0], texts[0]], 5, 0.5)
    with pytest.raises(ValueError, match="texts must leave room for wrong guesses among 120 ids, got 96 tokens"):
        agreement.follow(_texts(2, 52), 5, 0.5)
    with pytest.raises(ValueError, match=r"acceptance must be in \[0, 1\], got 1.5"):
        agreement.follow(texts, 5, 1.5)


def test_cells_near_the_first_come_first_and_cost_what_their_prompts_are_long(bench_decode):
    module = sys.modules["bench_decode"]
    cells = module.cells_of("8b+1b", (1, 4), (512, 8192), (0.8, 0.9))
    assert len(set(cells)) == 8
    order = [(cell.context, cell.batch, cell.acceptance) for cell in cells]
    assert order[:4] == [(512, 1, 0.8), (512, 4, 0.8), (8192, 1, 0.8), (512, 1, 0.9)]
    assert order[-1] == (8192, 4, 0.9)
    assert {cell.acceptance for cell in module.cells_of("smollm2-135m", (1,), (512,), (0.8, 0.9))} == {None}
    outcome = module.Outcome(seconds=10.0, prefill_s=2.0)
    assert module.expected_s(cells[2], (cells[0], outcome)) == pytest.approx(8 + 2 * 16)


def test_set_acceptance_holds_in_static_rounds_that_are_replayed(monkeypatch):
    """Nothing is read on the host, and what was captured goes on to follow the positions."""
    target, draft = _written(0), _written(4)
    prompts = [[11, 1], [22, 61]]
    texts = [[first, *((last + STRIDE * n) % VOCAB for n in range(21))] for first, last in prompts]
    Agreement(draft, STRIDE).follow(texts, 2, 0.8)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    for strategy in ("pearl", "sequential"):
        lanes = TapeLane(), TapeLane()
        decoder = DeviceDecoder(target, draft, device_lanes=lanes, strategy=strategy, gamma=3)
        with decoder, no_host_reads(monkeypatch):
            results = decoder.generate(prompts, params)
        assert [result.token_ids for result in results] == [text[2:] for text in texts]
        assert all(lane.captures for lane in lanes)
        accepted, judged = (
            sum(getattr(result.stats, f"{name}_tokens") for result in results) for name in ("accepted", "judged")
        )
        assert accepted / judged == pytest.approx(0.8, abs=0.05)


def test_a_system_that_fails_is_named_and_the_others_are_measured(bench_decode, monkeypatch, tmp_path):
    cell = importlib.import_module("decode_cell")
    run_own = cell.run_own

    def failing(decoder, prompts, tokens, strategy, gamma):
        if strategy == "auto":
            raise RuntimeError("no way")
        return run_own(decoder, prompts, tokens, strategy, gamma)

    monkeypatch.setattr(cell, "run_own", failing)
    path = tmp_path / "decode.json"
    sizes = ("--synthetic", "--shapes", "tiny", "--batches", "2", "--acceptances", "0.8", "--tokens", "64")
    with pytest.raises(SystemExit, match="RuntimeError: no way"):
        bench_decode(*sizes, "--repeats", "1", "--candidates", "1", "--json", str(path))
    report = json.loads(path.read_text())
    assert [row["strategy"] for row in report["rows"]] == ["autoregressive", "sequential", "pearl"]
    [error] = report["errors"]
    assert (error["system"], error["batch"], error["acceptance"]) == ("auto", 2, 0.8)
