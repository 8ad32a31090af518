"""Loading pairs: what fits together, and what is said when it does not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.drafts import DraftConfig, config_hash, load_draft, new_draft, save_draft
from pearl_decode.models import CausalModel
from tests.runtime.scripted import ScriptedModel, sequence_model
from tests.runtime.tiny import SIZES, VOCAB, build

WORDS = [f"w{i}" for i in range(100)] + ["<end>", "<begin>"]


def _save(directory, words=WORDS, vocab_size=128, seed=0, end="<end>"):
    torch.manual_seed(seed)
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, unk_token="w0")
    LlamaForCausalLM(LlamaConfig(**(SIZES | {"vocab_size": vocab_size}))).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("target"))


def test_pair_from_paths_decodes_text(target_dir, tmp_path):
    draft = _save(tmp_path / "draft", seed=1)
    with PearlDecoder.from_pretrained(target_dir, draft) as decoder:
        result = decoder.generate("w1 w2 w3", SamplingParams(max_tokens=8))
    with PearlDecoder.from_pretrained(str(target_dir), "first-layers:2") as decoder:
        assert decoder.generate("w1 w2 w3", SamplingParams(max_tokens=8)).text == result.text
    assert result.text


@pytest.mark.parametrize("size", [104, 200])
@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_different_padded_vocabularies_of_one_tokenizer_work(target_dir, tmp_path, size, rule):
    draft = _save(tmp_path / "draft", vocab_size=size)
    params = SamplingParams(temperature=1.0, max_tokens=30, seed=4)
    with PearlDecoder.from_pretrained(target_dir, draft, rule=rule) as decoder:
        results = decoder.generate(["w1 w2 w3", "w5"], params)
        plain = decoder.generate(["w1 w2 w3", "w5"], params, strategy="autoregressive")
    assert all(result.error is None for result in results)
    if rule == "coupled":
        assert [r.token_ids for r in results] == [r.token_ids for r in plain]


def test_draft_padded_beyond_the_target_keeps_the_targets_law():
    """The draft puts half its mass on ids the target lacks: they are cut before it samples, so nothing is refused."""
    target = ScriptedModel(8, lambda positions, ids: torch.zeros(*ids.shape, 8))
    draft = ScriptedModel(16, lambda positions, ids: torch.zeros(*ids.shape, 16))
    with PearlDecoder(target, draft, strategy="pearl", gamma=4) as decoder:
        [result] = decoder.generate([[1]], SamplingParams(temperature=1.0, max_tokens=200, seed=3))
    # Equal distributions: every drafted token of every chain is accepted.
    assert result.stats.accepted_tokens == result.stats.emitted_tokens == 200


def test_different_tokenizers_name_both_and_the_first_differing_id(target_dir, tmp_path):
    words = list(WORDS)
    words[17], words[30] = words[30], words[17]
    draft = _save(tmp_path / "other", words=words)
    with pytest.raises(ValueError, match="must be the same") as error:
        PearlDecoder.from_pretrained(target_dir, draft)
    message = str(error.value)
    assert str(target_dir) in message
    assert str(draft) in message
    assert "the first differing id is 17: 'w17' in the target, 'w30' in the draft" in message


def test_different_special_tokens_are_named(target_dir, tmp_path):
    draft = _save(tmp_path / "other", end="<begin>")
    with pytest.raises(ValueError, match="eos_token_id is 100 in the target, 101 in the draft"):
        PearlDecoder.from_pretrained(target_dir, draft)


def test_missing_models_are_named(tmp_path, target_dir):
    with pytest.raises(ValueError, match=r"target: expected a model directory or a hub id, but there is no '/no/such"):
        PearlDecoder.from_pretrained("/no/such/model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="draft: cannot load a causal model from"):
        PearlDecoder.from_pretrained(target_dir, tmp_path / "empty")
    for bad in ("first-layers:", "first-layers:x", "first-layers:-1"):
        with pytest.raises(ValueError, match="draft: expected first-layers:N"):
            PearlDecoder.from_pretrained(target_dir, bad)
    with pytest.raises(ValueError, match="needs N from 1 to 3 for this target, got 4"):
        PearlDecoder.from_pretrained(target_dir, "first-layers:4")


def test_what_is_neither_a_model_nor_its_name_is_refused(llama):
    with pytest.raises(ValueError, match=r"target: expected a causal model .* a path or hub id, got None"):
        PearlDecoder.from_pretrained(None)
    with pytest.raises(ValueError, match=r"draft: expected a causal model .* a path or hub id, got 5"):
        PearlDecoder.from_pretrained(llama, 5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # for the second transformers makes an empty tokenizer up
def test_weights_saved_without_a_tokenizer_decode_ids(name, tmp_path, caplog, greedy_reference):
    build(name).save_pretrained(tmp_path)
    with PearlDecoder.from_pretrained(tmp_path, "first-layers:2") as decoder:
        [result] = decoder.generate([[1, 2, 3]], SamplingParams(max_tokens=6))
    assert decoder.tokenizer is None
    assert result.token_ids == greedy_reference(build(name), [1, 2, 3], 6)
    [record] = caplog.records
    assert record.getMessage().startswith(f"target: no tokenizer in {tmp_path}: prompts are token ids")


def test_tokenizer_may_be_somewhere_else(target_dir, tmp_path):
    LlamaForCausalLM(LlamaConfig(**(SIZES | {"vocab_size": 128}))).save_pretrained(tmp_path)
    with PearlDecoder.from_pretrained(tmp_path, tokenizer=target_dir) as decoder:
        assert decoder.generate("w1 w2", SamplingParams(max_tokens=4)).text
    with pytest.raises(ValueError, match=r"tokenizer: expected a model directory .* no './nowhere'"):
        PearlDecoder.from_pretrained(tmp_path, tokenizer="./nowhere")


def test_draft_saved_without_a_tokenizer_is_taken_with_a_warning(target_dir, tmp_path, caplog):
    LlamaForCausalLM(LlamaConfig(**(SIZES | {"vocab_size": 128}))).save_pretrained(tmp_path)
    with PearlDecoder.from_pretrained(target_dir, tmp_path) as decoder:
        assert decoder.generate("w1 w2", SamplingParams(max_tokens=4)).error is None
    assert [record.getMessage() for record in caplog.records] == [
        f"draft: no tokenizer in {tmp_path}: its ids are taken for the target's"
    ]


@pytest.mark.parametrize("content", ["{", '{"added_tokens": [], "model": 3}'])
def test_broken_tokenizer_is_an_error(tmp_path, content):
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="target: cannot load a tokenizer from"):
        PearlDecoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"), "lacks 1 of the model's weights, 'model.la"),
        (
            lambda weights: weights.update({"lm_head.weight": torch.zeros(9, 4)}),
            r"must be \(128, \d+\) .* got \(9, 4\)",
        ),
    ],
)
def test_weights_that_are_missing_or_of_other_shapes_are_named_and_not_made_up(tmp_path, change, message):
    _save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"target: '{tmp_path}'.*{message}"):
        PearlDecoder.from_pretrained(tmp_path)


def _truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


def _mistype(directory):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": "four"}))


@pytest.mark.parametrize("damage", [_truncate, _mistype])
def test_a_damaged_checkpoint_is_named(target_dir, tmp_path, damage):
    damage(_save(tmp_path))
    with pytest.raises(ValueError, match=f"draft: cannot load a causal model from '{tmp_path}': "):
        PearlDecoder.from_pretrained(target_dir, tmp_path)


@pytest.mark.parametrize(
    ("layers", "tensors", "message"),
    [
        (3, {}, r"cannot read .*draft.json: 'int' object is not iterable"),
        ([0, "1"], {}, r"cannot read .*draft.json: layers must be integers, got \[0, '1'\]"),
        ([0, 9], {}, r"layers must be in \[0, 4\), got \[0, 9\]"),
        ([0, 1], {"d2t": torch.tensor([3, 999])}, r"cannot read .*draft.safetensors: index 999 is out of bounds"),
        (
            [0, 1],
            {"model.norm.weight": torch.ones(1)},
            r"must hold \[\('model.norm.weight', \(48,\)\)\], got \[\('model.norm.weight', \(1,\)\)\]",
        ),
    ],
)
def test_a_damaged_draft_is_named(llama, tmp_path, layers, tensors, message):
    draft = new_draft(llama, [0, 1], torch.tensor([3, 5, 7]))
    save_draft(tmp_path, draft, DraftConfig("llama", config_hash(llama), layers, 3, VOCAB))
    path = tmp_path / "draft.safetensors"
    save_file(load_file(path) | tensors, path)
    with pytest.raises(ValueError, match=f"draft: .*{message}"):
        load_draft(tmp_path, llama)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_device": "cuda:7"}, r"target_device must be one of \['cpu'.*\] here, got 'cuda:7'"),
        ({"target_device": "gpu"}, r"target_device must be one of \['cpu'.*\] here, got 'gpu'"),
        ({"draft_device": "tpu", "draft": "first-layers:2"}, r"draft_device must be one of \['cpu'.*, got 'tpu'"),
        ({"draft_device": "cpu"}, "draft_device: expected None where there is no draft, got 'cpu'"),
        ({"target_device": "cpu", "device_map": "auto"}, "device_map: expected None where target_device is given"),
    ],
)
def test_bad_devices_name_the_option(target_dir, options, message):
    with pytest.raises(ValueError, match=message):
        PearlDecoder.from_pretrained(target_dir, **options)


def test_loaded_models_stay_where_they_are(llama):
    with pytest.raises(
        ValueError, match="target_device: expected None, as a loaded model stays where it is, got 'cpu'"
    ):
        PearlDecoder.from_pretrained(llama, target_device="cpu")
    with PearlDecoder.from_pretrained(llama, "first-layers:2") as decoder:
        assert decoder.target.model is llama
        assert decoder.draft.device == decoder.target.device


def test_models_are_loaded_where_they_are_wanted(target_dir, monkeypatch):
    """The draft beside the target, unless it is given a device. What is loaded, and where to, is written down."""
    asked = []
    load = AutoModelForCausalLM.from_pretrained

    def noted(source, **options):
        asked.append(options.pop("device_map"))
        model, found = load(source, **options)
        monkeypatch.setattr(type(model), "to", lambda self, device: (asked.append(str(device)), self)[1])
        return model, found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    for options, wanted in (
        ({}, [None, "cpu", None, "cpu"]),
        ({"target_device": "cpu"}, [None, "cpu", None, "cpu"]),
        ({"target_device": "auto"}, ["auto", None, "cpu"]),
        ({"device_map": {"": "cpu"}, "draft_device": "cpu"}, [{"": "cpu"}, None, "cpu"]),
    ):
        asked.clear()
        PearlDecoder.from_pretrained(target_dir, target_dir, **options).close()
        if not torch.cuda.is_available() or options.get("target_device") == "cpu":
            assert asked == wanted


def test_models_that_cannot_decode_windows_are_refused(llama):
    llama.config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(ValueError, match="target: attention must be 'sdpa' or 'eager', got 'flash_attention_2'"):
            CausalModel(llama, "target")
    finally:
        llama.config._attn_implementation = "sdpa"
    recurrent = sequence_model([1, 2], 8)
    recurrent.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match=r"draft: every layer must be .* got \['linear_attention'\]"):
        CausalModel(recurrent, "draft")


class _Wrapped(torch.nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.inner, self.config, self.device, self.dtype = inner, inner.config, inner.device, inner.dtype


class _WithCache(_Wrapped):
    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, **kwargs):
        return self.inner(input_ids, attention_mask, position_ids, cache, **kwargs)


class _WithPastKeyValues(_Wrapped):
    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        return self.inner(input_ids, attention_mask, position_ids, past_key_values, **kwargs)


@pytest.mark.parametrize("kind", [_WithCache, _WithPastKeyValues])
def test_the_cache_goes_by_either_name_that_models_give_it(kind, llama, prompts, greedy_reference):
    with PearlDecoder(kind(llama)) as decoder:
        results = decoder.generate(prompts, SamplingParams(max_tokens=10))
    assert [r.token_ids for r in results] == [greedy_reference(llama, prompt, 10) for prompt in prompts]


def test_draft_with_a_reduced_vocabulary_maps_its_ids(llama, prompts, greedy_reference):
    """d2t: the draft speaks 20 of the target's ids, and is right whenever the target's token is one of them."""
    expected = [greedy_reference(llama, prompt, 30) for prompt in prompts]
    spoken = torch.tensor(sorted({token for ids in expected for token in ids})[::2])

    def speak_few(module, inputs, output):
        output.logits = output.logits[..., spoken]

    draft = _WithPastKeyValues(build("llama"))
    draft.d2t = spoken
    draft.register_forward_hook(speak_few)
    with PearlDecoder(llama, draft, strategy="pearl", gamma=3) as decoder:
        results = decoder.generate(prompts, SamplingParams(max_tokens=30))
        sampled = decoder.generate(prompts, SamplingParams(max_tokens=30, temperature=0.6, seed=1), rule="block")
    assert [r.token_ids for r in results] == expected
    assert sum(r.stats.accepted_tokens for r in results) > 20
    assert all(r.error is None and len(r.token_ids) == 30 for r in sampled)


def test_reduced_vocabulary_keeps_the_law():
    """Target uniform on 6 ids, draft on 3 of them: accepted tokens and corrections together are uniform."""
    target = ScriptedModel(6, lambda positions, ids: torch.zeros(*ids.shape, 6))
    draft = ScriptedModel(3, lambda positions, ids: torch.zeros(*ids.shape, 3))
    draft.d2t = torch.tensor([0, 2, 5])
    rows = 4000
    params = [SamplingParams(temperature=1.0, max_tokens=2, seed=seed) for seed in range(rows)]
    for rule in ("token", "block"):
        with PearlDecoder(target, draft, max_batch=rows, rule=rule, gamma=2) as decoder:
            ids = torch.tensor([result.token_ids for result in decoder.generate([[1]] * rows, params)])
        counts = torch.bincount(ids[:, 0] * 6 + ids[:, 1], minlength=36).double()
        statistic = float(((counts - rows / 36) ** 2 / (rows / 36)).sum())
        assert statistic < 80, "chi-square of 35 degrees of freedom: below 80 in all but 2 of 100000 runs"


def test_compiling_is_for_rounds_of_fixed_shapes():
    model = sequence_model([1, 2, 3], 8)
    with pytest.raises(ValueError, match=r"compile must be None or False for a target on cpu, .* got True"):
        PearlDecoder(model, compile=True)
    PearlDecoder(model, compile=False).close()
