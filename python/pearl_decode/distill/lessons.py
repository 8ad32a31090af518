"""What there is to learn: batches of samples, and the target's distributions on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pearl_decode.distill.samples import Sample, make_batches, tensors
from pearl_decode.linear import WindowLinear

CACHE_BYTES = 4 << 30  # where nobody keeps count of memory
TRIED = 16  # positions, of whether the head is all that makes logits
COUNTED = 1 << 18  # positions that a vocabulary is chosen by
ON_CPU, ON_GPU = 1 << 22, 1 << 26  # logits made at once: many for the products, few for what is done with them


class Head(NamedTuple):
    """weight (ids, hidden) and bias (ids,) of a model's head. A draft's is the target's own, for the ids it knows."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, model: Any) -> Head:
        head = model.get_output_embeddings()
        return cls(head.rows if isinstance(head, WindowLinear) else head.weight, getattr(head, "bias", None))

    def product(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (positions, ids) of hidden (positions, hidden), in the type of the weight."""
        return torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same in float32."""
        return self.product(hidden).float()

    def parts(self, positions: int) -> Iterator[slice]:
        """The positions, as many at once as should have logits at once."""
        most = ON_GPU if self.weight.device.type == "cuda" else ON_CPU
        step = max(1, most // self.weight.shape[0])
        return (slice(begin, begin + step) for begin in range(0, positions, step))


@dataclass(frozen=True)
class Lesson:
    """One batch, and the target at its positions to learn from.

    inputs, learn: as `tensors` makes them
    hidden: (positions, hidden), what the target's head reads
    lse:    (positions,) float32, the logsumexp of its logits
    best:   (positions,) int64, its likeliest id
    """

    inputs: torch.Tensor
    learn: torch.Tensor
    hidden: torch.Tensor
    lse: torch.Tensor
    best: torch.Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.inputs, self.learn, self.hidden, self.lse, self.best))

    def probs(self, head: Head, rows: slice) -> torch.Tensor:
        """The target's probabilities (positions, ids) float32 of the ids of `head`."""
        return probs_of(head.product(self.hidden[rows]), self.lse[rows])


class Lessons:
    """Samples in batches of at most `size` tokens. The target reads each once, and is remembered while that fits."""

    def __init__(self, target: Any, samples: Sequence[Sample], size: int, cache_bytes: int = CACHE_BYTES) -> None:
        self.target = target
        self._head = Head.of(target)
        self._batches = make_batches(samples, size)
        self._left = cache_bytes
        self._kept: dict[int, Lesson] = {}

    @property
    def vocab(self) -> int:
        return self._head.weight.shape[0]

    def __len__(self) -> int:
        return len(self._batches)

    @torch.no_grad()
    def __getitem__(self, index: int) -> Lesson:
        lesson = self._kept.get(index)
        if lesson is None:
            inputs, learn = tensors(self._batches[index], self.target.device)
            hidden = hidden_states(self.target.base_model, inputs, learn)
            lse, best = zip(*(self._said(hidden[rows]) for rows in self._head.parts(len(hidden))), strict=True)
            lesson = Lesson(inputs, learn, hidden, torch.cat(lse), torch.cat(best))
            if lesson.nbytes <= self._left:
                self._left -= lesson.nbytes
                self._kept[index] = lesson
        return lesson

    def _said(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logsumexp of the logits of hidden (positions, hidden), and the likeliest ids."""
        logits = self._head.logits(hidden)
        return logits.logsumexp(-1), logits.argmax(-1)

    def __iter__(self) -> Iterator[Lesson]:
        return map(self.__getitem__, range(len(self)))

    @torch.no_grad()
    def likely_ids(
        self, size: int, always: Sequence[int], report: Callable[[float], None] = lambda done: None
    ) -> torch.Tensor | None:
        """The `size` ids the target finds likeliest on the whole, ascending int64; None if that is all it has.

        By its probabilities and not by how often it drew them: of rare ids these say much more.
        report: told the share that is done
        """
        if size >= self.vocab:
            return None
        sums = torch.zeros(self.vocab, device=self._head.weight.device)
        counted, positions = 0, min(COUNTED, sum(sample.learnt for batch in self._batches for sample in batch))
        for index in random.Random(0).sample(range(len(self)), len(self)):
            lesson = self[index]
            for rows in self._head.parts(len(lesson.hidden)):
                sums += lesson.probs(self._head, rows).sum(0)
            counted += len(lesson.hidden)
            report(counted / positions)
            if counted >= positions:
                break
        sums[list(always)] = torch.inf
        return sums.topk(size).indices.sort().values.cpu()


@torch.no_grad()
def check_head(target: Any) -> None:
    """Raise ValueError unless the target's logits, of any text, are its head times its last hidden state."""
    head = Head.of(target)
    inputs = torch.arange(min(TRIED, head.weight.shape[0]), device=target.device)[None]
    expected = target(input_ids=inputs, use_cache=False).logits.float()
    got = head.logits(hidden_states(target.base_model, inputs, torch.ones_like(inputs, dtype=torch.bool)))
    if not torch.allclose(got, expected[0], rtol=0.02, atol=0.02):
        raise ValueError(
            f"target: the logits of {type(target).__name__} are not its head times its last hidden state "
            "(it scales or caps them): distill does not know how"
        )


def probs_of(logits: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """Probabilities (positions, ids) of logits, in the type of the logsumexp (positions,) of these and all others."""
    return logits.to(lse.dtype).sub(lse[:, None]).exp()


def hidden_states(base_model: Callable[..., Any], inputs: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
    """What the head reads at the positions to learn from: (positions, hidden)."""
    hidden: torch.Tensor = base_model(input_ids=inputs, use_cache=False).last_hidden_state
    return hidden[learn]
