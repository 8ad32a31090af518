"""Static rounds decode what the other rounds decode, and the host reads nothing in them."""

from __future__ import annotations

import pytest
import torch

from pearl_decode import SamplingParams
from pearl_decode.attention import use_window_attention
from pearl_decode.device.engine import DeviceOptions
from pearl_decode.device.kept import Kept
from pearl_decode.device.shape import shape_of
from pearl_decode.first_layers import first_layers
from pearl_decode.lanes.queue import InlineLane
from pearl_decode.models import CausalModel
from pearl_kernels import window_attention
from tests.runtime.device import DeviceDecoder, DynamicDecoder, HostRead, Schedule, TapeLane, no_host_reads, static_plan
from tests.runtime.scripted import sequence_model
from tests.runtime.test_law import _exact_law, _p_value, _tables, table_model
from tests.runtime.tiny import build

STRATEGIES = ("autoregressive", "lookup", "sequential", "pearl")
COUNTS = (24, 9, 1, 30, 17)
PARAMS = [
    SamplingParams(temperature=0.9, max_tokens=COUNTS[0], seed=1),
    SamplingParams(temperature=1.3, top_p=0.9, max_tokens=COUNTS[1], seed=2),
    SamplingParams(temperature=0.7, top_k=12, max_tokens=COUNTS[2], seed=3),
    SamplingParams(temperature=1.0, min_p=0.02, max_tokens=COUNTS[3], seed=-4),
    SamplingParams(temperature=0.0, max_tokens=COUNTS[4], seed=5),
]


def answers(decoder, prompts, params, **plan):
    """All that a request got, and how: not the times."""
    return [
        (r.token_ids, r.finish_reason, r.stats.accepted_lengths, r.stats.draft_forwards, r.stats.emitted_tokens)
        for r in decoder.generate(prompts, params, **plan)
    ]


@pytest.mark.parametrize("strategy", ["lookup", "sequential", "pearl"])
def test_static_rounds_decode_what_dynamic_ones_do(target, prompts, strategy):
    """Not only the text: what was accepted in every round of every row."""
    draft = first_layers(target, 2)
    with DynamicDecoder(target, draft) as dynamic, DeviceDecoder(target, draft) as static:
        for gamma, rule in ((1, "token"), (3, "coupled"), (4, "block"), (8, "token")):
            plan = {"strategy": strategy, "gamma": gamma, "rule": rule}
            assert answers(static, prompts, PARAMS, **plan) == answers(dynamic, prompts, PARAMS, **plan)


def test_a_target_alone_decodes_what_it_does_in_dynamic_rounds(llama, prompts):
    plan = {"strategy": "autoregressive"}
    with DynamicDecoder(llama) as dynamic, DeviceDecoder(llama) as static:
        assert answers(static, prompts, PARAMS, **plan) == answers(dynamic, prompts, PARAMS, **plan)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_greedy_static_rounds_are_the_targets_own_text(llama, near_llama, prompts, greedy_reference, strategy):
    with DeviceDecoder(llama, near_llama, strategy=strategy, gamma=4) as decoder:
        for lateness in (0, 3):
            decoder.runner.options = DeviceOptions(lateness=lateness, bucket=8)
            results = decoder.generate(prompts, SamplingParams(max_tokens=24))
            assert [r.token_ids for r in results] == [greedy_reference(llama, prompt, 24) for prompt in prompts]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_long_prompts_are_read_apart_from_short_ones(llama, near_llama, strategy, graphs, monkeypatch):
    """In a batch, and where they take the rows of others."""
    for module in ("draft", "rounds"):
        monkeypatch.setattr(f"pearl_decode.device.{module}.MOST_READ", 16)
    shapes, run = [], CausalModel.read

    def noted(self, input_ids, start, cache):
        shapes.append(tuple(input_ids.shape))
        run(self, input_ids, start, cache)

    long, short, last = list(range(60, 89)), [[5], [7, 3, 9, 4], [8, 8, 1]], [[6] * 9, [2] * 9]
    batch, params = [long, *short, long, *last], [*PARAMS, *PARAMS[:2]]
    with DynamicDecoder(llama, near_llama, strategy=strategy, gamma=3) as dynamic:
        wanted = answers(dynamic, batch, params)
    monkeypatch.setattr(CausalModel, "read", noted)
    lanes = (TapeLane(), TapeLane()) if graphs else None
    with DeviceDecoder(
        llama, near_llama, strategy=strategy, gamma=3, rule="block", device_lanes=lanes, max_batch=5
    ) as static:
        assert answers(static, batch, params) == wanted
    assert {(1, 28), (3, 3)} <= set(shapes)
    assert max(rows * width for rows, width in shapes) == 28


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", ["token", "coupled"])
def test_host_reads_nothing_in_a_round(llama, near_llama, prompts, strategy, rule, monkeypatch):
    with DeviceDecoder(llama, near_llama, strategy=strategy, rule=rule) as decoder:
        wanted = answers(decoder, prompts, PARAMS)
        with no_host_reads(monkeypatch):
            assert answers(decoder, prompts, PARAMS) == wanted


