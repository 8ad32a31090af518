"""pearl-decode bench: what is counted, what is compared, and what is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pearl_decode import DecodeStats, PearlDecoder, SamplingParams
from pearl_decode import decoder as decoder_module
from pearl_decode.bench import peers
from pearl_decode.bench.measure import Job, Measurement, Sample, counted, measure
from pearl_decode.bench.model import (
    pearl_speed,
    pearl_tokens,
    sequential_speed,
    sequential_tokens,
)
from pearl_decode.bench.peer_models import plain, with_full_vocabulary
from pearl_decode.bench.peers import Pair, peer_systems
from pearl_decode.bench.prompts import SHIPPED, BenchPrompt, read_prompts
from pearl_decode.bench.report import markdown
from pearl_decode.bench.summary import OVERALL, acceptance, summarise
from pearl_decode.bench.systems import Output, System
from pearl_decode.bench.trace import Timeline, chrome_trace, record, record_static
from pearl_decode.cli.bench import PEERS
from pearl_decode.drafts import new_draft
from tests.cli.conftest import Cli, make_model, make_tokenizer

EOS = 0


@pytest.fixture(scope="module")
def decoder():
    """A tiny pair whose draft has a reduced vocabulary: every id but each third."""
    target = make_model()
    d2t = torch.tensor([token for token in range(target.config.vocab_size) if token % 3 != 2])
    with PearlDecoder(target, new_draft(target, [0, 1], d2t), make_tokenizer(), gamma=2) as decoder:
        yield decoder


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    lines = [{"task": task, "prompt": f"{task} {number}", "id": number} for task in "ab" for number in range(3)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def bench(cli: Cli, target: str, prompts: str) -> Cli:
    """Runs the command on the tiny pair: 12 tokens of one prompt per task, twice."""

    def run(*argv: str) -> Any:
        command = ("bench", "--target", target, "--draft", "first-layers:2", "--prompts", prompts, "--limit", "1")
        return cli(*command, "--tokens", "12", "--repeat", "2", *argv)

    return run


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([5, 6, 7], [5, 6, 7]), ([5, EOS, 7], [5, EOS]), ([EOS], [EOS]), ([], []), ([5, 6, 7, 8, EOS], [5, 6, 7, 8])],
)
def test_tokens_count_up_to_and_with_the_end_of_the_text_or_the_limit(ids: list[int], expected: list[int]):
    assert counted(ids, [EOS], 4) == expected


def test_shipped_prompts_are_of_the_four_kinds_and_all_different():
    prompts = read_prompts()
    assert Counter(prompt.task for prompt in prompts) == dict.fromkeys(
        ("code", "arithmetic", "multilingual", "dialogue"), 6
    )
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    assert all(set(json.loads(line)) == {"task", "prompt"} for line in SHIPPED.read_text("utf-8").splitlines())


def test_limit_keeps_the_first_of_each_task(prompts: str):
    kept = read_prompts(prompts, limit=2)
    assert kept == [BenchPrompt(task, f"{task} {number}") for task in "ab" for number in range(2)]


def test_prompts_may_hold_separators_of_lines(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85c"}\r\n{"prompt": "d"}\n', encoding="utf-8", newline="")
    assert [prompt.prompt for prompt in read_prompts(path)] == ["a\u2028b\x85c", "d"]


def test_prompts_may_begin_with_the_mark_that_some_editors_write(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [prompt.prompt for prompt in read_prompts(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt"', ":2: not valid JSON"),
        ('{"text": "a"}', ':1: expected an object with a string "prompt"'),
        ('{"prompt": ""}', ':1: "prompt" must not be empty'),
        ("[" * 100_000, ":1: not valid JSON: nested too deeply"),
        ('{"prompt": "a", "task": 3}', ':1: "task" must be a string, got 3'),
        ('{"prompt": "cut \\ud83d"}', ":1: prompt: expected text that is UTF-8, got '\\ud83d'"),
    ],
)
def test_broken_prompts_are_named_by_line(bench: Cli, tmp_path: Path, content: str, message: str):
    path = tmp_path / "broken.jsonl"
    path.write_text(content)
    outcome = bench("--prompts", str(path))
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def fixed(name: str, ids: list[int], log: list[str] | None = None, *, fails_at: int | None = None) -> System:
    """A system that always answers `ids`, and fails on its run number `fails_at`."""
    runs = 0

    def decode(prompts: Sequence[list[int]], max_tokens: int) -> Output:
        nonlocal runs
        runs += 1
        if log is not None:
            log.append(name)
        if runs - 1 == fails_at:
            raise OSError("out of luck")
        return Output([ids for _ in prompts])

    return System(name, decode)


def run_all(systems: list[System], repeat: int = 2) -> Measurement:
    jobs = [Job("a", [[1], [2]]), Job("b", [[3]])]
    return measure(systems, jobs, max_tokens=4, repeat=repeat, eos_ids=[EOS], report=lambda *_: None)


def test_systems_take_turns_on_each_prompt_after_a_warm_up():
    log: list[str] = []
    run_all([fixed("x", [5], log), fixed("y", [5], log)])
    assert log == list("xy" + "xy" + "yx" + "yx" + "xy")


def test_no_system_attends_with_cudnn_while_it_is_measured():
    def decode(prompts: Sequence[list[int]], max_tokens: int) -> Output:
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return Output([[5] for _ in prompts])

    enabled: list[bool] = []
    assert not run_all([System("x", decode)]).errors
    assert not any(enabled)
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_system_that_fails_is_out_and_the_others_go_on(fails_at: int):
    done = run_all([fixed("autoregressive", [5, EOS]), fixed("peer", [5, EOS], fails_at=fails_at)])
    assert done.errors == {"peer": "OSError: out of luck"}
    assert len(done.samples) == 4
    assert {sample.system for sample in done.samples} == {"autoregressive"}


def test_other_text_is_reported_and_not_promised_where_it_is_sampled():
    systems = [fixed("autoregressive", [5, EOS]), fixed("same", [5, EOS, 9]), fixed("other", [5, 6, EOS])]
    rows = {(row.system, row.task): row for row in summarise(run_all(systems), greedy=True)}
    assert rows["same", OVERALL].same_text == (3, 3)
    assert rows["other", "a"].same_text == (0, 2)
    assert rows["other", "b"].tokens == 3
    assert all(row.same_text is None for row in summarise(run_all(systems), greedy=False))


def test_speed_and_ratio_are_medians_over_repeats():
    def sample(system: str, repeat: int, tokens: int, seconds: float) -> Sample:
        return Sample(system, "a", 0, repeat, seconds, [[1] * tokens], [])

    seconds = {"autoregressive": (1, 2, 4), "fast": (0.5, 2, 1)}
    done = Measurement([sample(name, i, 8, s) for name, times in seconds.items() for i, s in enumerate(times)])
    fast = summarise(done, greedy=True)[1]
    assert (fast.tokens_per_s.median, fast.tokens_per_s.low, fast.tokens_per_s.high) == (8, 4, 16)
    assert fast.ratio is not None
    assert (fast.ratio.median, fast.ratio.low, fast.ratio.high) == (2, 1, 4)


def test_acceptance_is_of_all_tokens_that_were_judged():
    sequential = DecodeStats("sequential", 4, "token", accepted_tokens=20, judged_tokens=26)
    pearl = DecodeStats("pearl", 4, "token", accepted_tokens=25, judged_tokens=30)
    assert acceptance([sequential, pearl]) == pytest.approx(45 / 56)
    assert acceptance([DecodeStats("autoregressive", 4, "token")]) is None


@pytest.mark.parametrize(("a", "gamma"), [(0.0, 3), (0.5, 1), (0.8, 8), (1.0, 4)])
def test_the_model_agrees_with_a_simulated_chain_of_rounds(a: float, gamma: int):
    generator = torch.Generator().manual_seed(0)
    rounds, window, pearl, sequential = 20_000, 0, 0, 0
    draws = (torch.rand(rounds, gamma, generator=generator) < a).tolist()
    for accepts in draws:
        chain = window + 1
        passed = next((i for i in range(chain) if not accepts[i]), chain)
        pearl += min(passed + 1, chain)
        window = gamma - 1 if passed == chain else 0
        sequential += 1 + next((i for i in range(gamma) if not accepts[i]), gamma)
    assert pearl_tokens(a, gamma) == pytest.approx(pearl / rounds, rel=0.03)
    assert sequential_tokens(a, gamma) == pytest.approx(sequential / rounds, rel=0.03)


def test_a_pearl_round_takes_its_longer_lane_and_a_sequential_one_both():
    assert pearl_speed(0.0, 4, target_s=0.1, draft_s=0.05) == pytest.approx(1 / 0.2)
    assert sequential_speed(0.0, 4, target_s=0.1, draft_s=0.05) == pytest.approx(1 / 0.3)


def test_a_full_vocabulary_changes_no_logit_and_leaves_the_draft_alone(decoder: PearlDecoder):
    assert decoder.draft is not None
    draft, ids = decoder.draft.model, torch.tensor([[3, 4, 5]])
    full = with_full_vocabulary(draft, decoder.target.vocab_size)
    with torch.inference_mode():
        reduced, logits = draft(ids).logits, full(ids).logits
    assert torch.equal(logits[..., draft.d2t], reduced)
    assert (logits[..., 2::3] == float("-inf")).all()
    assert not hasattr(full, "d2t")
    full.generation_config.num_assistant_tokens = 99
    assert draft.generation_config.num_assistant_tokens != 99


def test_a_plain_copy_has_torchs_layers_and_float32_and_leaves_the_model_alone():
    model = make_model().bfloat16()
    ours = type("Ours", (torch.nn.Linear,), {"__module__": "pearl_decode.linear"})
    model.lm_head.__class__ = ours
    copied = plain(model)
    assert type(copied.lm_head) is torch.nn.Linear
    assert {weight.dtype for weight in copied.parameters()} == {torch.float32}
    assert isinstance(model.lm_head, ours)
    assert model.lm_head.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        ids = torch.tensor([[3, 4, 5]])
        assert torch.equal(copied(ids).logits, model.float()(ids).logits)


def test_transformers_decodes_the_same_text_on_the_same_models(decoder: PearlDecoder):
    assert decoder.draft is not None
    pair = Pair(decoder.target.model, decoder.draft.model, [EOS], 2, 0.0, 1)
    systems = peer_systems(["transformers"], pair)
    assert [s.name for s in systems] == [f"transformers {how}" for how in ("plain", "assisted", "assisted, gamma 2")]
    prompt = [7, 8, 9, 10]
    expected = decoder.generate([prompt], SamplingParams(max_tokens=16), strategy="autoregressive")[0].token_ids
    for system in systems:
        assert counted(system.decode([prompt], 16).token_ids[0], [EOS], 16) == expected, system.name
    batch = systems[0].decode([prompt[2:], prompt], 16).token_ids
    assert counted(batch[1], [EOS], 16) == expected
    with pytest.raises(RuntimeError, match="one prompt at a time"):
        systems[1].decode([prompt, prompt], 16)


def test_offered_peers_are_those_there_are():
    assert set(peers.PEERS) == set(PEERS)


def test_json_has_settings_versions_hardware_and_a_row_per_system_and_task(bench: Cli):
    outcome = bench("--json", "--strategies", "sequential,pearl", "--peers", "transformers")
    assert outcome.status == 0
    report = outcome.json()
    assert set(report) == {
        *("format", "date", "settings", "versions", "machine", "rows", "errors"),
        *("accepted_lengths", "gamma_sweep", "samples"),
    }
    own = ["autoregressive", "sequential", "pearl"]
    names = [*own, "transformers plain", "transformers assisted", "transformers assisted, gamma 4"]
    assert [(row["task"], row["system"]) for row in report["rows"]] == [
        (task, name) for task in ("a", "b", OVERALL) for name in names
    ]
    assert all(row["same_text"] == ([1, 1] if row["task"] != OVERALL else [2, 2]) for row in report["rows"])
    assert all(row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"] for row in report["rows"])
    assert report["errors"] == {}
    assert len(report["samples"]) == len(names) * 2 * 2
    assert report["versions"].keys() >= {"torch", "transformers", "pearl-kernels"}
    assert report["settings"]["prompts_per_task"] == {"a": 1, "b": 1}
    assert set(report["accepted_lengths"]) == {"sequential", "pearl"}
    tables = markdown(report)
    assert "### all tasks" in tables
    assert tables.count("| transformers plain |") == 3


def test_by_default_every_strategy_is_measured_in_static_rounds_too(bench: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoder_module, "has_static_rounds", lambda target: True)
    outcome = bench("--json")
    assert outcome.status == 0
    systems = {row["system"] for row in outcome.json()["rows"]}
    assert systems == {"autoregressive", "lookup", "auto", "pearl", "sequential"}


def test_a_peer_that_fails_is_a_line_and_no_failure(bench: Cli, monkeypatch: pytest.MonkeyPatch):
    def refuse(pair: Pair) -> Any:
        raise ImportError("No module named 'flashspec'")

    monkeypatch.setitem(peers.PEERS, "flashspec", {"auto": refuse})
    outcome = bench("--peers", "flashspec", "--strategies", "pearl")
    assert outcome.status == 0
    assert "pearl-decode: error: flashspec auto: ImportError: No module named 'flashspec'\n" in outcome.err
    assert "flashspec" not in outcome.out
    assert "1.00x" in outcome.out


def test_batches_hold_prompts_of_one_task(bench: Cli):
    report = bench("--json", "--limit", "3", "--batch", "2", "--repeat", "1", "--strategies", "pearl").json()
    sizes = [len(sample["tokens"]) for sample in report["samples"] if sample["system"] == "pearl"]
    assert sizes == [2, 1, 2, 1]


def test_plots_and_a_valid_trace_are_written(bench: Cli, tmp_path: Path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "plots"
    sweep = ("--gamma-sweep", "--tokens", "6", "--repeat", "1")
    outcome = bench("--plot", str(folder), *sweep)
    assert outcome.status == 0
    for name in ("speed", "accepted", "timeline", "gamma"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((folder / "bench.json").read_text())
    assert [(p["strategy"], p["gamma"]) for p in report["gamma_sweep"]] == [
        (name, gamma) for name in ("sequential", "pearl") for gamma in range(1, 9)
    ]
    assert "### Speed against gamma" in markdown(report)
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "i"}
    assert all(event["ts"] >= 0 and event["dur"] > 0 for event in events if event["ph"] == "X")


@pytest.mark.parametrize("fails", ["pearl_decode.bench.sweep.sweep", "pearl_decode.bench.plots.draw_speeds"])
def test_a_sweep_or_a_plot_that_fails_costs_no_tables(
    bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    pytest.importorskip("matplotlib")
    failure = RuntimeError("pearl, gamma 3: lost") if fails.endswith("sweep") else OSError("disk lost")
    monkeypatch.setattr(fails, Mock(side_effect=failure))
    outcome = bench("--strategies", "pearl", "--gamma-sweep", "--tokens", "6", "--plot", str(tmp_path / "plots"))
    assert outcome.status == 1
    assert f"{failure}\n" in outcome.err
    assert "all tasks" in outcome.out


def test_a_timeline_has_every_forward_and_every_commit(decoder: PearlDecoder):
    timeline = record(decoder, "pearl", 2, [7, 8, 9], SamplingParams(max_tokens=12, ignore_eos=True))
    assert len(timeline.target) == len(timeline.commits)
    assert len(timeline.draft) == 2 * len(timeline.target)
    assert sum(timeline.emitted) == 12
    assert timeline.commits == sorted(timeline.commits)


@pytest.mark.parametrize(("strategy", "parts"), [("pearl", 3), ("sequential", 2), ("autoregressive", 2)])
def test_a_timeline_of_static_rounds_has_every_part_and_every_commit(decoder: PearlDecoder, strategy: str, parts: int):
    timeline = record_static(decoder, strategy, 2, [7, 8, 9], SamplingParams(max_tokens=12, ignore_eos=True))
    assert sum(timeline.emitted) == 12
    # Before the first round the lane is told where the draft begins.
    assert timeline.commits == [end for _, end in timeline.target[parts::parts]][: len(timeline.emitted)]
    rounds, left = divmod(len(timeline.target) - 1, parts)
    assert left == 0
    assert rounds >= len(timeline.commits)
    assert len(timeline.draft) == (0 if strategy == "autoregressive" else rounds)


def test_a_timeline_shows_steps_thinner_than_a_pixel(tmp_path: Path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    from pearl_decode.bench.plots import draw_timeline

    rounds = [0.02 * count for count in range(40)]
    steps = [(start + 3e-3, start + 3.5e-3) for start in rounds]
    targets = [(start + 4e-3, start + 0.018) for start in rounds]
    timeline = Timeline("sequential", 1, targets, steps, [start + 0.019 for start in rounds], [1] * 40)
    draw_timeline([timeline], tmp_path / "timeline.png")
    red, green, blue = np.moveaxis(pyplot.imread(tmp_path / "timeline.png")[:, :, :3], 2, 0)
    orange = ((red > blue + 0.2) & (green > blue + 0.1)).any(0)
    assert (np.diff(orange.astype(int)) == 1).sum() == len(rounds)


def test_overlap_is_the_time_both_lanes_compute():
    timeline = Timeline("pearl", 2, [(0.0, 2.0), (3.0, 4.0)], [(1.0, 1.5), (1.5, 3.5)], [2.0, 4.0], [1, 2])
    assert timeline.overlap_s == pytest.approx(1.0 + 0.5)
    events = chrome_trace([timeline])["traceEvents"]
    spans = [(e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert spans == [(1, 0.0, 2e6), (1, 3e6, 1e6), (2, 1e6, 0.5e6), (2, 1.5e6, 2e6)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategies", "pearls"), "expected names of"),
        (("--peers", "nobody"), "expected names of transformers, flashspec, economize"),
        (("--temperature", "-1"), "temperature must be a finite number >= 0, got -1.0"),
        (("--temperature", "nan"), "temperature must be a finite number >= 0, got nan"),
        (("--seed", "1" + 23 * "0"), "seed must be None or a 64-bit integer"),
        (("--plot", "/proc"), "--plot: cannot write to '/proc'"),
        (("--draft", "none", "--strategies", "pearl"), "drafting needs a draft"),
    ],
)
def test_bad_arguments_are_one_line(bench: Cli, arguments: tuple[str, ...], message: str):
    outcome = bench(*arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
