"""Layers of a model on a GPU that run as one call: which do, what they say, and that they are left as they were.

Without a GPU the models here are on the CPU, in float32, where their static rounds call the same door.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from itertools import count

import pytest
import torch
from torch import nn

from pearl_decode import PearlDecoder, SamplingParams, trials, window_model
from pearl_decode import layer as layers
from pearl_decode import norm as norms
from pearl_decode.attention import use_window_attention
from pearl_decode.cache import WindowCache
from pearl_decode.device import runner
from pearl_decode.device.draft import StaticDraft
from pearl_decode.device.engine import DeviceOptions
from pearl_decode.device.shape import COMPILED_WIDTHS, WIDTHS, shape_of
from pearl_decode.drafts import new_draft
from pearl_decode.first_layers import first_layers
from pearl_decode.lanes.queue import InlineLane
from pearl_decode.layer import WindowDecoderLayer, join_weights, switch_layers, switch_layers_back
from pearl_decode.models import CausalModel
from pearl_decode.norm import WindowNorm, switch_norms_back
from pearl_decode.state import PLACEHOLDER
from pearl_decode.trials import agreeing_layers
from pearl_decode.window_model import WHOLE, WindowModel
from pearl_kernels import SamplingTensors
from pearl_kernels.dispatch import Backend
from tests.runtime.device import DeviceDecoder, Tape, TapeLane, no_host_reads
from tests.runtime.test_layer import count_calls
from tests.runtime.tiny import VOCAB, build

PROMPTS = [[5, 17, 3, 80, 41], [9], [3, 3, 7, 1, 2, 3, 4, 5, 6, 7]]
PARAMS = SamplingParams(max_tokens=24)


@pytest.fixture
def calls(monkeypatch):
    return count_calls(monkeypatch, layers, "window_layer")


def attending(name: str):
    model = build(name).eval()
    use_window_attention(model)
    return model


def texts(model) -> list[list[int]]:
    with DeviceDecoder(model) as decoder:
        return [result.token_ids for result in decoder.generate(PROMPTS, PARAMS)]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_text_is_what_the_models_own_code_says(name, calls):
    model = attending(name)
    own = [type(module) for module in model.modules()]
    wanted = texts(model)
    assert not calls
    switched, found = runner._use_norms(model), runner._use_layers("target", model)
    assert len(found) == 4
    assert len(switched) == (9 if name == "llama" else 17)
    calls.clear()
    assert texts(model) == wanted
    assert len(calls) > 4 * 24
    switch_layers_back(found)
    switch_norms_back(switched)
    assert [type(module) for module in model.modules()] == own
    calls.clear()
    assert texts(model) == wanted
    assert not calls


def test_a_second_decoder_tries_nothing_again(monkeypatch):
    model = attending("llama")
    switched, first = runner._use_norms(model), runner._use_layers("target", model)
    switch_layers_back(first)
    switch_norms_back(switched)
    monkeypatch.setattr(runner, "agreeing_layers", None)
    monkeypatch.setattr(runner, "find_norms", None)
    assert runner._use_norms(model) == switched
    assert runner._use_layers("target", model) == first
    assert all(isinstance(layer, WindowDecoderLayer) for layer, _ in first)


@pytest.fixture
def as_one(monkeypatch):
    """Lets models run as one call; of each kind of call a list that grows with it."""

    def switch(*models) -> None:
        for model in models:
            runner._use_norms(model)
            runner._use_layers("target", model)
            assert runner._run_as_one("target", model)

    switch.calls = {name: count_calls(monkeypatch, window_model, name) for name in ("window_decoder", "draft_chain")}
    return switch


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_model_of_such_layers_runs_as_one_call(name, calls, as_one):
    model = attending(name)
    wanted = texts(model)
    as_one(model)
    calls.clear()
    as_one.calls["window_decoder"].clear()
    assert texts(model) == wanted
    assert not calls
    assert len(as_one.calls["window_decoder"]) > 24


@pytest.mark.parametrize("strategy", ["autoregressive", "lookup"])
def test_its_rounds_are_replayed(strategy, as_one):
    model, graph = attending("llama"), TapeLane()
    wanted = texts(model)
    as_one(model)
    with DeviceDecoder(model, strategy=strategy, device_lanes=(graph, TapeLane())) as decoder:
        assert [result.token_ids for result in decoder.generate(PROMPTS, PARAMS)] == wanted
    assert 0 < graph.captures < 10


@pytest.mark.parametrize("max_batch", [3, 1])
@pytest.mark.parametrize("strategy", ["autoregressive", "pearl"])
def test_what_is_captured_while_somebody_looks_on_is_replayed_on_its_own_memory(strategy, max_batch, as_one):
    """For the next batch, and for requests that take a row, when nobody looks on any more."""
    models = attending("llama"), attending("llama")
    wanted = texts(models[0])
    as_one(*models)
    lanes, plan = (TapeLane(), TapeLane()), {"strategy": strategy, "max_batch": max_batch}
    with DeviceDecoder(*models, options=DeviceOptions(bucket=64), device_lanes=lanes, **plan) as decoder:
        hooks = [model.register_forward_hook(lambda *_: None) for model in models]
        decoder.generate(PROMPTS[::-1], PARAMS)
        for hook in hooks:
            hook.remove()
        captured = [lane.captures for lane in lanes]
        assert [result.token_ids for result in decoder.generate(PROMPTS, PARAMS)] == wanted
        assert [lane.captures for lane in lanes] == captured


def test_angles_are_there_before_others_read_them(as_one, monkeypatch):
    """Lanes may share them: of a model that is its own draft, and of decoders of one model."""
    model, known = attending("llama"), []
    as_one(model)
    whole = getattr(model, WHOLE)

    class Stream:
        def synchronize(self):
            known.append(len(whole._angles))

    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    before = len(whole._angles)
    for capacity in (500, 400, 1000):
        whole._angles_of(capacity)
    assert known == [before, before + 1]


@torch.inference_mode()
def test_a_long_prompt_is_read_into_the_memory_that_the_rounds_use(as_one):
    model, cache = attending("llama"), WindowCache(100)
    as_one(model)
    causal, ids = CausalModel(model), torch.arange(80)[None]
    causal.read(ids, 0, cache)
    before = [layer.keys.data_ptr() for layer in cache.layers]
    causal.forward_at(ids[:, :2], torch.tensor([80]), cache, 100, keep=2)
    assert [layer.keys.data_ptr() for layer in cache.layers] == before
    assert len(as_one.calls["window_decoder"]) == 2 + 1, "two of the trial, and the window"


@torch.inference_mode()
def test_a_row_is_given_on_in_two_copies(as_one):
    """Of a whole model's keys and of its values, however many layers it has."""
    model, ids = attending("llama"), torch.arange(60).view(3, 20)
    as_one(model)
    causal, cache, part = CausalModel(model), WindowCache(40), WindowCache(20)
    causal.read(ids, 0, cache)
    causal.read(ids[:1] + 60, 0, part)
    wanted, before = [tensor[:, 0].clone() for tensor in part._stack], [tensor.clone() for tensor in cache._stack]
    with Tape() as tape:
        cache.take_over(part, [1], 3)
    assert [func for func, *_ in tape.calls].count(torch.ops.aten.copy_.default) == 2
    for own, theirs, old in zip(cache._stack, wanted, before, strict=True):
        assert torch.equal(own[:, 1, :, :20], theirs)
        assert torch.equal(own[:, ::2, :, :20], old[:, ::2, :, :20])


