"""Every backend gives the float64 reference's answer, token for token, given the seeds.

The noise is integer arithmetic and so the same everywhere. Two implementations can differ only where rounding decides:
two Gumbel scores, or u * draft_prob and target_prob, within a few float32 roundings (about 1e-6) of each other. That
happens to about one row in 100,000; the checks allow one in 2,000, and so none at all in the smaller batches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pearl_kernels import Purpose, RowStats, SamplingTensors, philox
from tests.kernels import model
from tests.kernels.cases import SampleCase, VerifyCase, mixed_params, peaked_logits, strided, verify_case

BOUNDARY_ROWS = 2000  # at most one row in so many may differ
RULES = ("greedy", "token", "block", "coupled")
# Batches shrink as vocabularies grow; odd sizes have last tiles of every length.
SIZES = [
    (2000, 1),
    (2000, 2),
    (2000, 7),
    (2000, 32),
    (100, 1000),
    (8, 32000),
    (8, 49152),
    (3, 128256),
    (2, 151936),
    (2, 262144),
]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
]


def assert_few_differ(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    differs = torch.zeros_like(got[0], dtype=torch.bool)
    for a, b in zip(got, wanted, strict=True):
        differs |= a != b
    assert int(differs.sum()) <= len(differs) // BOUNDARY_ROWS, f"rows {differs.nonzero().flatten().tolist()[:9]}"


def assert_agrees(case: VerifyCase, backend: str) -> None:
    assert_few_differ(case.run(backend), case.judged())


def assert_stats_agree(got: RowStats, wanted: RowStats, top_p: Tensor) -> None:
    """Thresholds are exact, but for a nucleus whose mass comes within rounding (1e-7) of top_p: on a tail of tokens of
    1e-6 each that is one row in a few dozen, and moves the sum by as little."""
    by_mass, same = top_p < 1, got.threshold == wanted.threshold
    assert torch.equal(got.threshold[~by_mass], wanted.threshold[~by_mass])
    assert int((~same).sum()) <= 1 + int(by_mass.sum()) // 100
    torch.testing.assert_close(got.lse[same], wanted.lse[same], atol=2e-5, rtol=3e-7)


@pytest.mark.parametrize(("batch", "vocab"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sample_agrees_with_the_float64_reference(backend: str, batch: int, vocab: int, dtype: torch.dtype) -> None:
    logits = strided(peaked_logits((batch, vocab), torch.Generator().manual_seed(vocab)).to(dtype))
    positions = torch.arange(batch) * 977
    case = SampleCase(logits, mixed_params(batch), positions, Purpose.DRAFT, epochs=positions // 2)
    got, wanted = case.run(backend), case.judged()
    assert_few_differ((got.tokens, got.status), (wanted.tokens, wanted.status))
    assert_stats_agree(got.stats, wanted.stats, case.params.top_p)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": torch.zeros_like,
    "two levels": lambda x: 3.0 * (x > 0.5),
    "steps": lambda x: (2 * x).round(),
    "one spike": lambda x: torch.where(torch.arange(x.shape[1]) == x.shape[1] // 2, 50.0, x),
    "mostly -inf": lambda x: torch.where((x > 0.8) | (x == x.amax(1, keepdim=True)), x, -torch.inf),
    "wide": lambda x: 1e4 * x,
    "narrow": lambda x: 1e-4 * x,
    "far below zero": lambda x: x - 100,
    "rising": lambda x: (3 * x).sort(-1).values,
    "falling": lambda x: (3 * x).sort(-1, descending=True).values,
}
HARSH = {
    "temperature": (0.0, 0.3, 0.7, 1.0, 1.0, 2.0, 10.0),
    "top_k": (0, 0, 1, 2, 5, 16, 1000),
    "top_p": (1.0, 1.0, 0.999, 0.9, 0.5, 0.1, 0.013),
    "min_p": (0.0, 0.0, 0.001, 0.11, 0.5, 1.0),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sample_agrees_on_rows_of_every_shape(shape: str, dtype: torch.dtype, backend: str) -> None:
    """Ties, plateaus, spikes and nothing: where thresholds are found and sums are taken is where kernels go wrong."""
    rng, rows = random.Random(f"{shape} {dtype}"), 60
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    for vocab in (1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 65, 127, 128, 257, 1000, 4097):
        logits = SHAPES[shape](torch.randn(rows, vocab, generator=generator))
        logits = strided(logits.clamp(max=6e4).to(dtype))
        columns = {name: [rng.choice(values) for _ in range(rows)] for name, values in HARSH.items()}
        seeds = [rng.getrandbits(63) for _ in range(rows)]
        params = SamplingTensors.make(rows, **columns, seed=seeds)  # type: ignore[arg-type]
        case = SampleCase(logits, params, torch.arange(rows))
        got, wanted = case.run(backend), case.judged()
        assert_few_differ((got.tokens, got.status), (wanted.tokens, wanted.status))
        assert_stats_agree(got.stats, wanted.stats, case.params.top_p)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 20.0])
@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_verify_agrees_for_cold_and_hot_rows(rule: str, temperature: float, backend: str) -> None:
    assert_agrees(verify_case(2000, 4, 40, rule=rule, temperature=temperature, seed=3), backend)


@pytest.mark.parametrize(("batch", "vocab"), SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_verify_agrees_on_every_vocabulary(backend: str, rule: str, batch: int, vocab: int) -> None:
    assert_agrees(verify_case(batch, 3, vocab, rule=rule, seed=vocab), backend)


@pytest.mark.parametrize(("dtype", "draft_dtype"), DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_verify_agrees_for_every_dtype(backend: str, rule: str, dtype: torch.dtype, draft_dtype: torch.dtype) -> None:
    assert_agrees(verify_case(500, 4, 61, rule=rule, dtype=dtype, draft_dtype=draft_dtype, seed=5), backend)


@pytest.mark.parametrize("width", [1, 2, 5, 9, 17, 32])
@pytest.mark.parametrize("rule", RULES)
def test_verify_agrees_for_every_width(backend: str, rule: str, width: int) -> None:
    assert_agrees(verify_case(1000 if width < 10 else 200, width, 24, rule=rule, seed=width), backend)


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize(
    "kind",
    [
        {"stats": False},
        {"one_hot": True},
        {"mapped": True},
        {"mapped": True, "stats": False},
        {"draft_vocab": 37},
        {"draft_vocab": 1},
        {"placeholders": False},
    ],
    ids=lambda kind: "-".join(f"{name}={value}" for name, value in kind.items()),
)
def test_verify_agrees_for_every_kind_of_draft(backend: str, rule: str, kind: dict[str, Any]) -> None:
    assert_agrees(verify_case(1000, 4, 50, rule=rule, seed=9, **kind), backend)


@pytest.mark.parametrize("rule", RULES)
def test_verify_agrees_on_a_reduced_vocabulary_of_real_size(backend: str, rule: str) -> None:
    assert_agrees(verify_case(3, 4, 128256, rule=rule, draft_vocab=32000, mapped=True, dtype=torch.bfloat16), backend)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_verify_follows_the_papers_row_by_row(backend: str, rule: str, one_hot: bool) -> None:
    case = verify_case(400, 4, 6, rule=rule, one_hot=one_hot, placeholders=False, seed=3)
    got = case.run(backend)
    rows = [paper_verify(case, b) for b in range(400)]
    assert_few_differ(
        (got.num_accepted, got.next_token),
        (torch.tensor([n for n, _ in rows]), torch.tensor([token for _, token in rows])),
    )


def paper_verify(case: VerifyCase, b: int) -> tuple[int, int]:
    """Row b by the model of the papers, with the contract's noise: num_accepted and next_token."""
    width = int(case.chain_len[b])
    chain = case.draft_tokens[b, :width].tolist()
    target = [_probs(case, case.target_logits[b, i], b) for i in range(width)]
    if case.draft_logits is None:
        draft = [[float(v == x) for v in range(len(target[0]))] for x in chain]
    else:
        draft = [_probs(case, case.draft_logits[b, i], b) for i in range(width)]
    seed, position = case.params.seed[b : b + 1], case.positions[b : b + 1]
    greedy = float(case.params.temperature[b]) == 0
    if greedy:
        best = [max(range(len(row)), key=row.__getitem__) for row in target]
        n = next((i for i in range(width) if chain[i] != best[i]), width)
        return n, -1 if n == width else best[n]
    judged = model.JUDGES[case.rule](target, draft, chain)
    u = [float(philox.uniform(seed, position + i, Purpose.ACCEPT, position)) for i in range(width)]
    n = model.num_accepted(case.rule, [x < p for x, p in zip(u, judged.pass_probs, strict=True)])
    if n == width:
        return n, -1
    law = model.next_law(target[n], draft[n], judged.weights[n])
    noise = philox.gumbel_row(seed, position + n, Purpose.RESIDUAL, 0, len(law), torch.float64)[0].tolist()
    scores = [math.log(p) + g if p > 0 else -math.inf for p, g in zip(law, noise, strict=True)]
    return n, max(range(len(law)), key=scores.__getitem__)


def _probs(case: VerifyCase, logits: Tensor, b: int) -> list[float]:
    values = {name: getattr(case.params, name)[b].item() for name in ("temperature", "top_k", "top_p", "min_p")}
    if values["temperature"] == 0:
        values["temperature"] = 1.0
    return model.filtered(logits.tolist(), **values)
