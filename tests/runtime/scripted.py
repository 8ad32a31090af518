"""Models whose every distribution is written down: what a decoder does with them can be computed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class ScriptedModel(nn.Module):
    """A causal model that answers logits(positions, input_ids) and keeps no cache.

    `script` gets the positions (batch, width) and ids (batch, width) of the inputs and returns the logits
    (batch, width, vocab) of the tokens after them.
    """

    def __init__(self, vocab: int, script, *, context: int | None = None) -> None:
        super().__init__()
        self.script = script
        config = SimpleNamespace(
            vocab_size=vocab, max_position_embeddings=context, eos_token_id=None, _attn_implementation="sdpa"
        )
        config.get_text_config = lambda: config
        self.config = config
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.forwards = 0

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        self.forwards += 1
        return SimpleNamespace(logits=self.script(position_ids, input_ids))


def one_hot(tokens: Tensor, vocab: int) -> Tensor:
    return 20.0 * nn.functional.one_hot(tokens, vocab).float()


def table_model(table: Tensor) -> ScriptedModel:
    """Logits by position (modulo the table's length) and last token: table (positions, vocab, vocab)."""
    period, vocab, _ = table.shape
    return ScriptedModel(vocab, lambda positions, ids: table[positions % period, ids])


def sequence_model(tokens: list[int], vocab: int) -> ScriptedModel:
    """Puts all its belief in tokens[t] for position t (the last one again and again past the end)."""
    line = torch.tensor(tokens)
    return ScriptedModel(vocab, lambda positions, ids: one_hot(line[(positions + 1).clamp(max=len(tokens) - 1)], vocab))


def _coin(positions: Tensor, salt: Tensor) -> Tensor:
    """A number in [0, 1) that looks random and depends on position and salt only."""
    mixed = positions * 0x9E3779B1 + salt * 0x85EBCA77
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
    mixed = (mixed ^ (mixed >> 12)) * 0x297A2D39 & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 15)) & 0xFFFFFF).double() / 2**24


def scripted_pair(acceptance: float, rows: int) -> tuple[ScriptedModel, ScriptedModel]:
    """A target and a draft that agrees with it with a set probability, independently at every position.

    Row r's tokens are 2r and 2r + 1, so that every row of a batch has luck of its own.
    """
    vocab = 2 * rows

    def target(positions: Tensor, ids: Tensor) -> Tensor:
        salt = ids // 2
        return one_hot(2 * salt + (_coin(positions, salt + 7777) < 0.5).long(), vocab)

    def draft(positions: Tensor, ids: Tensor) -> Tensor:
        salt = ids // 2
        right = 2 * salt + (_coin(positions, salt + 7777) < 0.5).long()
        wrong = _coin(positions, salt + 5555) >= acceptance
        return one_hot(right ^ wrong.long(), vocab)

    return ScriptedModel(vocab, target), ScriptedModel(vocab, draft)


def tokens_per_round(acceptance: float, gamma: int) -> float:
    """Mean tokens a PEARL round emits when each drafted token is accepted independently."""
    all_accepted = acceptance**gamma
    return (1 - all_accepted) / ((1 - acceptance) * (1 - all_accepted + acceptance))
