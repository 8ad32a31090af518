"""Time `verify` beside its reference, transformers' own speculative sampling, and reading the needed logits once.

    python bench/bench_verify.py [--json FILE]

A case is BATCHxCHAINxVOCABxDTYPE. Drafted tokens are sampled from a draft that is the target plus noise. transformers
verifies row by row, as its `generate` does, with one drafted token less: its last row is for a bonus token. Its rule
is `token`, or to compare argmaxes where it does not sample; it stands beside `block` and `coupled` for want of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import (
    DTYPES,
    FLOOR,
    REFERENCE,
    TRANSFORMERS,
    Contender,
    Row,
    arguments,
    compare,
    native_backend,
    num_inputs,
    peaked_logits,
    read_once,
    report,
)
from torch import Tensor
from transformers.generation.utils import _speculative_sampling

import pearl_kernels
from pearl_kernels import Purpose, RowStats, SamplingTensors, VerifyOutput

CASES = "1x9x49152xfloat32,8x5x128256xbfloat16"
RULES = ("greedy", "token", "block", "coupled")
DRAFT_NOISE = 0.5


@dataclass(frozen=True, eq=False)
class Chains:
    """One input: target and draft logits, what was drafted, and the statistics of the rows it was drafted from."""

    target: Tensor  # (batch, chain, vocab)
    draft: Tensor  # (batch, chain, vocab)
    tokens: Tensor  # (batch, chain)
    stats: RowStats
    params: SamplingTensors
    positions: Tensor
    chain_len: Tensor

    def verify(self, rule: str, backend: str) -> VerifyOutput:
        return pearl_kernels.verify(
            self.target, self.tokens, self.chain_len, self.params, self.positions, draft_logits=self.draft,
            draft_stats=self.stats, rule=rule, backend=backend,
        )  # fmt: skip

    def needed_rows(self, rule: str) -> list[Tensor]:
        """The rows of logits that the rule looks at: those up to the token it stops at, and for the correction one
        row of the draft; `block` weighs every row of the target, and the draft's from the second on."""
        rows: list[Tensor] = []
        for b, n in enumerate(self.verify(rule, REFERENCE).num_accepted.tolist()):
            width = self.target.shape[1]
            stop = min(n + 1, width)
            rows += self.target[b] if rule == "block" else self.target[b, :stop]
            if rule == "block":
                rows += self.draft[b, 1:] if n > 0 else self.draft[b]
            elif rule == "token" and n < width:
                rows.append(self.draft[b, n])
        return rows


def draw_chains(
    batch: int, width: int, vocab: int, dtype: torch.dtype, rule: str, generator: torch.Generator
) -> Chains:
    target = peaked_logits(batch, width, vocab, generator=generator)
    draft = (target + DRAFT_NOISE * torch.randn(target.shape, generator=generator)).to(dtype)
    temperature = 0.0 if rule == "greedy" else 1.0
    seed = int(torch.randint(1 << 40, (), generator=generator))
    params = SamplingTensors.make(batch, temperature=temperature, seed=range(seed, seed + batch))
    positions = torch.full((batch,), 100)
    noise = {"purpose": Purpose.SAMPLE} if rule == "coupled" else {"purpose": Purpose.DRAFT, "epochs": positions}
    drawn = [pearl_kernels.sample(draft[:, i], params, positions + i, **noise, backend=REFERENCE) for i in range(width)]
    return Chains(
        target=target.to(dtype),
        draft=draft,
        tokens=torch.stack([out.tokens for out in drawn], dim=1),
        stats=RowStats(*(torch.stack(column, dim=1) for column in zip(*(out.stats for out in drawn), strict=True))),
        params=params,
        positions=positions,
        chain_len=torch.full((batch,), width, dtype=torch.int32),
    )


def transformers_verification(chains: Chains, rule: str) -> Callable[[], object]:
    width = chains.target.shape[1]
    candidates = chains.tokens[:, : width - 1]

    def greedy_row(b: int) -> object:
        selected = chains.target[b : b + 1].float().argmax(dim=-1)
        matches = ((~(candidates[b : b + 1] == selected[:, :-1])).cumsum(dim=-1) < 1).sum()
        return selected[:, : matches + 1], matches

    def sampled_row(b: int) -> object:
        return _speculative_sampling(
            candidates[b : b + 1], chains.draft[b : b + 1, : width - 1].float(), width - 1,
            chains.target[b : b + 1].float(),
        )  # fmt: skip

    row = greedy_row if rule == "greedy" else sampled_row
    return lambda: [row(b) for b in range(len(candidates))]


def verification(chains: Chains, rule: str, backend: str) -> Callable[[], object]:
    return lambda: chains.verify(rule, backend)


def check(chains: Chains, rule: str, backend: str) -> None:
    """A fast wrong answer is not worth timing."""
    got, wanted = (chains.verify(rule, name) for name in (backend, REFERENCE))
    if not all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)):
        raise SystemExit(f"{rule}: {backend} says {got}, the reference {wanted}")


def bench_rule(case: str, rule: str, repeats: int) -> list[Row]:
    batch, width, vocab, dtype = case.split("x")
    shape = int(batch), int(width), int(vocab)
    generator = torch.Generator().manual_seed(0)
    count = num_inputs(2 * shape[0] * shape[1] * shape[2] * DTYPES[dtype].itemsize)
    inputs = [draw_chains(*shape, DTYPES[dtype], rule, generator) for _ in range(count)]
    needed = [chains.needed_rows(rule) for chains in inputs]
    contenders = [Contender(FLOOR, [read_once(rows) for rows in needed])]
    if (backend := native_backend()) is not None:
        for chains in inputs:
            check(chains, rule, backend)
        contenders.append(Contender(backend, [verification(chains, rule, backend) for chains in inputs]))
    contenders += [
        Contender(REFERENCE, [verification(chains, rule, REFERENCE) for chains in inputs]),
        Contender(TRANSFORMERS, [transformers_verification(chains, rule) for chains in inputs]),
    ]
    accepted = sum(float(chains.verify(rule, REFERENCE).num_accepted.float().mean()) for chains in inputs) / count
    needed_bytes = sum(row.nbytes for rows in needed for row in rows) / count
    return compare(case, f"{rule}, {accepted:.1f} accepted", contenders, needed_bytes, repeats)


def main() -> None:
    parsed = arguments(__doc__ or "", CASES)
    rows = [row for case in parsed.cases.split(",") for rule in RULES for row in bench_rule(case, rule, parsed.repeats)]
    report("verify", rows, parsed)


if __name__ == "__main__":
    main()
