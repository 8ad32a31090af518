"""From a GGUF file of the llama architecture to a folder that transformers loads: config, weights, tokenizer.

The weights are dequantised here and not by transformers, whose GGUF loading leaves a model that cannot be saved.
They are kept in bfloat16, the type the model was published in: each forward reads all of them, so it takes half the
time that it would in float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file

Array = np.ndarray[Any, np.dtype[np.float32]]

_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN, _USER_TOKEN = 3, 4  # tokenizer.ggml.token_type


def convert_gguf(gguf_path: Path, directory: Path, report: Callable[[str], None]) -> None:
    """Write config, generation config, bfloat16 safetensors and tokenizer into a directory that does not exist yet.

    Raises ValueError for an architecture, tensor or tokenizer that this conversion does not know.
    """
    report(f"reading {gguf_path.name}")
    reader = GGUFReader(gguf_path)
    directory.mkdir()
    config = read_config(reader)
    write_json(directory / "config.json", config)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_json(directory / "generation_config.json", {name: config[name] for name in special})
    weights_path = directory / "model.safetensors"
    save_file(read_weights(reader, config, report), weights_path, metadata={"format": "pt"})
    weights_path.chmod(0o644)  # safetensors writes private files, but a cache may be shared
    report("writing the tokenizer")
    write_tokenizer(reader, directory)


def hf_name(gguf_name: str) -> str:
    """The transformers name of a tensor: blk.3.attn_q.weight is model.layers.3.self_attn.q_proj.weight."""
    if gguf_name in _TOP_LEVEL:
        return _TOP_LEVEL[gguf_name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", gguf_name)
    if match is None or match[2] not in _PER_LAYER:
        raise ValueError(f"convert_gguf: no place for tensor {gguf_name!r} in a llama model")
    return f"model.layers.{match[1]}.{_PER_LAYER[match[2]]}.weight"


def unpermute_rope(weight: Array, heads: int) -> Array:
    """Undo llama.cpp's row order of a query or key projection.

    weight: (heads * head_dim, hidden). llama.cpp rotates neighbouring pairs of rows (0, 1), (2, 3), ...;
    transformers rotates row i with row i + head_dim / 2. So, within a head, row 2 i + half here is row
    half * head_dim / 2 + i there.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, hidden))


def read_config(reader: GGUFReader) -> dict[str, Any]:
    """The LlamaConfig fields, from the GGUF's own metadata."""
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"convert_gguf: general.architecture must be 'llama', got {architecture!r}")
    heads = _field(reader, "llama.attention.head_count")
    hidden = _field(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": _field(reader, "llama.vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "rms_norm_eps": round(_field(reader, "llama.attention.layer_norm_rms_epsilon"), 12),
        "rope_parameters": {"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }


def read_weights(reader: GGUFReader, config: dict[str, Any], report: Callable[[str], None]) -> dict[str, torch.Tensor]:
    """Every tensor in bfloat16 under its transformers name."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights: dict[str, torch.Tensor] = {}
    total = len(reader.tensors)
    for done, tensor in enumerate(reader.tensors):
        if done % (total // 4 + 1) == 0:
            report(f"converting weights to bfloat16: {100 * done // total}%")
        weight: Array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weight = unpermute_rope(weight, heads[kind])
        weights[hf_name(tensor.name)] = to_bfloat16(weight)
    return weights


def to_bfloat16(weight: Array) -> torch.Tensor:
    """Round to the nearest, ties to even. In numpy: torch's own threads hang in a process forked after they began."""
    bits = np.ascontiguousarray(weight).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return torch.from_numpy(rounded.astype(np.uint16)).view(torch.bfloat16)


def write_tokenizer(reader: GGUFReader, directory: Path) -> None:
    """Write the byte-level BPE of the SmolLM family, with special tokens and chat template.

    Built from the metadata directly: transformers' GGUF tokenizers leave out the splitting of digits that
    tokenizer.ggml.pre = smollm stands for, and encode runs of blanks before a number differently.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = (_field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"convert_gguf: tokenizer (model, pre) must be ('gpt2', 'smollm'), got {kind}")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    types: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (_CONTROL_TOKEN, _USER_TOKEN):
            added = AddedToken(token, normalized=False, special=token_type == _CONTROL_TOKEN)
            (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
    make: Any = PreTrainedTokenizerFast  # untyped in transformers
    fast = make(
        tokenizer_object=tokenizer,
        bos_token=tokens[_field(reader, "tokenizer.ggml.bos_token_id")],
        eos_token=tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        pad_token=tokens[_field(reader, "tokenizer.ggml.padding_token_id")],
        model_max_length=_field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _field(reader, "tokenizer.chat_template")
    fast.save_pretrained(directory)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise ValueError(f"convert_gguf: the file has no {name}")
    return field.contents()
