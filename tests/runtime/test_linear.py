"""Models on a CPU whose weights stay in 16 bits."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, LlamaForCausalLM, Qwen2Config

from pearl_decode import PearlDecoder, SamplingParams, attention, lanes, window_model
from pearl_decode.attention import ATTENTION_NAME
from pearl_decode.cache import WindowCache
from pearl_decode.checkpoints import load_model
from pearl_decode.distill.lessons import Head
from pearl_decode.first_layers import first_layers
from pearl_decode.in_front import own_class
from pearl_decode.lanes.cpu import CpuLane, available_cores
from pearl_decode.layer import WindowDecoderLayer
from pearl_decode.linear import WindowLinear, use_window_linear, uses_window_linear
from pearl_decode.memory import cache_bytes
from pearl_decode.models import CausalModel
from pearl_decode.norm import WindowNorm, find_norms
from pearl_decode.storage import pack_weights
from pearl_kernels import Rounds

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, attention_bias=True),
    "qwen2": Qwen2Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=16),
}
IDS = torch.tensor([[1, 2, 3, 4, 5, 6]])


@pytest.fixture(params=CONFIGS)
def directory(request, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(input_ids=ids).logits


def test_computes_in_float32_with_the_checkpoints_own_weights(directory):
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = load_model("target", directory, None)
    layers = {name: module for name, module in ours.named_modules() if isinstance(module, WindowLinear)}
    assert {layer.weight.dtype for name, layer in layers.items() if "proj" in name} == {torch.bfloat16}
    assert all(weight.dtype is torch.float32 for name, weight in ours.named_parameters() if "norm" in name)
    assert logits(ours).dtype is torch.float32
    torch.testing.assert_close(logits(ours), logits(plain), rtol=1e-5, atol=1e-5)
    many = IDS.repeat(40, 1)  # more rows than a window has
    torch.testing.assert_close(logits(ours, many), logits(plain, many), rtol=1e-5, atol=1e-5)


def _threads_of_torch(model, width):
    """While the model computes a window."""
    seen, before = [], torch.get_num_threads()
    hook = model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    with torch.inference_mode():
        CausalModel(model).forward(torch.ones(2, width, dtype=torch.int64), [0, 0], WindowCache(64), keep=1)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
    hook.remove()
    return seen


def test_torch_keeps_out_of_the_way_where_kernels_multiply_all(directory):
    ours = load_model("target", directory, None)
    assert _threads_of_torch(ours, 5) == [1]
    assert _threads_of_torch(ours, 33) == [1]
    ours.model.expert = torch.nn.Parameter(torch.zeros(2, 2))  # a matrix that no kernel multiplies
    assert _threads_of_torch(ours, 5) == [3]


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize(("dtype", "hooked"), [(None, False), (None, True), (torch.bfloat16, False)])
def test_torch_keeps_out_of_the_way_between_a_drafts_steps_too(directory, monkeypatch, dtype, hooked, strategy):
    """Be they taken in one call, alone or with all of a round, or, as where a hook looks on, one by one."""
    seen = []

    def watched(run):
        def noted(*args, **options):
            seen.append(torch.get_num_threads())
            return run(*args, **options)

        return noted

    for owner, run in ((Rounds, "run"), (window_model, "draft_chain"), (lanes.draft, "sample")):
        monkeypatch.setattr(owner, run, watched(getattr(owner, run)))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    target = CpuLane("target", available_cores()[:1] * 3)  # lanes have as many threads as cores, and as torch
    torch.set_num_threads(before)
    pair = target, CpuLane("draft", target.cores, thread_of=target)
    options = {"dtype": dtype, "strategy": strategy, "gamma": 2, "lanes": pair}
    with PearlDecoder.from_pretrained(directory, "first-layers:1", **options) as decoder:
        if hooked:
            decoder.draft.model.register_forward_hook(lambda *_: None)
        decoder.generate([[1, 2, 3]], SamplingParams(max_tokens=4, temperature=1.0, seed=1))
    assert set(seen) == {1 if dtype is None else 3}


def linears(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, WindowLinear)}


def pieces(decoder):
    """All tokens of a text, and the logits of a window of it, by the decoder's target."""
    [result] = decoder.generate([[1, 2, 3]], SamplingParams(max_tokens=20, ignore_eos=True), strategy="sequential")
    with torch.inference_mode():
        window = decoder.target.forward(IDS, [0], WindowCache(16), keep=6)
    return result.token_ids, window


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_decoder_packs_what_it_loaded_to_the_same_bits(directory, dtype):
    loaded = load_model("target", directory, dtype)
    with PearlDecoder(loaded, first_layers(loaded, 1), gamma=2) as decoder:
        text, window = pieces(decoder)
        assert not any(layer.operands.is_packed for layer in linears(loaded).values())
    with PearlDecoder.from_pretrained(directory, "first-layers:1", dtype=dtype, gamma=2) as decoder:
        target, draft = linears(decoder.target.model), linears(decoder.draft.model)
        assert all(layer.operands.is_packed for layer in (*target.values(), *draft.values()))
        layers = [layer for layer in decoder.target.model.modules() if isinstance(layer, WindowDecoderLayer)]
        assert all(layer.parts.unchanged for layer in layers)  # or they would run as they are written
        assert pieces(decoder)[0] == text
        assert torch.equal(pieces(decoder)[1], window)
        shared = [layer.weight.data_ptr() == target[name].weight.data_ptr() for name, layer in draft.items()]
        assert all(shared) if dtype else not any(shared)  # those of 8 bits are the draft's own
        embedding = decoder.target.model.get_input_embeddings()
        assert torch.equal(embedding.weight, loaded.get_input_embeddings().weight)