def drafting(d2t: bool):
    target, draft = attending("llama"), attending("llama")
    if d2t:
        draft = new_draft(target, [0, 2], torch.arange(0, 120, 2))
        use_window_attention(draft)
        draft.induction = torch.tensor([1.0, 3.0])
    return target, draft


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("d2t", [False, True])
def test_a_draft_that_is_one_call_drafts_what_it_does_step_by_step(d2t, strategy, rule, as_one, monkeypatch):
    """Of a prompt of one token too, of which a sequential round's draft reads that one and nothing before it."""
    models, found = drafting(d2t), []
    params = [SamplingParams(max_tokens=24, temperature=t, seed=3) for t in (0.0, 0.9, 1.3)]
    graphs = TapeLane(), TapeLane()
    for whole, lanes in ((False, None), (True, None), (True, graphs)):
        if whole and lanes is None:
            as_one(*models)
        as_one.calls["draft_chain"].clear()
        with DeviceDecoder(*models, strategy=strategy, rule=rule, gamma=3, device_lanes=lanes) as decoder:
            for guard in (lambda: no_host_reads(monkeypatch), nullcontext):
                with guard():
                    results = decoder.generate(PROMPTS, params)
                found.append([(result.token_ids, result.stats.accepted_lengths) for result in results])
        assert bool(as_one.calls["draft_chain"]) is whole
    assert found == found[:1] * 6
    assert all(0 < lane.captures < 10 for lane in graphs), "rounds are replayed"