@pytest.mark.parametrize("read", [lambda t: t.item(), bool, lambda t: t.tolist(), lambda t: t[t > 0]])
def test_a_read_in_a_round_is_noticed(read, monkeypatch):
    model = sequence_model(list(range(40)), 64)
    script = model.script

    def reading(positions, ids):
        read(positions.flatten()[:1])
        return script(positions, ids)

    model.script = reading
    with DeviceDecoder(model) as decoder, no_host_reads(monkeypatch):
        [result] = decoder.generate([[0]], SamplingParams(max_tokens=4))
    assert HostRead.__name__ in result.error


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cpu", "cpu:0")], ids=["one device", "two devices"])
def test_replayed_parts_do_what_they_did_when_captured(llama, near_llama, prompts, strategy, devices):
    """As CUDA graphs: numbers frozen, tensors read and written in place."""
    lanes = tuple(map(TapeLane, devices))
    options = DeviceOptions(lateness=1, bucket=24)
    plan = {"strategy": strategy, "gamma": 3, "rule": "block"}
    with (
        DynamicDecoder(llama, near_llama, **plan) as dynamic,
        DeviceDecoder(llama, near_llama, device_lanes=lanes, options=options, **plan) as static,
    ):
        assert answers(static, prompts, PARAMS) == answers(dynamic, prompts, PARAMS)
    views = 3  # the longest row has 3 + 30 tokens, and is drafted past that
    assert 0 < lanes[0].captures <= 2 * views
    assert (lanes[1].captures > 0) is (strategy in ("sequential", "pearl"))


@pytest.mark.parametrize("refused", [("window",), ("verify",), ("window", "verify")], ids="+".join)
def test_parts_that_cannot_be_captured_are_queued_call_by_call(llama, near_llama, prompts, refused, caplog):
    lanes = (TapeLane(), TapeLane())
    parts, capture = iter(("window", "verify")), lanes[0].capture

    def refuse(work):
        if next(parts) in refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        return capture(work)

    with DeviceDecoder(llama, near_llama, device_lanes=lanes, options=DeviceOptions(bucket=64)) as decoder:
        wanted = answers(decoder, prompts, PARAMS)
        lanes[0].capture = refuse
        decoder.runner.kept = Kept()
        assert answers(decoder, prompts, PARAMS) == wanted
    assert next(parts, None) is None
    assert caplog.text.count("queued call by call, as it cannot be captured") == len(refused)
    assert "operation not permitted" in caplog.text


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cpu", "cpu:0")], ids=["one device", "two devices"])
def test_events_alone_keep_the_lanes_in_order(llama, near_llama, prompts, strategy, devices):
    """Nothing runs before the host waits for it, and then in any order that the events allow."""
    plan = {"strategy": strategy, "gamma": 3, "rule": "token"}
    with DynamicDecoder(llama, near_llama, **plan) as dynamic:
        wanted = answers(dynamic, prompts, PARAMS)
    for seed in range(4):
        schedule = Schedule(seed, devices)
        options = DeviceOptions(lateness=2, bucket=64)
        with DeviceDecoder(llama, near_llama, device_lanes=schedule.lanes, options=options, **plan) as static:
            assert answers(static, prompts, PARAMS) == wanted
        assert schedule.lanes[0].most_waiting > 4, "the host never got ahead of the lanes"


@pytest.mark.parametrize("lane", [0, 1], ids=["target", "draft"])
@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cpu", "cpu:0")], ids=["one device", "two devices"])
def test_a_missing_wait_is_noticed(llama, near_llama, prompts, lane, devices):
    """The test above has power: lanes that do not wait go wrong."""
    plan = {"strategy": "pearl", "gamma": 3, "rule": "coupled"}
    with DynamicDecoder(llama, near_llama, **plan) as dynamic:
        wanted = answers(dynamic, prompts, PARAMS)

    def wrong(seed):
        schedule = Schedule(seed, devices)
        schedule.lanes[lane].wait = lambda event: None
        with DeviceDecoder(llama, near_llama, device_lanes=schedule.lanes, **plan) as static:
            return answers(static, prompts, PARAMS) != wanted

    assert any(wrong(seed) for seed in range(4))


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_window_attention_takes_lengths_from_the_device(architecture, prompts):
    model = build(architecture)
    draft = first_layers(model, 2)
    with DynamicDecoder(model, draft, strategy="pearl", gamma=4, rule="coupled") as decoder:
        wanted = answers(decoder, prompts, PARAMS)
    use_window_attention(model)
    use_window_attention(draft)
    with DeviceDecoder(model, draft, rule="coupled") as decoder:
        assert decoder.target.reads_lengths
        assert answers(decoder, prompts, PARAMS) == wanted


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [("sequential", "token"), ("pearl", "token"), ("pearl", "block"), ("lookup", "token"), ("lookup", "block")],
)
def test_joint_law_of_three_tokens_is_the_targets(strategy, rule):
    target, draft = _tables()
    prompt = [2]
    if strategy == "lookup":  # what it ends in was there before, and went on as it may well again
        first = int(target[0, 2].argmax())
        prompt = [4, 0, 2, first, int(target[1, first].argmax()), 4, 4, 0, 2]
        assert len(prompt) % len(target) == 1, "or the law would be of other rows"
    rows, vocab = 20_000, target.shape[1]
    params = [SamplingParams(temperature=0.8, max_tokens=3, seed=seed) for seed in range(rows)]
    plan = {"strategy": strategy, "rule": rule, "gamma": 2, "max_batch": rows}
    with DeviceDecoder(table_model(target), table_model(draft), **plan) as decoder:
        results = decoder.generate([prompt] * rows, params)
    assert sum(result.stats.accepted_tokens for result in results) > rows / 10
    ids = torch.tensor([result.token_ids for result in results])
    cells = (ids * torch.tensor([vocab**2, vocab, 1])).sum(1)
    counts = torch.bincount(cells, minlength=vocab**3)
    assert _p_value(counts, _exact_law(target, first=2, temperature=0.8)) > 1e-4