def test_what_is_on_no_cpu_is_not_packed():
    layer = torch.nn.Linear(8, 4, device="meta")
    layer.__class__ = WindowLinear
    pack_weights(torch.nn.Sequential(layer))
    assert not layer.operands.is_packed


def test_a_packed_model_can_be_saved_moved_and_made_a_draft_of(directory, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = load_model("target", directory, None)
    rows = {name: layer.rows.clone() for name, layer in linears(ours).items()}
    pack_weights(ours)
    assert all(torch.equal(layer.rows, rows[name]) for name, layer in linears(ours).items())
    weights = [layer.weight for layer in linears(ours).values()]
    ours.to("cpu")  # where it is
    changed = [now.weight is not before for now, before in zip(linears(ours).values(), weights, strict=True)]
    assert not any(changed)
    states = ours.state_dict()
    assert all(torch.equal(states[f"{name}.weight"], weight) for name, weight in rows.items())
    torch.testing.assert_close(logits(first_layers(ours, 1)), logits(first_layers(plain, 1)), rtol=1e-5, atol=1e-5)
    head, bare = Head.of(ours), Head.of(plain)
    torch.testing.assert_close(head.weight.float(), bare.weight)
    ours.save_pretrained(tmp_path / "copy")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32).eval()
    assert torch.equal(logits(again), logits(plain))
    torch.testing.assert_close(logits(ours.to(torch.float64)).float(), logits(plain), rtol=1e-5, atol=1e-5)
    assert not any(layer.operands.is_packed for layer in linears(ours).values())


def test_a_stated_dtype_is_kept(directory):
    wide = load_model("target", directory, torch.float32)
    assert {weight.dtype for weight in wide.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(wide), logits(load_model("target", directory, None)), rtol=1e-5, atol=1e-5)
    narrow = load_model("target", directory, torch.bfloat16)
    assert not uses_window_linear(narrow)
    assert logits(narrow).dtype is torch.bfloat16


