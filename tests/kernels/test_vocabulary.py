"""Every token of every vocabulary counts, the last ones too, however the rows are laid out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import Purpose, SamplingTensors
from tests.kernels.cases import peaked_logits, strided
from tests.kernels.vocabulary_checks import VOCABULARIES, check_last_token_is_drawn, check_last_token_is_residual


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_last_tokens_are_drawn(vocab: int, dtype: torch.dtype, backend: str) -> None:
    check_last_token_is_drawn(vocab, backend, dtype)


@pytest.mark.parametrize("vocab", VOCABULARIES[1:])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_the_last_tokens_are_in_the_residual(rule: str, vocab: int, backend: str) -> None:
    check_last_token_is_residual(rule, vocab, backend)


@pytest.mark.parametrize("vocab", [7, 1000, 32000])
def test_tokens_that_cannot_be_drawn_change_nothing(vocab: int, backend: str) -> None:
    """The noise belongs to the vocab id: a vocabulary padded with -inf draws the same tokens."""
    logits = peaked_logits((50, vocab), torch.Generator().manual_seed(0))
    padded = torch.cat([logits, torch.full((50, 61), -torch.inf)], dim=1)
    assert torch.equal(draw(logits, backend), draw(padded, backend))


@pytest.mark.parametrize("layout", ["padded rows", "every second row", "expanded"])
def test_row_strides_do_not_matter(layout: str, backend: str) -> None:
    logits = peaked_logits((8, 333), torch.Generator().manual_seed(1))
    views = {
        "padded rows": strided(logits),
        "every second row": logits.repeat_interleave(2, dim=0)[::2],
        "expanded": logits[:1].expand(8, -1),
    }
    view = views[layout]
    assert torch.equal(draw(view, backend), draw(view.contiguous(), backend))


def test_batch_and_width_of_verify_may_be_transposed(backend: str) -> None:
    logits = peaked_logits((4, 6, 50), torch.Generator().manual_seed(2))
    tokens = torch.zeros(6, 4, dtype=torch.int64)
    results = [
        pearl_kernels.verify(
            target, tokens, torch.full((6,), 4, dtype=torch.int32), SamplingTensors.make(6, seed=range(6)),
            torch.zeros(6, dtype=torch.int64), backend=backend,
        )
        for target in (logits.transpose(0, 1), logits.transpose(0, 1).contiguous())
    ]  # fmt: skip
    assert torch.equal(results[0].next_token, results[1].next_token)


def draw(logits: Tensor, backend: str) -> Tensor:
    rows = len(logits)
    params = SamplingTensors.make(rows, seed=list(range(rows)), top_p=0.95)
    return pearl_kernels.sample(logits, params, torch.arange(rows), purpose=Purpose.DRAFT, backend=backend).tokens
