"""Token sequences to learn from: the vocabulary they need, their batches, and the target's distributions on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from pearl_decode.distill.answers import Answer
from pearl_decode.distill.prompts import Prompt

CACHE_BYTES = 4 << 30


@dataclass(frozen=True)
class Sample:
    """token_ids[start:] are learnt, each from all before it."""

    token_ids: list[int]
    start: int

    @property
    def learnt(self) -> int:
        return len(self.token_ids) - self.start


def split(answers: Sequence[Answer], held_out: float, most: int) -> tuple[list[Sample], list[Sample]]:
    """Training samples, and those of the prompts held out: about that share of the prompts, 1 to `most`.

    A prompt keeps its side whatever other prompts there are.
    """
    keys = sorted({answer.key for answer in answers}, key=lambda key: hashlib.sha256(key.encode()).digest())
    if len(keys) < 2:
        raise ValueError(f"prompts: at least 2 are needed, one of them to measure on, got {len(keys)}")
    aside = set(keys[: max(1, min(most, round(held_out * len(keys))))])
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for answer in sorted(answers, key=lambda answer: (answer.round, answer.key)):
        sample = Sample(answer.prompt_ids + answer.answer_ids, len(answer.prompt_ids))
        sides[answer.key in aside].append(sample)
    return sides


def prompt_samples(prompts: Sequence[Prompt], held_out: Sequence[Sample]) -> list[Sample]:
    """The prompts themselves, past what all of them begin with: answers take up their words.

    They cost no decoding, so a short run has more to learn from. Those held out are not among them.
    """
    aside = {tuple(sample.token_ids[: sample.start]) for sample in held_out}
    ids = [prompt.token_ids for prompt in prompts if tuple(prompt.token_ids) not in aside]
    columns = zip(*ids, strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)) if len(ids) > 1 else 0
    return [Sample(tokens, max(1, common)) for tokens in ids if len(tokens) > max(1, common)]


def frequent_ids(samples: Sequence[Sample], size: int, vocab: int, always: Sequence[int]) -> torch.Tensor | None:
    """The `size` ids used most in the samples, ascending int64; None if that is the whole vocabulary.

    Prompts count as well as answers. Ids that never occur fill up from the lowest: tokenizers give frequent tokens
    low ids.
    """
    if size >= vocab:
        return None
    if size < len(always) + 1:
        raise ValueError(f"draft_vocab must be an integer > {len(always)}, got {size}")
    flat = torch.tensor([token for sample in samples for token in sample.token_ids])
    counts = torch.bincount(flat, minlength=vocab)[:vocab]
    counts[list(always)] = counts.max() + 1
    return counts.sort(descending=True, stable=True).indices[:size].sort().values


def make_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Samples of similar length together, each batch at most `size` tokens with its padding (or one sample)."""
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: len(sample.token_ids)):
        if not batches or (len(batches[-1]) + 1) * len(sample.token_ids) > size:
            batches.append([])
        batches[-1].append(sample)
    return batches


def tensors(batch: Sequence[Sample], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (rows, width) int64 padded on the right, and a mask (rows, width) of the positions to learn from.

    Causality hides the padding. The mask is true where the next token is learnt.
    """
    width = max(len(sample.token_ids) for sample in batch) - 1
    inputs = torch.zeros(len(batch), width, dtype=torch.int64)
    learn = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, sample in enumerate(batch):
        length = len(sample.token_ids) - 1
        inputs[row, :length] = torch.tensor(sample.token_ids[:-1])
        learn[row, sample.start - 1 : length] = True
    return inputs.to(device), learn.to(device)


def hidden_states(model: Any, inputs: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
    """What the head reads at the positions to learn from: (positions, hidden)."""
    hidden: torch.Tensor = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
    return hidden[learn]


@dataclass(frozen=True)
class Lesson:
    """The target at the positions to learn from.

    probs: (positions, draft_vocab) float32, its probabilities of the ids the draft knows
    best:  (positions,) int64, the index among these of its likeliest id; -1 if the draft does not know that one
    """

    probs: torch.Tensor
    best: torch.Tensor


class Teacher:
    """The target's distributions. Its last hidden states are computed once per batch and kept while they fit."""

    def __init__(self, target: Any, d2t: torch.Tensor | None, cache_bytes: int = CACHE_BYTES) -> None:
        self._target = target
        self._head = target.get_output_embeddings()
        self._d2t = None if d2t is None else d2t.to(target.device)
        self._weight = self._head.weight if self._d2t is None else self._head.weight[self._d2t]
        self._left = cache_bytes
        self._kept: dict[object, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def lesson(self, key: object, inputs: torch.Tensor, learn: torch.Tensor) -> Lesson:
        """What the target says of a batch. key: the same for the same batch, and only then."""
        if key in self._kept:
            hidden, lse, best = self._kept[key]
        else:
            hidden, lse, best = self._compute(inputs, learn)
            size = hidden.numel() * hidden.element_size()
            if size <= self._left:
                self._left -= size
                self._kept[key] = (hidden, lse, best)
        bias = getattr(self._head, "bias", None)
        if bias is not None and self._d2t is not None:
            bias = bias[self._d2t]
        logits = torch.nn.functional.linear(hidden, self._weight, bias).float()
        return Lesson(logits.sub_(lse[:, None]).exp_(), best)

    def _compute(self, inputs: torch.Tensor, learn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = hidden_states(self._target, inputs, learn)
        parts = [self._head(part).float() for part in hidden.split(1024)]  # type: ignore[no-untyped-call]
        lse, best = torch.cat([p.logsumexp(-1) for p in parts]), torch.cat([p.argmax(-1) for p in parts])
        if self._d2t is not None:
            index = torch.searchsorted(self._d2t, best).clamp(max=len(self._d2t) - 1)
            best = torch.where(self._d2t[index] == best, index, -1)
        return hidden, lse, best

    def check(self, inputs: torch.Tensor, learn: torch.Tensor) -> None:
        """Raise ValueError unless the target's logits are its head times its last hidden state."""
        with torch.no_grad():
            expected = self._target(input_ids=inputs, use_cache=False).logits[learn]
            got = self._head(hidden_states(self._target, inputs, learn))
        if not torch.allclose(got.float(), expected.float(), rtol=0.02, atol=0.02):
            raise ValueError(
                f"target: the logits of {type(self._target).__name__} are not its head times its last hidden state "
                "(it scales or caps them): distill does not know how"
            )
