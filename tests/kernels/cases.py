"""Inputs of `verify` and `sample` that look like real ones, and the float64 reference's answer to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import Purpose, RowStats, SampleOutput, SamplingTensors, VerifyOutput
from pearl_kernels.sample import reference as sample_reference
from pearl_kernels.verify import reference as verify_reference

# Every kind of row beside every other: greedy, plain, each filter alone, all at once.
MIXED: dict[str, tuple[float, ...]] = {
    "temperature": (1.0, 0.0, 0.7, 1.3, 1.0, 1.0, 0.8, 1.0),
    "top_k": (0, 0, 0, 5, 0, 0, 7, 1),
    "top_p": (1.0, 1.0, 1.0, 1.0, 0.9, 1.0, 0.8, 1.0),
    "min_p": (0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.02, 0.0),
}


def mixed_params(batch: int, seed: int = 0) -> SamplingTensors:
    """Parameters that differ from row to row, and so do the seeds."""
    columns = {name: [values[i % len(values)] for i in range(batch)] for name, values in MIXED.items()}
    seeds = [seed * 1_000_003 + i for i in range(batch)]
    return SamplingTensors.make(batch, **columns, seed=seeds)  # type: ignore[arg-type]


def peaked_logits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Logits of a Zipf law over a random order of the vocabulary, as flat and as peaked as models give."""
    vocab = shape[-1]
    ranks = torch.rand(shape, generator=generator).argsort(-1).float()
    slope = 1.0 + 2.0 * torch.rand((*shape[:-1], 1), generator=generator)
    return 8.0 - slope * (ranks + 1).log() + 0.1 * torch.randn(*shape[:-1], vocab, generator=generator)


def strided(values: Tensor) -> Tensor:
    """The same values as rows of a wider buffer whose other columns are NaN."""
    buffer = values.new_full((*values.shape[:-1], values.shape[-1] + 5), torch.nan)
    buffer[..., 3:-2] = values
    return buffer[..., 3:-2]


@dataclass(frozen=True, eq=False)
class SampleCase:
    """Arguments of `sample`."""

    logits: Tensor
    params: SamplingTensors
    positions: Tensor
    purpose: Purpose = Purpose.SAMPLE
    epochs: Tensor | None = None

    def run(self, backend: str) -> SampleOutput:
        return pearl_kernels.sample(
            self.logits, self.params, self.positions, purpose=self.purpose, epochs=self.epochs, backend=backend
        )

    def judged(self) -> SampleOutput:
        return judged_sample(self.logits, self.params, self.positions, self.purpose, self.epochs)


@dataclass(frozen=True, eq=False)
class VerifyCase:
    """Arguments of `verify`."""

    target_logits: Tensor
    draft_tokens: Tensor
    chain_len: Tensor
    params: SamplingTensors
    positions: Tensor
    draft_logits: Tensor | None = None
    draft_stats: RowStats | None = None
    rule: str = "token"
    d2t: Tensor | None = None

    def run(self, backend: str | None) -> VerifyOutput:
        return pearl_kernels.verify(
            self.target_logits, self.draft_tokens, self.chain_len, self.params, self.positions,
            draft_logits=self.draft_logits, draft_stats=self.draft_stats, rule=self.rule, d2t=self.d2t,
            backend=backend,
        )  # fmt: skip

    def judged(self) -> VerifyOutput:
        batch, params = len(self.positions), self.params
        threshold, lse = self.draft_stats or (None, None)
        out = VerifyOutput(
            torch.empty(batch, dtype=torch.int32),
            torch.empty(batch, dtype=torch.int64),
            torch.empty(batch, dtype=torch.int32),
        )
        verify_reference.verify_out(
            self.target_logits, self.draft_tokens, self.chain_len, params.temperature, params.top_k, params.top_p,
            params.min_p, params.seed, self.positions, self.draft_logits, threshold, lse, self.d2t, self.rule, *out,
            dtype=torch.float64,
        )  # fmt: skip
        return out

    def with_(self, **changes: object) -> VerifyCase:
        return replace(self, **changes)  # type: ignore[arg-type]


def judged_sample(
    logits: Tensor, params: SamplingTensors, positions: Tensor, purpose: Purpose, epochs: Tensor | None
) -> SampleOutput:
    """The float64 reference's draw."""
    batch = len(positions)
    floats = torch.empty(batch, dtype=torch.float32), torch.empty(batch, dtype=torch.float32)
    out = SampleOutput(torch.empty(batch, dtype=torch.int64), RowStats(*floats), torch.empty(batch, dtype=torch.int32))
    sample_reference.sample_out(
        logits, params.temperature, params.top_k, params.top_p, params.min_p, params.seed, positions, epochs,
        int(purpose), out.tokens, *out.stats, out.status, dtype=torch.float64,
    )  # fmt: skip
    return out


def verify_case(
    batch: int,
    width: int,
    vocab: int,
    *,
    rule: str = "token",
    dtype: torch.dtype = torch.float32,
    draft_dtype: torch.dtype = torch.float32,
    draft_vocab: int | None = None,
    mapped: bool = False,
    one_hot: bool = False,
    stats: bool = True,
    placeholders: bool = True,
    temperature: float | None = None,
    seed: int = 0,
) -> VerifyCase:
    """A batch of ragged chains with parameters of every kind, drafted from a draft that is the target plus noise.

    mapped: the draft has its own, smaller vocabulary and a d2t
    stats:  pass the draft's row statistics, as the runtime does
    temperature: of every row, in place of the mixture
    """
    generator = torch.Generator().manual_seed(seed)
    target = peaked_logits((batch, width, vocab), generator)
    draft_vocab = draft_vocab or (max(1, vocab // 2) if mapped else vocab)
    d2t = torch.randperm(vocab, generator=generator)[:draft_vocab].sort().values if mapped else None
    ids = torch.arange(draft_vocab) if d2t is None else d2t
    draft = target[..., ids] + 0.7 * torch.randn(batch, width, draft_vocab, generator=generator)
    target, draft = strided(target.to(dtype)), strided(draft.to(draft_dtype))
    params = mixed_params(batch, seed)
    if temperature is not None:
        params.temperature.fill_(temperature)
    positions = torch.randint(1, 1 << 34, (batch,), generator=generator)
    drawn = [judged_sample(draft[:, i], params, positions + i, Purpose.DRAFT, positions) for i in range(width)]
    tokens = ids[torch.stack([out.tokens for out in drawn], dim=1)]
    if placeholders:
        where = torch.rand(batch, width, generator=generator) < 0.1
        tokens = torch.where(where, torch.tensor((-1, vocab))[torch.arange(batch) % 2, None], tokens)
    columns = (torch.stack(column, dim=1) for column in zip(*(out.stats for out in drawn), strict=True))
    return VerifyCase(
        target_logits=target,
        draft_tokens=tokens,
        chain_len=torch.randint(1, width + 1, (batch,), generator=generator, dtype=torch.int32),
        params=params,
        positions=positions,
        draft_logits=None if one_hot else draft,
        draft_stats=RowStats(*columns) if stats and not one_hot else None,
        rule=rule,
        d2t=None if one_hot else d2t,
    )