def test_of_a_draft_with_more_ids_than_the_target_each_step_is_drawn_by_itself(as_one):
    """As it has logits that nothing is drawn from."""
    target, draft = attending("llama"), build("llama")
    draft.resize_token_embeddings(130)
    use_window_attention(draft)
    with DeviceDecoder(target, draft, strategy="pearl") as decoder:
        wanted = [result.token_ids for result in decoder.generate(PROMPTS, PARAMS)]
    as_one(target, draft)
    as_one.calls["draft_chain"].clear()
    with DeviceDecoder(target, draft, strategy="pearl") as decoder:
        assert [result.token_ids for result in decoder.generate(PROMPTS, PARAMS)] == wanted
    assert not as_one.calls["draft_chain"]


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@torch.inference_mode()
def test_a_row_that_cannot_be_drawn_from_gives_placeholders_and_the_others_go_on(strategy, as_one):
    model, shape = attending("llama"), shape_of(strategy, 3)
    as_one(model)
    params = SamplingTensors.make(2, temperature=[0.8, 0.0])
    draft = StaticDraft(CausalModel(model), params, 32, VOCAB, coupled=False, keeps_logits=True)
    draft.read(torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]]), 0, [4, 4])
    for layer in draft.cache.layers:
        layer.values[0] = torch.nan
    message = torch.tensor([[5, 0, 9, 9][: 2 + shape.reread], [5, 0, 7, 7][: 2 + shape.reread]])
    drafted = draft.steps(message, shape, 32, None)
    assert as_one.calls["draft_chain"]
    assert drafted.tokens[0].tolist() == [PLACEHOLDER] * 3
    assert (drafted.tokens[1] >= 0).all()


