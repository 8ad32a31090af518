"""Time `verify` beside its reference, transformers' own speculative sampling, and reading the needed logits once.

    python bench/bench_verify.py [--device cuda] [--json FILE] [--plot FILE.png]

A case is BATCHxCHAINxVOCABxDTYPE; the default ones are the same on a CPU and a GPU. Drafted tokens are sampled from a
draft that is the target plus noise. transformers verifies row by row, as its `generate` does, with one drafted token
less: its last row is for a bonus token. Its rule is `token`, or to compare argmaxes where it does not sample; it stands
beside `block` and `coupled` for want of another.

On a GPU the inputs are made there and rotated beyond its cache; calls are timed with what the host does for them, and
again replayed from a graph, without. peers.py says who else takes part where it is installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from harness import (
    DTYPES,
    FLOOR,
    JUDGED,
    REFERENCE,
    TRANSFORMERS,
    Contender,
    Row,
    arguments,
    compare,
    is_large,
    native_backends,
    num_inputs,
    peaked_logits,
    read_once,
    time_us,
)
from report import measure
from torch import Tensor
from transformers.generation.utils import _speculative_sampling

import pearl_kernels
from pearl_kernels import Purpose, RowStats, SamplingTensors, VerifyOutput

SHAPES = (
    "1x4x128256xbfloat16,32x4x128256xbfloat16,256x4x128256xbfloat16,1x4x32000xbfloat16,1x8x151936xbfloat16,"
    "1x9x49152xbfloat16,1x4x128256xfloat32"
)
CASES = {"cpu": SHAPES, "cuda": SHAPES}
RULES = ("greedy", "token", "block", "coupled")
DRAFT_NOISE = 0.5
# transformers before 5.24 asks whether the candidate ended the text.
_ASKED = inspect.signature(_speculative_sampling).parameters
UNENDED = {"is_done_candidate": False} if "is_done_candidate" in _ASKED else {}


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

    def split(self, parts: int) -> list[Chains]:
        """The same requests, as so many inputs."""

        def cut(value: Any) -> list[Any]:
            if isinstance(value, Tensor):
                # All but logits at aligned addresses, as a decoder has them: Triton compiles anew for others.
                return [part if part.ndim == 3 else part.clone() for part in value.chunk(parts)]
            if isinstance(value, RowStats):
                return [RowStats(*columns) for columns in zip(*map(cut, value), strict=True)]
            return [type(value)(*columns) for columns in zip(*map(cut, vars(value).values()), strict=True)]

        return cut(self)

    def needed_rows(self, rule: str, num_accepted: Tensor) -> list[Tensor]:
        """The rows of logits that the rule looks at: those up to the token it stops at, and for the correction one
        row of the draft; `block` weighs every row of the target, and the draft's from the second on."""
        rows: list[Tensor] = []
        for b, n in enumerate(num_accepted.tolist()):
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
    device = generator.device
    target = peaked_logits(batch, width, vocab, generator=generator)
    draft = (target + DRAFT_NOISE * torch.randn(target.shape, generator=generator, device=device)).to(dtype)
    temperature = 0.0 if rule == "greedy" else 1.0
    seed = int(torch.randint(1 << 40, (), generator=generator, device=device))
    params = SamplingTensors.make(batch, temperature=temperature, seed=range(seed, seed + batch), device=device)
    positions = torch.full((batch,), 100, device=device)
    noise = {"purpose": Purpose.SAMPLE} if rule == "coupled" else {"purpose": Purpose.DRAFT, "epochs": positions}
    drawn = [pearl_kernels.sample(draft[:, i], params, positions + i, **noise) for i in range(width)]
    return Chains(
        target=target.to(dtype),
        draft=draft,
        tokens=torch.stack([out.tokens for out in drawn], dim=1),
        stats=RowStats(*(torch.stack(column, dim=1) for column in zip(*(out.stats for out in drawn), strict=True))),
        params=params,
        positions=positions,
        chain_len=torch.full((batch,), width, dtype=torch.int32, device=device),
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
            chains.target[b : b + 1].float(), **UNENDED,
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
    count = num_inputs(2 * shape[0] * shape[1] * shape[2] * DTYPES[dtype].itemsize, "cpu")
    inputs = [draw_chains(*shape, DTYPES[dtype], rule, generator) for _ in range(count)]
    large, backends = is_large(f"{case}, {rule}", shape[0] * shape[1] * shape[2], "cpu"), native_backends("cpu")
    for backend in backends:
        for chains in inputs:
            check(chains.split(-(-shape[0] // JUDGED))[0] if large else chains, rule, backend)
    accepted = [chains.verify(rule, (*backends, REFERENCE)[0]).num_accepted for chains in inputs]
    needed = [chains.needed_rows(rule, lengths) for chains, lengths in zip(inputs, accepted, strict=True)]
    contenders = [Contender(FLOOR, [read_once(rows) for rows in needed])]
    contenders += [Contender(name, [verification(chains, rule, name) for chains in inputs]) for name in backends]
    if not large:
        contenders.append(Contender(REFERENCE, [verification(chains, rule, REFERENCE) for chains in inputs]))
        contenders.append(Contender(TRANSFORMERS, [transformers_verification(chains, rule) for chains in inputs]))
    mean_accepted = sum(float(lengths.float().mean()) for lengths in accepted) / count
    needed_bytes = sum(row.nbytes for rows in needed for row in rows) / count
    return compare(case, f"{rule}, {mean_accepted:.1f} accepted", time_us(contenders, repeats), needed_bytes)


def bench_rule_on_gpu(case: str, rule: str, repeats: int, peers_found: dict[str, str]) -> list[Row]:
    import gpu
    import peers

    batch, width, vocab, dtype = case.split("x")
    shape = int(batch), int(width), int(vocab)
    generator = torch.Generator("cuda").manual_seed(0)
    logits = shape[0] * shape[1] * shape[2]
    count = num_inputs(2 * logits * DTYPES[dtype].itemsize, "cuda")
    inputs = draw_chains(count * shape[0], *shape[1:], DTYPES[dtype], rule, generator).split(count)
    backends = native_backends("cuda")
    answers = {name: [x.verify(rule, name) for x in inputs] for name in backends}
    large = is_large(f"{case}, {rule}", logits, "cuda")
    if not large:
        answers[REFERENCE] = [x.verify(rule, REFERENCE) for x in inputs[:JUDGED]]
    outputs = gpu.agreed(answers, f"{case}, {rule}")
    needed = [
        row.nbytes for x, out in zip(inputs, outputs, strict=True) for row in x.needed_rows(rule, out.num_accepted)
    ]
    needed_bytes = sum(needed) / count

    contenders = [gpu.read_once(needed_bytes, count, generator.device)]
    contenders += [Contender(name, [verification(x, rule, name) for x in inputs]) for name in backends]
    if not large:
        contenders.append(Contender(REFERENCE, [verification(x, rule, REFERENCE) for x in inputs]))
        contenders.append(Contender(TRANSFORMERS, [transformers_verification(x, rule) for x in inputs]))
    if rule == "token":
        contenders += peers.contenders(peers.VERIFY, [(x.target, x.draft, x.tokens) for x in inputs], peers_found)
    accepted = sum(float(out.num_accepted.float().mean()) for out in outputs) / count
    times = gpu.time_us(contenders, repeats, graphs=(FLOOR, *backends))
    return compare(case, f"{rule}, {accepted:.1f} accepted", times, needed_bytes)


def main() -> None:
    parsed = arguments(__doc__ or "", CASES)
    works = [(case, rule) for case in parsed.cases.split(",") for rule in RULES]
    if parsed.device == "cpu":
        measure("verify", [partial(bench_rule, *work, parsed.repeats) for work in works], parsed)
        return
    import gpu

    found: dict[str, str] = {}
    on_gpu = [partial(bench_rule_on_gpu, *work, parsed.repeats, found) for work in works]
    measure("verify", on_gpu, parsed, gpu.describe(torch.device("cuda"), found))


if __name__ == "__main__":
    main()
