"""Checks that samples obey a law. Each raises AssertionError, so that the mutation tests can see it fail."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# With fixed seeds a check either always passes or always fails; a true law would be refused by one seed in 10,000.
SIGNIFICANCE = 1e-4
FEWEST_SAMPLES = 1000
SMALLEST_CELL = 5.0  # expected count below which the chi-square approximation is poor: such cells are pooled


def assert_law(observed: Tensor, probs: Sequence[float] | Tensor, what: str = "sample") -> None:
    """Refuse counts that a chi-square test finds unlikely under `probs`. Both (cells,)."""
    assert int(observed.sum()) >= FEWEST_SAMPLES, f"{what}: {int(observed.sum())} samples show nothing"
    p_value = chi_square_p(observed, torch.as_tensor(probs, dtype=torch.float64))
    assert p_value > SIGNIFICANCE, f"{what}: counts {observed.tolist()[:12]} are unlikely, p = {p_value:.2e}"


def chi_square_p(observed: Tensor, probs: Tensor) -> float:
    """P-value of the counts; exactly 0 if a cell of probability 0 was hit."""
    assert abs(float(probs.sum()) - 1) < 1e-6, f"expected probabilities sum to {float(probs.sum())}"
    if bool((observed[probs <= 0] > 0).any()):
        return 0.0
    expected = probs * observed.sum()
    small = expected < SMALLEST_CELL
    counts = torch.cat([observed[~small].double(), observed[small].sum().double()[None]])
    means = torch.cat([expected[~small], expected[small].sum()[None]])
    if means[-1] < SMALLEST_CELL:  # the pool itself is small: it joins the smallest cell
        smallest = int(means[:-1].argmin())
        counts[smallest] += counts[-1]
        means[smallest] += means[-1]
        counts, means = counts[:-1], means[:-1]
    freedom = len(means) - 1
    if freedom == 0:
        return 1.0
    statistic = ((counts - means) ** 2 / means).sum()
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic / 2))


def counts_of(tokens: Tensor, vocab: int) -> Tensor:
    """How often each tuple of tokens occurs, in the order of itertools.product. tokens: (rows,) or (rows, length)."""
    tokens = tokens[:, None] if tokens.dim() == 1 else tokens
    code = torch.zeros_like(tokens[:, 0])
    for column in tokens.unbind(1):
        code = code * vocab + column
    return torch.bincount(code, minlength=vocab ** tokens.shape[1])
