"""Models whose every distribution is written down: a draft may be right as often as is wanted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

Script = Callable[[Tensor, Tensor], Tensor]


class ScriptedModel(nn.Module):
    """A causal model of the decoder's kind, without weights or cache.

    script:   (positions, ids of the inputs), both (batch, width) int64 -> logits (batch, width, vocab) of what follows
    context:  most positions, None for any number
    forwards: how many there were
    """

    def __init__(self, vocab: int, script: Script, *, context: int | None = None) -> None:
        super().__init__()
        self.script = script
        config = SimpleNamespace(
            vocab_size=vocab, max_position_embeddings=context, eos_token_id=None, _attn_implementation="sdpa"
        )
        config.get_text_config = lambda: config
        self.config = config
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.forwards = 0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
    ) -> Any:
        self.forwards += 1
        return SimpleNamespace(logits=self.script(position_ids, input_ids))


def one_hot(tokens: Tensor, vocab: int) -> Tensor:
    """Logits (..., vocab) that leave no doubt of these tokens (...)."""
    return 20.0 * nn.functional.one_hot(tokens, vocab).float()


def sequence_model(tokens: list[int], vocab: int) -> ScriptedModel:
    """Has tokens[t] stand at position t, whatever was before; the last one again and again past the end."""
    line = torch.tensor(tokens)
    return ScriptedModel(vocab, lambda positions, ids: one_hot(line[(positions + 1).clamp(max=len(tokens) - 1)], vocab))


def lucky_pair(acceptance: float, rows: int, length: int, seed: int) -> tuple[ScriptedModel, ScriptedModel, Tensor]:
    """Target, draft, and the first token of each row, (rows,) int64, which says which row it is.

    In each row the draft is right at a share `acceptance` of `length` positions: the share is exact, the order random,
    so that short texts tell what long ones would.
    """
    dice = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, length, generator=dice).argsort(1).argsort(1)
    wrong = (order >= acceptance * length).long()

    # Row r's tokens are 2 r where the draft is right and 2 r + 1 where it is not.
    vocab = 2 * rows

    def target(positions: Tensor, ids: Tensor) -> Tensor:
        return one_hot(ids // 2 * 2, vocab)

    def draft(positions: Tensor, ids: Tensor) -> Tensor:
        row = ids // 2
        return one_hot(2 * row + wrong[row, (positions + 1).clamp(max=length - 1)], vocab)

    return ScriptedModel(vocab, target), ScriptedModel(vocab, draft), 2 * torch.arange(rows)