def test_layers_of_other_models_run_as_they_are_written_and_their_norms_do_not():
    model = attending("gemma3")
    wanted = texts(model)
    assert runner._use_layers("target", model) == []
    assert len(runner._use_norms(model)) == 4 * 6 + 1
    assert texts(model) == wanted


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Runners that are made take their models to be on a GPU. Returns what they compile."""
    compiled = []
    monkeypatch.setattr(CausalModel, "device", torch.device("cuda"))
    monkeypatch.setattr(runner, "lanes_of", lambda *_: (InlineLane("cpu"), InlineLane("cpu")))
    monkeypatch.setattr(runner, "backends", lambda: {"triton": Backend(True, "as on a GPU")})
    monkeypatch.setattr(CausalModel, "compile", lambda self, **options: compiled.append(self))
    return compiled


@pytest.mark.parametrize(
    ("name", "asked", "compiled"),
    [
        ("llama", None, False), ("gemma3", None, True), ("llama", True, True), ("gemma3", True, True),
        ("llama", False, False), ("gemma3", False, False),
    ],
)  # fmt: skip
def test_only_models_of_other_layers_are_compiled_unless_that_is_asked(name, asked, compiled, as_on_a_gpu):
    model = CausalModel(build(name))
    rounds = runner.DeviceRunner(model, None, compile=asked)
    assert len(as_on_a_gpu) == compiled
    assert rounds.options.widths == (COMPILED_WIDTHS if compiled else WIDTHS)
    assert len(switched(model.model)) == {"llama": 4 + 9, "gemma3": 25}[name]
    model._compiled = model.model if compiled else None
    with torch.inference_mode():
        assert model.runs_at_once(WindowCache(8)) is (name == "llama" and not compiled)
    rounds.close()
    assert is_as_written(model.model)


def switched(model) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (WindowDecoderLayer, WindowNorm))]


def is_as_written(model) -> bool:
    return not hasattr(model, WHOLE) and not switched(model) and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_model_is_as_it_was_when_its_last_decoder_is_closed(name, as_on_a_gpu):
    """Which may be the draft of one, or of itself. What is compiled does not depend on who else uses it."""
    model, other = build(name), build("llama")
    pairs = [(model, None), (model, model), (other, model)]
    rounds = [runner.DeviceRunner(*(each and CausalModel(each) for each in pair)) for pair in pairs]
    ours, compiled = len(switched(model)), name == "gemma3"
    assert len(as_on_a_gpu) == 4 * compiled
    for index, each in enumerate(rounds):
        assert (len(switched(model)), model.config._attn_implementation) == (ours, "pearl_window")
        assert hasattr(model, WHOLE) is not compiled
        assert is_as_written(other) is (index > 2)
        each.close()
    assert is_as_written(model)
    assert is_as_written(other)


def test_a_model_that_attends_as_ours_does_goes_on_doing_so(as_on_a_gpu):
    model = attending("llama")
    rounds = runner.DeviceRunner(CausalModel(model), None)
    assert hasattr(model, WHOLE)
    rounds.close()
    assert not switched(model)
    assert model.config._attn_implementation == "pearl_window"
    assert not as_on_a_gpu


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_decoder_that_was_not_made_leaves_the_model_as_it_was(monkeypatch):
    model = build("llama")
    with pytest.raises(ValueError, match="strategy must be one of"):
        PearlDecoder(model, strategy="perl")
    assert is_as_written(model)

    def interrupt(*_):
        raise KeyboardInterrupt

    for module, name in ((trials, "_ragged_logits"), (runner, "find_norms"), (runner, "run_as_one")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                runner.DeviceRunner(CausalModel(model), None)
        assert is_as_written(model)


def test_an_interrupted_trial_leaves_the_attention_as_it_was(monkeypatch):
    """The second of two forwards is the one with ours."""
    calls, logits = count(), trials._ragged_logits

    def interrupted(model):
        if next(calls):
            raise KeyboardInterrupt
        return logits(model)

    monkeypatch.setattr(trials, "_ragged_logits", interrupted)
    model = build("llama")
    with pytest.raises(KeyboardInterrupt):
        trials.try_window_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_too_little_memory_costs_no_more_than_speed(monkeypatch, caplog):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(runner, "join_weights", full)
    model = attending("llama")
    with caplog.at_level(logging.WARNING, "pearl_decode"):
        assert runner._use_layers("target", model) == []
    assert "its layers run as they are written, this time: no room" in caplog.text
    monkeypatch.undo()
    assert len(runner._use_layers("target", model)) == 4
    runner._use_norms(model)
    monkeypatch.setattr(WindowModel, "logits", full)
    with caplog.at_level(logging.WARNING, "pearl_decode"):
        assert not runner._run_as_one("target", model)
    assert "it runs layer by layer, this time: no room" in caplog.text
    assert not hasattr(model, WHOLE)
    monkeypatch.undo()
    assert runner._run_as_one("target", model)


def test_a_kernel_that_does_not_compile_costs_no_more_than_speed(monkeypatch, caplog):
    def refuse(*_, **__):
        raise NotImplementedError("no such chip")

    model = attending("llama")
    monkeypatch.setattr(layers, "window_layer", refuse)
    monkeypatch.setattr(norms, "window_norm", refuse)
    with caplog.at_level(logging.WARNING, "pearl_decode"):
        assert runner._use_norms(model) == []
        assert runner._use_layers("target", model) == []
    assert "a decoder layer runs as it is written: NotImplementedError: no such chip" in caplog.text
    monkeypatch.undo()
    model = attending("llama")
    runner._use_norms(model)
    assert len(runner._use_layers("target", model)) == 4
    monkeypatch.setattr(window_model, "window_decoder", refuse)
    with caplog.at_level(logging.WARNING, "pearl_decode"):
        assert not runner._run_as_one("target", model)
    assert "LlamaForCausalLM runs layer by layer: NotImplementedError: no such chip" in caplog.text
    assert not hasattr(model, WHOLE)


def test_models_with_joined_weights_are_saved_as_others_are(tmp_path):
    model = attending("qwen3")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    join_weights(agreeing_layers(model))
    model.save_pretrained(tmp_path)
    after = type(model).from_pretrained(tmp_path).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_draft_of_the_targets_layers_goes_on_sharing_their_memory():
    model = attending("llama")
    draft = first_layers(model, 2)
    before = draft.state_dict()

    def addresses(part):
        return {name: parameter.data_ptr() for name, parameter in part.named_parameters()}

    shared = addresses(draft).items() & addresses(model).items()
    assert len(shared) > 2 * 9
    runner._use_layers("target", model, draft.parameters())
    runner._use_layers("draft", draft, model.parameters())
    assert len(addresses(draft).items() & addresses(model).items()) == len(shared)
    assert shared - addresses(draft).items(), "weights were joined, and so moved"
    assert all(torch.equal(value, before[name]) for name, value in draft.state_dict().items())


def test_weights_of_a_model_that_is_its_own_draft_keep_their_values(monkeypatch):
    """The second layer's joined weights lie where one of the first layer's was before it was moved."""
    model = attending("llama")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found, weight = agreeing_layers(model), model.model.layers[0].self_attn.q_proj.weight
    freed = torch.empty(2 * weight.numel())  # as q is half of q, k and v
    weight.data = freed[: weight.numel()].view_as(weight).copy_(weight)
    cat, calls = torch.cat, count()

    def reusing(parts):
        joined = cat(parts)
        return freed.view_as(joined).copy_(joined) if next(calls) == 2 else joined

    monkeypatch.setattr(torch, "cat", reusing)
    join_weights(found, model.parameters())
    assert [name for name, value in model.named_parameters() if not torch.equal(value, before[name])] == []
    assert model.model.layers[1].self_attn.q_proj.weight.data_ptr() == freed.data_ptr()


def test_joined_weights_are_the_same_parameters_in_one_piece():
    model = attending("qwen3")
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == 48:  # biases where Qwen3 has none
            module.bias = nn.Parameter(torch.randn(48))
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    found = agreeing_layers(model)
    join_weights(found)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, value) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, value)
        assert parameter.is_contiguous()
    for _, parts in found:
        q, k, v, _, gate, up, _ = parts.weights.linears
        for group in ((q, k, v), (gate, up)):
            ends = [each.weight.data_ptr() + each.weight.nbytes for each in group]
            assert ends[:-1] == [each.weight.data_ptr() for each in group[1:]]
    switch_layers(found)
    assert all(parts.unchanged for _, parts in found)


def test_sixteen_bit_layers_may_round_otherwise_and_others_not(monkeypatch):
    """What a layer says of 16 bits may differ by a rounding or two of the greatest number, and by no more."""
    hidden = torch.linspace(-1, 1, 48).bfloat16().view(1, 1, 48)
    for factor, agrees in ((1.004, True), (1.1, False)):
        monkeypatch.setattr(layers, "run_layer", lambda *_, factor=factor: hidden * factor)
        assert layers._agrees(None, hidden, {}, hidden) is agrees
