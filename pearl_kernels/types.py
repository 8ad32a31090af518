"""The types that cross the doors of pearl_kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a random number is for: the third word of its Philox counter, so no two purposes share noise."""

    SAMPLE = 0
    ACCEPT = 1
    RESIDUAL = 2
    DRAFT = 3


class Status(IntFlag):
    """What was wrong with a row. Bits may be combined; OK is zero."""

    OK = 0
    TARGET_INVALID = 1  # a needed row (for `sample` its own) holds NaN or +inf, or does so over the temperature
    DRAFT_INVALID = 2  # the draft row's statistics, or the drafted token's logit, are NaN or +inf
    EMPTY_DISTRIBUTION = 4  # every logit of a needed row is -inf


class Finished(IntEnum):
    """Why a sequence of a DecodeState stopped, or that it has not."""

    RUNNING = 0
    STOP = 1  # an end-of-sequence token was committed
    LENGTH = 2  # max_len was reached
    ERROR = 3  # see DecodeState.status


@dataclass(frozen=True, eq=False)
class SamplingTensors:
    """How each row of a batch is sampled.

    temperature: (batch,) float32; 0 is greedy
    top_k:       (batch,) int32;   0 is off
    top_p:       (batch,) float32; 1 is off
    min_p:       (batch,) float32; 0 is off
    seed:        (batch,) int64;   all 64 bits are used
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor

    @classmethod
    def make(
        cls,
        batch: int,
        *,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        min_p: float | Sequence[float] = 0.0,
        seed: int | Sequence[int] = 0,
        device: torch.device | str = "cpu",
    ) -> SamplingTensors:
        """Build the tensors for `batch` rows, from one value for all of them or a sequence of one each."""

        def column(name: str, value: float | Sequence[float], dtype: torch.dtype) -> Tensor:
            values = list(value) if isinstance(value, Sequence) else [value] * batch
            if len(values) != batch:
                raise ValueError(f"SamplingTensors: {name} must have batch={batch} values, got {len(values)}")
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            temperature=column("temperature", temperature, torch.float32),
            top_k=column("top_k", top_k, torch.int32),
            top_p=column("top_p", top_p, torch.float32),
            min_p=column("min_p", min_p, torch.float32),
            seed=column("seed", seed, torch.int64),
        )


class RowStats(NamedTuple):
    """All that is needed to turn a row of logits into probabilities.

    prob(v) = exp(logit(v) / temperature - lse) where logit(v) >= threshold, else 0.

    threshold: float32, in units of the raw logits; -inf where nothing filters
    lse:       float32, log of the sum over kept v of exp(logit(v) / temperature)
    """

    threshold: Tensor
    lse: Tensor


class SampleOutput(NamedTuple):
    """One drawn token per row.

    tokens: (batch,) int64
    stats:  RowStats of (batch,)
    status: (batch,) int32, bits of Status
    """

    tokens: Tensor
    stats: RowStats
    status: Tensor


class VerifyOutput(NamedTuple):
    """The outcome of each chain.

    num_accepted: (batch,) int32, drafted tokens that stand
    next_token:   (batch,) int64, the token after them; -1 if the whole chain stands
    status:       (batch,) int32, bits of Status
    """

    num_accepted: Tensor
    next_token: Tensor
    status: Tensor


class AdvanceOutput(NamedTuple):
    """What a round gave each sequence.

    num_emitted:  (batch,) int32, tokens committed
    num_accepted: (batch,) int32, those of them that were drafted
    """

    num_emitted: Tensor
    num_accepted: Tensor


@dataclass(frozen=True, eq=False)
class DecodeState:
    """All a decoder knows of a batch of sequences. `advance_` updates the tensors in place.

    tokens:    (batch, length) int64; [0, committed) is verified, [committed, committed + window) is drafted
    committed: (batch,) int64
    window:    (batch,) int32
    max_len:   (batch,) int64; committed never exceeds it
    eos_ids:   (batch, E) int64, E >= 1, padded with -1
    finished:  (batch,) int32, a Finished
    status:    (batch,) int32, bits of Status
    """

    tokens: Tensor
    committed: Tensor
    window: Tensor
    max_len: Tensor
    eos_ids: Tensor
    finished: Tensor
    status: Tensor
