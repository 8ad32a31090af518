"""Models that run in one call over a window: which do, that they say the same, and when they run as written."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers import AutoModelForCausalLM, LlamaConfig, SmolLM3Config

from pearl_decode import PearlDecoder, SamplingParams, at_once, window_model
from pearl_decode.auto import Choice, Chooser
from pearl_decode.cache import WindowCache
from pearl_decode.drafts import new_draft
from pearl_decode.first_layers import first_layers
from pearl_decode.lanes import CpuLane
from pearl_decode.lanes.target import TargetLane
from pearl_decode.models import CausalModel
from pearl_decode.state import Batch
from pearl_decode.window_model import WHOLE, WindowModel
from tests.runtime.test_layer import SIZES, count_calls, load, windows
from tests.runtime.test_layer import WHOLE as CONFIGS


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def calls(monkeypatch):
    """How often a model ran in one call."""
    return count_calls(monkeypatch, window_model, "window_decoder")


def as_written(model):
    whole = vars(model).pop(WHOLE)
    logits = windows(model)
    setattr(model, WHOLE, whole)
    return logits


def rope(kind: str) -> dict[str, object]:
    return {"rope_theta": 10000.0, "rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 32}


ROTARIES = {kind: LlamaConfig(**SIZES, rope_parameters=rope(kind)) for kind in ("linear", "yarn")}


@pytest.mark.parametrize("config", [*CONFIGS.values(), *ROTARIES.values()], ids=[*CONFIGS, *ROTARIES])
def test_layers_in_one_call_have_the_bits_of_the_models_own_code(config, tmp_path, calls):
    model = load(config, tmp_path)
    calls.clear()
    got = windows(model)
    assert len(calls) == 4, "the prompt, and each window"
    for mine, theirs in zip(got, as_written(model), strict=True):
        assert torch.equal(mine, theirs)
    assert len(calls) == 4


def test_positions_past_those_seen_before_have_angles_too(tmp_path):
    model = load(CONFIGS["llama"], tmp_path)
    whole, ids = getattr(model, WHOLE), torch.arange(200)[None] % 96
    for capacity in (16, 200):
        found = []
        for way in (whole, None):
            setattr(model, WHOLE, way)
            causal, cache = CausalModel(model), WindowCache(capacity)
            with torch.inference_mode():
                causal.forward(ids[:, :10], [0], cache, keep=1)
                causal.read(ids[:, 10 : capacity - 2], 10, cache)
                found.append(causal.forward(ids[:, :2], [capacity - 2], cache, keep=2))
        assert torch.equal(*found)


def test_drafts_made_of_a_model_run_as_it_does(tmp_path, calls):
    model = load(CONFIGS["llama"], tmp_path)
    for draft in (first_layers(model, 2), new_draft(model, [0, 3], torch.arange(0, 96, 2))):
        calls.clear()
        got = windows(draft)
        assert len(calls) == 4
        assert all(torch.equal(a, b) for a, b in zip(got, as_written(draft), strict=True))


@pytest.mark.parametrize(
    "config",
    [SmolLM3Config(**SIZES, use_sliding_window=False), LlamaConfig(**SIZES, rope_parameters=rope("dynamic"))],
    ids=["another kind of layer", "angles that depend on the length"],
)
def test_a_model_that_is_made_of_more_runs_as_it_is_written(config, tmp_path, calls):
    model = load(config, tmp_path)
    assert not hasattr(model, WHOLE)
    windows(model)
    assert not calls


def test_a_model_that_does_more_than_its_parts_is_found_out(tmp_path, monkeypatch):
    """As one that multiplies its embeddings by a number."""
    logits = WindowModel.logits

    def different(*args):
        found = logits(*args)
        return None if found is None else 1.001 * found

    monkeypatch.setattr(WindowModel, "logits", different)
    assert not hasattr(load(CONFIGS["llama"], tmp_path), WHOLE)


def test_who_watches_the_model_sees_what_goes_through_it(tmp_path, calls):
    model = load(CONFIGS["llama"], tmp_path)
    inner = model.model
    layer = inner.layers[2]
    parts = [layer, layer.mlp, layer.mlp.down_proj, layer.self_attn, layer.self_attn.q_proj, layer.input_layernorm]
    for watched in (model, inner, inner.embed_tokens, *parts, inner.norm, model.lm_head):
        seen = []
        hook = watched.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        calls.clear()
        windows(model)
        hook.remove()
        assert len(seen) == 4
        assert not calls
    seen = []
    hook = register_module_forward_hook(lambda module, *_: seen.append(module))
    windows(model)
    hook.remove()
    assert seen.count(layer.mlp.down_proj) == 4
    assert not calls
    windows(model)
    assert len(calls) == 4


def test_what_was_changed_takes_part(tmp_path, calls):
    model = load(CONFIGS["llama"], tmp_path)
    before = windows(model)
    layer = model.model.layers[1]
    layer.mlp.up_proj.weight = torch.nn.Parameter(2 * layer.mlp.up_proj.weight, requires_grad=False)
    calls.clear()
    changed = windows(model)
    assert not calls, "the layer runs as it is written, and so the model"
    assert (changed[0] - before[0]).abs().max() > 1e-3
    model.lm_head.weight.data *= 2
    torch.testing.assert_close(windows(model)[0], 2 * changed[0])


def test_what_is_changed_between_windows_takes_part_in_the_next_text(tmp_path, calls):
    """A cache is of the weights that it was begun with: windows over it are read with those to the end."""
    model = load(CONFIGS["llama"], tmp_path)
    causal, ids = CausalModel(model), torch.arange(6)[None]
    other = copy.deepcopy(model.model.layers[1])
    other.mlp.up_proj.weight.data *= 2

    def logits(cache, start):
        with torch.inference_mode():
            return causal.forward(ids[:, start : start + 3], [start], cache, keep=3)

    wanted, changed, begun = WindowCache(8), WindowCache(8), WindowCache(8)
    for cache in (wanted, begun):
        logits(cache, 0)
    unchanged = logits(wanted, 3)
    kept = model.model.layers[1]
    model.model.layers[1] = other
    for parameter in kept.parameters():
        parameter.data = torch.zeros_like(parameter)
    calls.clear()
    assert torch.equal(logits(begun, 3), unchanged)
    assert len(calls) == 1
    logits(changed, 0)
    assert not torch.equal(logits(changed, 3), unchanged)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_another_type_runs_as_it_is_written(dtype, tmp_path, calls):
    model = load(CONFIGS["llama"], tmp_path)
    before = windows(model)
    calls.clear()
    for mine, theirs in zip(windows(model.to(dtype)), before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert not calls


def test_layers_that_were_exchanged_run_in_their_new_order(tmp_path, calls):
    model = load(CONFIGS["llama"], tmp_path)
    before, layers = windows(model), model.model.layers
    layers[1], layers[2] = layers[2], layers[1]
    calls.clear()
    assert (windows(model)[0] - before[0]).abs().max() > 1e-3
    assert not calls
    layers[1], layers[2] = layers[2], layers[1]
    assert torch.equal(windows(model)[0], before[0])
    assert len(calls) == 4


def test_a_layer_that_was_added_takes_part(tmp_path, calls):
    model = load(CONFIGS["llama"], tmp_path)
    before = windows(model)
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))
    model.model.layers[-1].self_attn.layer_idx = len(model.model.layers) - 1
    model.config.num_hidden_layers = len(model.model.layers)
    calls.clear()
    assert (windows(model)[0] - before[0]).abs().max() > 1e-3
    assert not calls


def test_gradients_go_through_the_models_own_code(tmp_path, calls):
    model = load(CONFIGS["llama"], tmp_path).requires_grad_(True)
    cache = WindowCache(8)
    calls.clear()
    CausalModel(model).forward(torch.tensor([[1, 2, 3]]), [0], cache, keep=1)
    CausalModel(model).forward(torch.tensor([[4]]), [3], cache, keep=1).sum().backward()
    assert not calls
    assert model.model.layers[0].mlp.down_proj.weight.grad is not None


@pytest.mark.parametrize("watched", [False, True])
def test_caches_go_from_one_way_to_the_other_and_lose_rows(watched, tmp_path, calls):
    """As when a model is watched for a while. Caches that its layers made stay theirs."""
    model = load(CONFIGS["llama"], tmp_path)
    whole, ids = getattr(model, WHOLE), torch.arange(30).view(2, 15)

    def logits(ways) -> list[torch.Tensor]:
        causal, cache, found = CausalModel(model), WindowCache(20), []
        with torch.inference_mode():
            for step, (way, rows) in enumerate(zip(ways, (2, 2, 1, 1), strict=True)):
                setattr(model, WHOLE, way)
                if rows == 1 and step == 2:
                    cache.keep([1])
                window = ids[-rows:, 3 * step : 3 * step + 3]
                found.append(causal.forward(window, [3 * step] * rows, cache, keep=1))
        return found

    wanted = logits([None] * 4)
    calls.clear()
    got = logits([None, whole, whole, None] if watched else [whole, None, None, whole])
    assert len(calls) == (0 if watched else 2)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_draft_in_one_call_drafts_what_it_does_step_by_step(strategy, rule, reduced, tmp_path, monkeypatch):
    """As it does where a hook looks on: texts, what was accepted, and the times that are noted."""
    model = load(CONFIGS["llama"], tmp_path)
    draft = new_draft(model, [0, 3], torch.arange(0, 96, 2) if reduced else None)
    draft.induction = torch.tensor([1.0, 3.0])
    monkeypatch.setattr(at_once, "runs_rounds", lambda: False)
    called = count_calls(monkeypatch, window_model, "draft_chain")
    params = [SamplingParams(max_tokens=24, temperature=t, seed=3, ignore_eos=True) for t in (0.0, 0.9, 1.3)]
    found, forwards = [], []
    with PearlDecoder(model, draft, strategy=strategy, gamma=3, rule=rule) as decoder:
        for watched in (False, True):
            called.clear()
            hook = draft.register_forward_hook(lambda *_: None) if watched else None
            results = decoder.generate([[5, 6, 7, 5, 6], [9], [1, 2, 1, 2]], params)
            assert bool(called) is not watched
            found.append([(result.token_ids, result.stats.accepted_lengths) for result in results])
            forwards.append(results[0].stats.draft_forwards)
        assert hook is not None
        hook.remove()
    assert found[0] == found[1]
    assert forwards[0] == forwards[1]


def read(model, prompts) -> WindowCache:
    """What a lane caches of prompts."""
    several, no_seeds = [SamplingParams(max_tokens=4)] * len(prompts), [0] * len(prompts)
    batch = Batch.start(prompts, several, no_seeds, [[]] * len(prompts), 0, model.device)
    lane = TargetLane(CausalModel(model), CpuLane("target", [0]), batch)
    lane.prefill().result()
    lane.lane.close()
    return lane.cache


@pytest.mark.parametrize(
    ("rows", "length", "widths"),
    [
        (1, 1, []),
        (1, 2, [1]),
        (1, 129, [128]),
        (1, 130, [64, 65]),
        (1, 300, [99, 100, 100]),
        (3, 99, [98] * 3),
        (80, 60, [59] * 40),  # two at once
        (129, 60, [59] * 65),
        (200, 2, [1, 1]),
    ],
)
def test_prompts_are_read_in_windows_of_128_rows(rows, length, widths, tmp_path, monkeypatch):
    """And what is cached of a token is to the bit what it is where the token is read by itself."""
    model = load(CONFIGS["llama"], tmp_path)
    prompts = [[(7 * i + row) % 96 for i in range(length)] for row in range(rows)]
    seen = []
    forward = CausalModel.forward

    def noted(self, input_ids, starts, cache, keep):
        seen.append(input_ids.shape[1])
        return forward(self, input_ids, starts, cache, keep)

    monkeypatch.setattr(CausalModel, "forward", noted)
    cache = read(model, prompts)
    assert seen == widths
    causal, alone = CausalModel(model), WindowCache(cache.capacity)
    with torch.inference_mode():
        for i in range(length - 1):
            forward(causal, torch.tensor([[prompts[0][i]]]), [i], alone, 1)
        for mine, theirs in zip(cache.layers, alone.layers, strict=True):
            assert torch.equal(mine.keys[0, :, : length - 1], theirs.keys[0, :, : length - 1])
            assert torch.equal(mine.values[0, :, : length - 1], theirs.values[0, :, : length - 1])


def test_a_draft_that_is_asked_late_reads_what_it_missed_in_such_windows(tmp_path, monkeypatch):
    model = load(CONFIGS["llama"], tmp_path)
    model.config.max_position_embeddings = 512
    seen, turns = [], iter(["autoregressive", "sequential"])

    def noted(method):
        def note(self, input_ids, *rest, **named):
            seen.append(input_ids.shape[1])
            return method(self, input_ids, *rest, **named)

        return note

    def in_turn(self, *_):
        return Choice(next(turns, "sequential"), 3)

    monkeypatch.setattr(Chooser, "choose", in_turn)
    with PearlDecoder(model, first_layers(model, 1), strategy="auto") as decoder:
        wanted = decoder.generate([[7] * 300], SamplingParams(max_tokens=9), strategy="autoregressive", gamma=1)
        for name in ("forward", "draft"):
            monkeypatch.setattr(CausalModel, name, noted(getattr(CausalModel, name)))
        found = decoder.generate([[7] * 300], SamplingParams(max_tokens=9))
    assert found[0].token_ids == wanted[0].token_ids != []
    assert sum(seen) > 600, "both read the prompt"
    assert max(seen) <= 128


def test_every_strategy_gives_the_same_text(tmp_path, calls):
    model = load(CONFIGS["qwen3"], tmp_path)
    calls.clear()
    with PearlDecoder(model, first_layers(model, 1), gamma=3) as decoder:
        params = SamplingParams(max_tokens=20)
        texts = [
            [result.token_ids for result in decoder.generate([[5, 6, 7], [9]], params, strategy=strategy)]
            for strategy in ("autoregressive", "sequential", "pearl")
        ]
    assert texts[0] == texts[1] == texts[2]
    assert calls
    ids = torch.tensor([[5, 6, 7]])
    alone = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    wanted = alone.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert wanted[0, 3:].tolist() == texts[0][0]