def test_a_loaded_model_is_left_as_it_is(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    assert load_model("target", model, None) is model
    assert not uses_window_linear(model)


def test_gradients_are_those_of_a_plain_model(directory):
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ours = load_model("target", directory, torch.float32)
    for model in (plain, ours):
        model(input_ids=IDS, labels=IDS).loss.backward()
    for expected, got in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


def test_attends_to_windows_unless_it_would_say_something_else(directory, monkeypatch):
    assert load_model("target", directory, None).config._attn_implementation == ATTENTION_NAME
    plain = AutoModelForCausalLM.from_pretrained(directory)
    operation = attention.window_attention
    monkeypatch.setattr(attention, "window_attention", lambda *args, **named: operation(*args, **named) * 1.1)
    ours = load_model("target", directory, None)
    assert ours.config._attn_implementation == plain.config._attn_implementation


def test_a_model_that_window_attention_does_not_take_runs_as_before(directory, monkeypatch):
    def refuse(*args, **named):
        raise ValueError("q must have a head_dim of at most 512, got 520")

    monkeypatch.setattr(attention, "window_attention", refuse)
    model = load_model("target", directory, None)
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert logits(model).isfinite().all()


def joined_names(model):
    names = {module: name for name, module in model.named_modules()}
    groups = {module.joined for module in model.modules() if isinstance(module, WindowLinear) and module.joined}
    return sorted([names[layer] for layer in group.layers] for group in groups)


def test_layers_of_one_input_are_multiplied_together_to_the_same_bits(directory):
    ours = load_model("target", directory, None)
    layer = "model.layers.0"
    assert [f"{layer}.self_attn.{name}_proj" for name in "qkv"] in joined_names(ours)
    assert [f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"] in joined_names(ours)
    assert len(joined_names(ours)) == 2 * SIZES["num_hidden_layers"]
    together = logits(ours)
    for module in ours.modules():
        if isinstance(module, WindowLinear) and module.joined:
            module.joined.separate()
    assert joined_names(ours) == []
    assert torch.equal(logits(ours), together)


class _Branches(torch.nn.Module):
    """Two layers of the same rows. `both`: whether the second is called; `between`: done to the rows before it is."""

    def __init__(self, both=True, between=None):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
        self.embedding = torch.nn.Embedding(10, 8)
        self.config = LlamaConfig(vocab_size=10)
        self.both, self.between = both, between

    def forward(self, input_ids, use_cache):
        rows = self.embedding(input_ids)
        found = self.first(rows)
        if self.between:
            self.between(rows)
        return SimpleNamespace(logits=found + self.second(rows) if self.both else found)


@torch.inference_mode()
def test_layers_are_not_joined_where_the_rows_change_in_between():
    model = _Branches(between=lambda rows: rows.mul_(2))
    use_window_linear(model)
    assert joined_names(model) == []


@torch.inference_mode()
def test_joined_layers_part_when_one_of_them_is_left_out():
    model = _Branches()
    use_window_linear(model)
    assert joined_names(model) == [["first", "second"]]
    rows, other = torch.randn(3, 8), torch.randn(3, 8)
    wanted = [rows @ layer.weight.T + layer.bias for layer in (model.first, model.second)]
    torch.testing.assert_close(model.first(rows), wanted[0])
    torch.testing.assert_close(model.second(other), other @ model.second.weight.T + model.second.bias)
    torch.testing.assert_close(model.second(rows), wanted[1])
    model.first(rows)
    torch.testing.assert_close(model.first(rows), wanted[0])
    assert joined_names(model) == []
    torch.testing.assert_close(model.second(rows), wanted[1])


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_decodes_with_a_draft_of_its_own_layers(directory, strategy):
    target = load_model("target", directory, None)
    draft = first_layers(target, 1)
    assert uses_window_linear(draft)
    with PearlDecoder(target, draft, gamma=3, strategy=strategy) as decoder:
        params = SamplingParams(max_tokens=40, ignore_eos=True)
        prompts = [IDS[0].tolist(), [7, 8]]
        results = decoder.generate(prompts, params)
        alone = decoder.generate(prompts, params, strategy="autoregressive")
    assert [result.token_ids for result in results] == [result.token_ids for result in alone]


def test_a_model_that_looks_at_the_type_of_its_weights_becomes_float32():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).to(torch.bfloat16)
    head = model.lm_head

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ head.weight.T

    head.forward = forward
    use_window_linear(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert logits(model).dtype is torch.float32


def test_norms_are_recognised_by_what_they_give(directory):
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = load_model("target", directory, None)
    norms = [module for module in ours.modules() if isinstance(module, WindowNorm)]
    assert len(norms) == sum("norm" in name for name, _ in plain.named_parameters()) > 0
    assert {norm.norm_offset for norm in norms} == {1.0 if "Gemma2" in type(ours).__name__ else 0.0}
    assert {own_class(norm) for norm in norms} == {type(m) for m in plain.modules() if "Norm" in type(m).__name__}
    torch.testing.assert_close(logits(ours), logits(plain), rtol=1e-5, atol=1e-5)
    assert type(copy.deepcopy(norms[0])) is type(norms[0])


@pytest.mark.parametrize(
    "other", [torch.nn.LayerNorm(8, bias=False), torch.nn.RMSNorm(8), torch.nn.GroupNorm(2, 8), torch.nn.PReLU(8)]
)
@torch.inference_mode()
def test_modules_that_are_no_such_norm_are_left_alone(other):
    assert find_norms(torch.nn.Sequential(other)) == []


def test_a_cache_is_as_large_as_it_is_said_to_be(directory):
    causal, cache = CausalModel(load_model("target", directory, None)), WindowCache(11)
    causal.read(torch.zeros(2, 7, dtype=torch.int64), 0, cache)
    assert cache_bytes(causal, 2, 11) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_a_vocabulary_of_one_token_does(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 1})).to(torch.bfloat16).save_pretrained(tmp_path)
    with PearlDecoder.from_pretrained(str(tmp_path)) as decoder:
        assert decoder.generate([[0, 0]], SamplingParams(max_tokens=3))[0].token_ids == [0, 0, 0]
