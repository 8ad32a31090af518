"""A model says the same with `window_attention` as with transformers' own attention, over ragged caches too."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from pearl_decode import attention
from pearl_decode import cache as cache_module
from pearl_decode.attention import ATTENTION_NAME, use_window_attention
from pearl_decode.cache import WindowCache
from pearl_decode.device import runner
from pearl_decode.linear import use_window_linear
from pearl_decode.models import CausalModel
from tests.runtime.tiny import SIZES, VOCAB, enlarged

STARTS = [21, 9, 14]
WIDTH = 4


def _llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def _gemma2():
    kinds = ["sliding_attention", "full_attention"] * 2
    sizes = {**SIZES, "layer_types": kinds, "sliding_window": 8, "query_pre_attn_scalar": 12}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, attn_logit_softcapping=0.5))


def _mistral():
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))


MODELS = {"llama": _llama, "gemma2": _gemma2, "mistral": _mistral}


def build(name: str, attn: str):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(6.0)
    if attn == ATTENTION_NAME:
        use_window_attention(model)
    else:
        model.set_attn_implementation(attn)
    return model


def texts() -> torch.Tensor:
    return torch.randint(VOCAB, (len(STARTS), max(STARTS) + WIDTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_whole_texts_give_the_logits_of_eager_attention(name: str) -> None:
    ids = texts()
    padding = torch.ones_like(ids)
    padding[1, :5] = 0
    for mask in (None, padding):
        got, wanted = (build(name, attn)(ids, attention_mask=mask).logits for attn in (ATTENTION_NAME, "eager"))
        kept = padding.bool() if mask is not None else torch.ones_like(ids, dtype=torch.bool)
        torch.testing.assert_close(got[kept], wanted[kept], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_several_rows_over_a_ragged_cache_give_the_logits_of_each_whole_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward that gets each row's first new position instead of a mask; stale entries lie behind the rows."""
    model, judge, ids = build(name, ATTENTION_NAME), build(name, "eager"), texts()
    calls = []
    operation = attention.window_attention
    monkeypatch.setattr(attention, "window_attention", lambda *a, **k: calls.append(k) or operation(*a, **k))
    cache = WindowCache(64)
    windows = CausalModel(model)
    windows.forward(ids[:, : max(STARTS)], [0] * len(STARTS), cache, keep=1)
    calls.clear()
    starts = torch.tensor(STARTS)
    positions = starts[:, None] + torch.arange(WIDTH)
    window = ids.gather(1, positions)
    cache.place(STARTS, WIDTH, ids.device)
    got = windows.call(model, window, positions, starts[:, None, None, None], cache, keep=WIDTH)
    assert len(calls) == SIZES["num_hidden_layers"]
    for row, start in enumerate(STARTS):
        wanted = judge(ids[row : row + 1, : start + WIDTH]).logits[0, start:]
        torch.testing.assert_close(got[row], wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_a_window_gives_the_bits_of_its_tokens_one_by_one(name: str) -> None:
    """Whatever the width, the rows beside it and what is stale behind them: greedy text cannot part."""
    model, ids = build(name, ATTENTION_NAME), texts()
    use_window_linear(model)
    windows = CausalModel(model)
    together, apart = WindowCache(64), WindowCache(64)
    for cache in (together, apart):
        windows.forward(ids[:, : max(STARTS)], [0] * len(STARTS), cache, keep=1)
    got = windows.forward(ids.gather(1, torch.tensor(STARTS)[:, None] + torch.arange(WIDTH)), STARTS, together, WIDTH)
    for i in range(WIDTH):
        starts = [start + i for start in STARTS]
        step = windows.forward(ids.gather(1, torch.tensor(starts)[:, None]), starts, apart, 1)
        assert torch.equal(got[:, i], step[:, 0]), i
    for layer, other in zip(together.layers, apart.layers, strict=True):
        assert torch.equal(layer.keys, other.keys)
        assert torch.equal(layer.values, other.values)


@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_starts_on_the_device_give_the_bits_of_starts_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention appends what is new in both, and the cache writes nothing."""
    windows, ids = CausalModel(build(name, ATTENTION_NAME)), texts()
    there, here = WindowCache(64), WindowCache(64)
    for cache in (there, here):
        windows.forward(ids[:, : max(STARTS)], [0] * len(STARTS), cache, keep=1)
    monkeypatch.delattr(WindowCache, "write")
    window = ids.gather(1, torch.tensor(STARTS)[:, None] + torch.arange(WIDTH))
    got = windows.forward_at(window, torch.tensor(STARTS), there, 64, keep=WIDTH)
    assert torch.equal(got, windows.forward(window, STARTS, here, keep=WIDTH))
    for layer, other in zip(there.layers, here.layers, strict=True):
        assert torch.equal(layer.keys, other.keys)
        assert torch.equal(layer.values, other.values)


@torch.no_grad()
def test_masked_attention_has_one_index_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, ids, made = CausalModel(build("llama", "sdpa")), texts(), []
    index_of = cache_module._index_of
    monkeypatch.setattr(cache_module, "_index_of", lambda positions: made.append(positions) or index_of(positions))
    windows.forward_at(ids[:, :WIDTH], torch.tensor([0, 1, 2]), WindowCache(64), 16, keep=1)
    assert len(made) == 1


@pytest.mark.parametrize("on_device", [False, True])
@torch.no_grad()
def test_a_model_that_attends_to_copies_of_its_cache_misses_nothing(on_device: bool) -> None:
    """What was left to be appended would be lost with the copy: the forward is made again, and none after it."""
    ids = texts()
    judge, model = CausalModel(build("llama", "eager")), build("llama", ATTENTION_NAME)
    cache, others = WindowCache(64), WindowCache(64)
    update, calls = cache.update, []

    def copies(*args, **kwargs):
        calls.append(args[2])
        return tuple(states.clone() for states in update(*args, **kwargs))

    cache.update = copies
    windows = CausalModel(model)
    for first, starts in ((0, [0, 0, 0]), (8, [8, 8, 8]), (12, [12, 11, 10])):
        window = ids[:, first : first + 4]
        if on_device:
            got = windows.forward_at(window, torch.tensor(starts), cache, 64, keep=4)
        else:
            got = windows.forward(window, starts, cache, keep=4)
        torch.testing.assert_close(got, judge.forward(window, starts, others, 4), atol=2e-4, rtol=1e-4)
    assert len(calls) == 4 * SIZES["num_hidden_layers"]


@pytest.mark.parametrize("name", list(MODELS))
def test_generate_writes_the_same_text(name: str) -> None:
    ids = texts()[:1, :7]
    got, wanted = (
        build(name, attn).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        for attn in (ATTENTION_NAME, "eager")
    )
    assert torch.equal(got, wanted)


def test_a_model_without_attention_backends_is_refused() -> None:
    model = _llama()
    model._supports_attention_backend = False
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM: must support attention backends"):
        use_window_attention(model)


def test_chunked_layers_are_refused() -> None:
    model = _llama()
    model.config.layer_types = ["chunked_attention"] * 4
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM: layers must be full or sliding .* got chunked$"):
        use_window_attention(model)


def test_arguments_that_change_the_scores_are_refused() -> None:
    q, kv = torch.zeros(1, 2, 1, 16), torch.zeros(1, 1, 8, 16)
    with pytest.raises(ValueError, match=r"^pearl_window: attention must not need s_aux"):
        attention.attention_forward(
            torch.nn.Module(), q, kv, kv, torch.zeros(1, 1, 1, 1, dtype=torch.int64), s_aux=torch.zeros(2)
        )


def _deepseek_v3():
    """Whose values have other heads than its keys."""
    own = {"num_key_value_heads": 4, "head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8}
    heads = {"qk_nope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": 4}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**(SIZES | own | heads)))


def _diffllama():
    """Which takes apart what its attention gives."""
    return DiffLlamaForCausalLM(DiffLlamaConfig(**SIZES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "refusal"),
    [(_llama, None), (_deepseek_v3, "v_cache must be "), (_diffllama, "its logits would be others")],
)
def test_a_runner_for_gpus_replaces_attention_where_one_trial_gives_the_same(
    make, refusal: str | None, dtype: torch.dtype, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, attempt = [], runner.try_window_attention
    monkeypatch.setattr(runner, "try_window_attention", lambda *args: trials.append(args[0]) or attempt(*args))
    model = enlarged(make).to(dtype)
    for _ in range(2):
        model.set_attn_implementation("sdpa")
        assert runner._read_lengths("target", CausalModel(model)) is (refusal is None)
        assert model.config._attn_implementation == ("sdpa" if refusal else ATTENTION_NAME)
    assert trials == [model]
    assert len(caplog.messages) == (2 if refusal else 0)
    assert all("longest row's length" in message and refusal in message for message in caplog.messages)


class CompilerError(Exception):
    """As Triton's own, which are no RuntimeErrors."""


@pytest.mark.parametrize(
    ("error", "trials"), [(CompilerError("no such shape"), 1), (torch.OutOfMemoryError("memory is short"), 2)]
)
def test_a_trial_that_fails_leaves_the_attention_and_a_lack_of_memory_is_not_remembered(
    error: Exception, trials: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def failing(*args: object, **options: object) -> None:
        tried.append(1)
        raise error

    monkeypatch.setattr("pearl_decode.attention.window_attention", failing)
    model = enlarged(_llama)
    for _ in range(2):
        assert not runner._read_lengths("target", CausalModel(model))
        assert model.config._attn_implementation == "sdpa"
    assert len(tried) == trials
    assert all(str(error) in message for message in caplog.messages)
    monkeypatch.undo()
    assert runner._read_lengths("target", CausalModel(model)) is (trials == 2)
