"""The public face over both runtimes: rounds the host reads, and static ones as on a GPU, here on CPU tensors."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import pearl_decode
from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.device.runner import NO_GRAPHS, DeviceRunner
from pearl_decode.device.shape import COMPILED_WIDTHS, WIDTHS
from pearl_decode.lanes import CpuLane
from pearl_decode.lanes.cpu import available_cores
from pearl_decode.models import CausalModel
from pearl_decode.runner import CpuRunner
from tests.runtime.device import DynamicDecoder
from tests.runtime.scripted import ScriptedModel, one_hot, sequence_model
from tests.runtime.test_device_ends import Letters, failing

STRATEGIES = ("auto", "autoregressive", "sequential", "pearl")
COUNTS = (24, 9, 1, 40, 17)
LINE = [(7 * i) % 40 + 10 for i in range(120)]


def _params(temperature: float) -> list[SamplingParams]:
    return [SamplingParams(temperature=temperature, max_tokens=n, seed=n) for n in COUNTS]


@pytest.fixture(scope="module")
def alone(llama, prompts):
    """What the target alone says, by transformers where greedy."""

    def greedy(prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        return llama.generate(ids, max_new_tokens=count, **options)[0, len(prompt) :].tolist()

    with DynamicDecoder(llama, rule="coupled", strategy="autoregressive") as plain:
        sampled = [r.token_ids for r in plain.generate(prompts, _params(0.8))]
    return {0.0: [greedy(prompt, n) for prompt, n in zip(prompts, COUNTS, strict=True)], 0.8: sampled}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "coupled"])
def test_lists_longer_than_a_batch_get_the_targets_own_texts(
    runtime, llama, near_llama, prompts, strategy, temperature, alone
):
    plan = {"strategy": strategy, "rule": "coupled", "max_batch": 2}
    with PearlDecoder(llama, near_llama, **plan) as pair:
        assert type(pair.runner) is {"dynamic": CpuRunner, "static": DeviceRunner}[runtime]
        for _ in range(2):
            results = pair.generate(prompts, _params(temperature))
            assert [r.token_ids for r in results] == alone[temperature]
        assert [r.finish_reason for r in results] == ["length"] * 5
        stats = results[3].stats
        assert (stats.emitted_tokens, stats.target_forwards) == (COUNTS[3], stats.rounds)
        assert sum(stats.choices.values()) == (0 if strategy == "autoregressive" else stats.rounds)
        assert stats.decode_s > 0.0


def test_streams_come_piece_by_piece_and_may_be_closed_early(runtime):
    alphabet = sequence_model(list(range(26)), 26)
    with PearlDecoder(alphabet, alphabet, Letters(), strategy="pearl", gamma=3) as pair:
        with pair.stream("ab", SamplingParams(max_tokens=20)) as stream:
            pieces = list(stream)
        assert "".join(pieces) == stream.result.text == "cdefghijklmnopqrstuv"
        assert len(pieces) > 3
        with pair.stream("ab", SamplingParams(max_tokens=20)) as stream:
            first = next(iter(stream))
        assert (stream.result.text, stream.result.finish_reason) == (first, "cancelled")
        assert pair.generate("ab", SamplingParams(max_tokens=4)).text == "cdef"


def test_a_session_answers_with_each_runtime(runtime):
    """By rounds that go on from no past, too: prompts are then read as a whole."""
    alphabet = sequence_model(list(range(26)), 26)
    with PearlDecoder(alphabet, alphabet, Letters()) as pair, pair.session() as session:
        texts = [session.generate(prompt, SamplingParams(max_tokens=4)).text for prompt in ("ab", "abcdefg", "x")]
        with session.stream("ab", SamplingParams(max_tokens=4)) as stream:
            assert "".join(stream) == "cdef"
        assert stream.result.stats.reused_tokens == 0
    assert texts == ["cdef", "hijk", "bcde"]


def test_stop_strings_end_one_text_alone(runtime):
    alphabet = sequence_model(list(range(26)), 26)
    params = [SamplingParams(max_tokens=20, stop=("ij", "zz")), SamplingParams(max_tokens=20)]
    with PearlDecoder(alphabet, alphabet, Letters()) as pair:
        stopped, whole = pair.generate(["ab", "ab"], params)
    assert (stopped.text, stopped.finish_reason) == ("cdefgh", "stop")
    assert (whole.text, whole.finish_reason) == ("cdefghijklmnopqrstuv", "length")


def test_bad_rows_are_errors_and_cost_the_others_nothing(runtime):
    def script(positions, ids):
        logits = one_hot((ids + 1) % 64, 64)
        return logits.masked_fill(((ids < 32) & (positions == 20))[..., None], math.nan)

    target = ScriptedModel(64, script)
    with PearlDecoder(target, target) as pair:
        results = pair.generate([[40, 0, 1], [], [33], [64]], SamplingParams(max_tokens=30, temperature=0.3))
    assert [r.finish_reason for r in results] == ["error", "error", "length", "error"]
    assert "NaN" in results[0].error
    assert results[2].token_ids == [(33 + i) % 64 for i in range(1, 31)]


@pytest.mark.parametrize("strategy", ["auto", "pearl", "sequential"])
def test_a_draft_that_fails_costs_a_warning_at_most(runtime, strategy):
    target = sequence_model(LINE, 64)
    for at in (0, 1, 5):
        draft = failing(sequence_model(LINE, 64), at, MemoryError("device lost"))
        with PearlDecoder(target, draft, strategy=strategy) as pair, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the draft failed", category=RuntimeWarning)
            [result] = pair.generate([LINE[:3]], SamplingParams(max_tokens=60))
        assert result.token_ids == LINE[3:63]
        assert result.error is None


@pytest.mark.parametrize("strategy", ["auto", "pearl"])
def test_the_hook_of_transformers_gives_its_own_text(runtime, llama, near_llama, prompts, strategy):
    width = max(map(len, prompts))
    rows = [([0] * (width - len(row)) + row, [0] * (width - len(row)) + [1] * len(row)) for row in prompts]
    ids, mask = (torch.tensor(column) for column in zip(*rows, strict=True))
    options = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    plain = llama.generate(ids, **options)
    call = {"custom_generate": pearl_decode.generate, "draft_model": near_llama, "strategy": strategy}
    assert torch.equal(llama.generate(ids, **options, **call), plain)


@pytest.mark.usefixtures("static")
def test_lanes_that_are_given_ask_for_rounds_of_threads(llama, near_llama, prompts):
    lanes = CpuLane("target", available_cores()[:1]), CpuLane("draft", available_cores()[:1])
    with PearlDecoder(llama, near_llama, strategy="lookup", lanes=lanes) as pair:
        assert isinstance(pair.runner, CpuRunner)
        assert pair.generate(prompts[:1], SamplingParams(max_tokens=4))[0].error is None


@pytest.mark.usefixtures("static")
@pytest.mark.parametrize(("asked", "compiled"), [(True, 2), (False, 0), (None, 0)])
def test_compiling_is_the_callers_choice_and_narrows_gamma(llama, near_llama, asked, compiled, monkeypatch):
    """None: not on CPU tensors."""
    calls = []
    monkeypatch.setattr(CausalModel, "compile", lambda self, **options: calls.append(options))
    with PearlDecoder(llama, near_llama, compile=asked) as pair:
        assert calls == [{"options": NO_GRAPHS}] * compiled
        assert pair.runner.options.widths == (COMPILED_WIDTHS if compiled else WIDTHS)


def test_pairs_on_different_kinds_of_devices_are_refused(runtime, llama, near_llama, monkeypatch):
    place = property(lambda self: torch.device("cpu" if self.model is llama else "cuda:0"))
    monkeypatch.setattr(CausalModel, "device", place)
    with pytest.raises(ValueError, match="draft must be on the target's kind of device, cpu, got cuda:0"):
        PearlDecoder(llama, near_llama)
