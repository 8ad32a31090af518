"""Pairs of models to time: shapes of known models with random weights, made on the device, and the built-in pair.

The text of those with random weights is written in them (agreement.py), for which each has a head of its own. Where the
known model's is its embedding, that is as much to read, and more to hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from agreement import Agreement, write_text
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pearl_decode.bench.prompts import read_prompts
from pearl_decode.builtin import BUILTIN_DRAFT, BUILTIN_TARGET, builtin_state
from pearl_decode.checkpoints import load_model
from pearl_decode.drafts import draft_directory, load_draft
from pearl_decode.memory import cache_bytes, free_bytes
from pearl_decode.models import CausalModel

STRIDE = 1009
CONTEXT = 16384
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}  # by the device
KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


@dataclass(frozen=True)
class Shape:
    """What a model's speed depends on."""

    kind: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def config(self) -> Any:
        return KINDS[self.kind][0](
            vocab_size=self.vocab, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim, tie_word_embeddings=False, max_position_embeddings=CONTEXT,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip

    def weight_bytes(self, itemsize: int) -> int:
        with torch.device("meta"):
            model = KINDS[self.kind][1](self.config())
        total: int = itemsize * sum(parameter.numel() for parameter in model.parameters())
        return total


SHAPES = {
    "llama-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256),
    "llama-1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256),
    "llama-160m": Shape("llama", 12, 768, 3072, 12, 12, 64, 128256),
    "qwen3-32b": Shape("qwen3", 64, 5120, 25600, 64, 8, 128, 151936),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 128, 151936),
    "tiny-4": Shape("llama", 4, 64, 128, 4, 2, 16, 4096),
    "tiny-1": Shape("llama", 1, 64, 64, 4, 4, 16, 4096),
}
PAIRS = {
    "8b+1b": ("llama-8b", "llama-1b"),
    "8b+160m": ("llama-8b", "llama-160m"),
    BUILTIN_TARGET: (BUILTIN_TARGET, BUILTIN_DRAFT),
    "32b+0.6b": ("qwen3-32b", "qwen3-0.6b"),
    "tiny": ("tiny-4", "tiny-1"),
}


class NoPairError(Exception):
    """A pair that cannot be made here, and why."""


@dataclass
class ModelPair:
    """A pair on its device. agreement: what sets the draft's acceptance; None for a draft that was trained."""

    name: str
    target: PreTrainedModel
    draft: PreTrainedModel
    agreement: Agreement | None

    def prompts(self, batch: int, context: int) -> list[list[int]]:
        """Token ids, `context` of them each. The built-in pair's are what ships, over and over."""
        vocab: int = self.target.config.vocab_size
        if self.agreement is not None:
            generator = torch.Generator().manual_seed(1)
            rows = torch.randint(vocab, (batch, context), generator=generator)
            rows[:, -1] = torch.arange(batch) * (vocab // batch)  # the texts go on from here, never to meet
            return rows.tolist()
        tokenizer = AutoTokenizer.from_pretrained(builtin_state().directory)
        shipped = [tokenizer(each.prompt)["input_ids"] for each in read_prompts()]
        line = [token for ids in shipped for token in ids]
        starts = [sum(map(len, shipped[:row])) for row in range(batch)]
        return [(line[start:] + line * (1 + context // len(line)))[:context] for start in starts]


def make_pair(name: str, device: torch.device, dtype: torch.dtype, known: ModelPair | None = None) -> ModelPair:
    """Make a pair. known: another one, whose target is taken if it is of the same shape.

    Raises NoPairError if the built-in model is not in the cache, or the device has no room.
    """
    target_name, draft_name = PAIRS[name]
    if name == BUILTIN_TARGET:
        return _builtin(device, dtype)
    if known is not None and PAIRS[known.name][0] == target_name:
        target = known.target
    else:
        _check_room(target_name, draft_name, device, dtype)
        target = random_model(SHAPES[target_name], device, dtype, seed=0)
    draft = random_model(SHAPES[draft_name], device, dtype, seed=1)
    return ModelPair(name, target, draft, Agreement(draft, STRIDE))


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A model with random weights, in which each token is followed by the one `STRIDE` ids further."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = KINDS[shape.kind][1]._from_config(shape.config(), dtype=dtype)
    write_text(model, STRIDE)
    made: PreTrainedModel = model.eval()
    return made


def _check_room(target: str, draft: str, device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda":
        return
    needed = sum(SHAPES[name].weight_bytes(dtype.itemsize) for name in (target, draft))
    free = free_bytes(device) or 0
    spare = 6 << 30  # caches, activations, workspaces
    if needed + spare > free:
        raise NoPairError(f"needs {needed / 1e9:.1f} GB and {spare / 1e9:.1f} GB beside, {free / 1e9:.1f} GB are free")


def missing_bytes(pair: ModelPair, batch: int, length: int) -> int:
    """What a batch of such texts needs beyond what is free: caches, and what the prompts' forward keeps at once."""
    free = free_bytes(pair.target.device)
    if free is None:
        return 0
    caches = sum(cache_bytes(CausalModel(model), batch, length) for model in (pair.target, pair.draft))
    config = pair.target.config
    columns: int = 3 * config.intermediate_size + 4 * config.hidden_size
    reading = batch * length * columns * pair.target.dtype.itemsize
    return caches + reading - free


def _builtin(device: torch.device, dtype: torch.dtype) -> ModelPair:
    state = builtin_state()
    if not state.ready:
        raise NoPairError(f"the built-in model is not in {state.directory}")
    target: Any = load_model("target", state.directory, dtype)
    directory = draft_directory(BUILTIN_DRAFT)
    assert directory is not None, "the draft ships with the package"
    target = target.to(device)
    return ModelPair(BUILTIN_TARGET, target, load_draft(directory, target), None)


def weights_read(model: Any) -> int:
    """Bytes of the weights that each forward reads whole: all but an embedding that is no head as well."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    total: int = sum(parameter.nbytes for parameter in model.parameters())
    return total if head is embedding else total - int(embedding.nbytes)