@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cpu", "cpu:0")], ids=["one device", "two devices"])
def test_reduced_draft_vocabularies_are_mapped(devices):
    target, draft = _tables()
    reduced = table_model(draft[:, :, 1:4])
    reduced.d2t = torch.tensor([0, 2, 3])
    plan = {"rule": "token", "gamma": 3, "max_batch": 50}
    prompts = [[i % 5] for i in range(50)]
    params = [SamplingParams(temperature=0.8, max_tokens=20, seed=seed) for seed in range(50)]
    with DynamicDecoder(table_model(target), reduced, **(static_plan(reduced) | plan)) as dynamic:
        wanted = answers(dynamic, prompts, params)
    assert any(lengths[1:] for _, _, lengths, _, _ in wanted)
    lanes = tuple(map(InlineLane, devices))
    with DeviceDecoder(table_model(target), reduced, device_lanes=lanes, **plan) as static:
        assert answers(static, prompts, params) == wanted


def test_what_is_no_strategy_of_a_round_is_refused():
    with pytest.raises(ValueError, match=r"strategy must be one of \['autoregressive', .*\], got 'auto'"):
        shape_of("auto", 4)


@pytest.mark.parametrize("bad", [{"lateness": -1}, {"bucket": 0}, {"lateness": 1.0}, {"bucket": True}])
def test_bad_options_name_the_field(bad):
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=f"{name} must be an integer >= .*, got {value!r}"):
        DeviceOptions(**bad)


@pytest.mark.parametrize("attention", ["sdpa", "pearl_window"])
def test_compiled_models_decode_the_same_and_are_compiled_once(prompts, attention):
    """fullgraph: one piece, so that nothing in a model's forward asks the host. Here with no code made of it."""
    model, draft = build("llama"), build("llama")
    if attention != "sdpa":
        use_window_attention(model)
        use_window_attention(draft)
    plan = {"rule": "coupled", "gamma": 3, "options": DeviceOptions(bucket=64)}
    with DeviceDecoder(model, draft, **plan) as decoder:
        wanted = answers(decoder, prompts, PARAMS)
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        for part in (decoder.target, decoder.draft):
            part.compile(backend="eager")
        made = []
        for batch in (prompts, prompts, prompts[::-1]):
            got = answers(decoder, batch, PARAMS)
            made.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
            assert (got == wanted) is (batch is prompts)
        assert decoder.target.is_compiled
        assert decoder.draft.is_compiled
    assert made[0] > 0
    assert made == made[:1] * 3


def test_a_model_that_cannot_be_compiled_is_captured_as_it_was_run(prompts, monkeypatch):
    """Or in the capture kernels would run for the first time."""

    def refuse(graph, inputs):
        raise NotImplementedError("no compiler here")

    def attend(*given, **named):
        appended.append(given[3] is not None)
        return window_attention(*given, **named)

    appended = []
    monkeypatch.setattr("pearl_decode.attention.window_attention", attend)
    model = build("llama")
    use_window_attention(model)
    with DeviceDecoder(model) as decoder:
        decoder.target.compile(backend=refuse)
        assert decoder.generate(prompts, SamplingParams(max_tokens=4))[0].error is None
        assert not decoder.target.is_compiled
    assert appended
    assert all(appended)


def test_a_model_that_cannot_be_compiled_runs_as_it_is(llama, prompts, caplog):
    def refuse(graph, inputs):
        raise NotImplementedError("no compiler here")

    with DeviceDecoder(llama) as decoder:
        wanted = answers(decoder, prompts, PARAMS)
        decoder.target.compile(backend=refuse)
        assert answers(decoder, prompts, PARAMS) == wanted
    assert "LlamaForCausalLM runs as it is" in caplog.text
    assert "no compiler here" in caplog.text
