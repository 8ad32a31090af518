"""Our models as other decoders take them: with full vocabularies, and with torch's own layers if that is wanted."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pearl_decode.attention import ATTENTION_NAME
from pearl_decode.in_front import own_class
from pearl_decode.linear import WindowLinear
from pearl_decode.window_model import WHOLE


class FullHead(nn.Module):
    """The reduced head, its logits put at the ids they belong to; ids outside the map get -inf.

    d2t: (draft_vocab,) int64 target ids. The product is still the reduced one; added is one row of memory per token.
    """

    d2t: torch.Tensor

    def __init__(self, head: nn.Module, d2t: torch.Tensor, vocab_size: int) -> None:
        super().__init__()
        self.head = head
        self.vocab_size = vocab_size
        self.register_buffer("d2t", d2t, persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (..., hidden_size). Returns logits (..., vocab_size)."""
        reduced: torch.Tensor = self.head(hidden)
        logits = reduced.new_full((*reduced.shape[:-1], self.vocab_size), float("-inf"))
        return logits.index_copy_(-1, self.d2t, reduced)


def with_full_vocabulary(draft: PreTrainedModel, vocab_size: int) -> PreTrainedModel:
    """The same weights behind a model that others can use: a head over all `vocab_size` ids, settings of its own.

    The draft itself is left as it is. A draft without a reduced vocabulary keeps its head.
    """
    twin: Any = copy.copy(draft)
    twin._modules = dict(draft._modules)
    twin.config = copy.deepcopy(draft.config)
    twin.generation_config = copy.deepcopy(draft.generation_config)  # some decoders write into their assistant's
    d2t = getattr(draft, "d2t", None)
    if d2t is not None:
        del twin.d2t
        twin.set_output_embeddings(FullHead(twin.get_output_embeddings(), d2t.to(twin.device), vocab_size))
    return twin  # type: ignore[no-any-return]


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy with torch's own layers and transformers' attention in place of ours: as it loads without us."""
    twin: Any = copy.deepcopy(model)
    vars(twin).pop(WHOLE, None)
    if twin.config._attn_implementation == ATTENTION_NAME:
        twin.set_attn_implementation("sdpa")
    for module in twin.modules():
        if isinstance(module, WindowLinear):
            module.widen()
        module.__class__ = own_class(module)
        if type(module).__module__.startswith("pearl_decode.") and isinstance(module, (nn.Linear, nn.Embedding)):
            module.__class__ = nn.Linear if isinstance(module, nn.Linear) else nn.Embedding
    return twin.float()  # type: ignore[no-any-return]
