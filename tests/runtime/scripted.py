"""Models whose every distribution is written down: what a decoder does with them can be computed by hand."""

from __future__ import annotations

from torch import Tensor

from bench.scripted import ScriptedModel, one_hot, sequence_model

__all__ = ["ScriptedModel", "one_hot", "scripted_pair", "sequence_model", "table_model", "tokens_per_round"]


def table_model(table: Tensor) -> ScriptedModel:
    """Logits by position (modulo the table's length) and last token: table (positions, vocab, vocab)."""
    period, vocab, _ = table.shape
    return ScriptedModel(vocab, lambda positions, ids: table[positions % period, ids])


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
