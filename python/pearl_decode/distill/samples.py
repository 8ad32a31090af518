"""Token sequences to learn from, and their batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch

from pearl_decode.distill.answers import Answer
from pearl_decode.distill.prompts import Prompt
from pearl_decode.padding import parts_of


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

    A prompt that is held out among others is held out among fewer of them too: a draft that goes on with more prompts
    is not measured on those it learnt.
    """
    places = sorted((_place(prompt), prompt) for prompt in {answer.prompt for answer in answers})
    if len(places) < 2:
        raise ValueError(
            f"answers: those to 2 different prompts are needed, one of them to measure on, got {len(places)}; "
            "resume with more hours"
        )
    aside = {prompt for place, prompt in places[:most] if place < held_out} or {places[0][1]}
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for answer in sorted(answers, key=lambda answer: (answer.round, answer.key)):
        sample = Sample(answer.prompt_ids + answer.answer_ids, len(answer.prompt_ids))
        sides[answer.prompt in aside].append(sample)
    return sides


def _place(prompt: str) -> float:
    """Of a text among all texts, in [0, 1): by this alone it is held out."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") / 2**32


def prompt_samples(prompts: Sequence[Prompt], held_out: Sequence[Sample]) -> list[Sample]:
    """The prompts themselves, past what all of them begin with: answers take up their words.

    They cost no decoding, so a short run has more to learn from. Those held out are not among them.
    """
    aside = {tuple(sample.token_ids[: sample.start]) for sample in held_out}
    ids = [prompt.token_ids for prompt in prompts if tuple(prompt.token_ids) not in aside]
    columns = zip(*ids, strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)) if len(ids) > 1 else 0
    return [Sample(tokens, max(1, common)) for tokens in ids if len(tokens) > max(1, common)]


def make_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Samples of similar length together, each batch at most `size` tokens with its padding (or one sample)."""
    ordered = sorted(samples, key=lambda sample: len(sample.token_ids))
    return [ordered[rows] for rows in parts_of([len(sample.token_ids) for sample in ordered], size)]


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
