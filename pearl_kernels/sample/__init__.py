"""The door of `sample`: draw one token per row, and describe the row for a later `verify`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.dispatch import choose, contiguous, define, operation
from pearl_kernels.types import Purpose, RowStats, SampleOutput, SamplingTensors

_ARGUMENTS = (
    "Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed, "
    "Tensor positions, Tensor? epochs, int purpose, str? backend"
)


def sample(
    logits: Tensor,
    params: SamplingTensors,
    positions: Tensor,
    *,
    purpose: Purpose = Purpose.SAMPLE,
    epochs: Tensor | None = None,
    backend: str | None = None,
    out: SampleOutput | None = None,
) -> SampleOutput:
    """Draw one token per row after temperature, top-k, top-p and min-p, in that order.

    logits:    (batch, vocab) float32/bfloat16/float16, any row stride but contiguous last dimension
    params:    SamplingTensors of (batch,); rows of temperature 0 take the argmax, lowest index first
    positions: (batch,) int64, absolute index of the token being drawn
    purpose:   what the noise is for; use DRAFT for tokens that will be verified by "token" or "block"
    epochs:    (batch,) int64, tells apart draws made for one position at different times (the committed
               length when drafting); None is 0
    backend:   None picks the best for the device
    out:       written and returned, instead of new tensors

    Returns SampleOutput: tokens (batch,) int64 in [0, vocab); stats, RowStats of (batch,) float32, which
    `verify` takes as the draft's; status (batch,) int32, bits of Status. A row with NaN, +inf, or nothing but
    -inf has a status, and token 0. Equal seeds, positions, purposes and epochs draw equal noise, whatever the
    batch, slot or backend.
    Raises ValueError naming the argument, what was expected and what came.
    Source: Gumbel-argmax sampling; noise as in `pearl_kernels.philox`.
    """
    checks.logits("sample", "logits", logits, ("batch", "vocab"))
    batch, device = logits.shape[0], logits.device
    checks.params("sample", params, batch, device)
    checks.tensor("sample", "positions", positions, (("batch", batch),), torch.int64, device)
    checks.noise("sample", purpose, epochs, batch, device)
    arguments = (
        logits, params.temperature, params.top_k, params.top_p, params.min_p, params.seed, positions, epochs,
        int(purpose), backend,
    )  # fmt: skip
    if out is None:
        tokens, threshold, lse, status = operation("sample", _sample)(*arguments)
        return SampleOutput(tokens, RowStats(threshold, lse), status)
    _check_out(out, batch, device)
    operation("sample_out", _sample_out)(
        *arguments, tokens=out.tokens, threshold=out.stats.threshold, lse=out.stats.lse, status=out.status
    )
    return out


def _check_out(out: SampleOutput, batch: int, device: torch.device) -> None:
    if not isinstance(out, SampleOutput):
        raise ValueError(f"sample: out must be SampleOutput, got {type(out).__name__}")
    sizes = (("batch", batch),)
    checks.updatable("sample", "out.tokens", out.tokens, sizes, torch.int64, device)
    checks.updatable("sample", "out.stats.threshold", out.stats.threshold, sizes, torch.float32, device)
    checks.updatable("sample", "out.stats.lse", out.stats.lse, sizes, torch.float32, device)
    checks.updatable("sample", "out.status", out.status, sizes, torch.int32, device)


def _new_outputs(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = logits.shape[:1]
    return (
        logits.new_empty(batch, dtype=torch.int64),
        logits.new_empty(batch, dtype=torch.float32),
        logits.new_empty(batch, dtype=torch.float32),
        logits.new_empty(batch, dtype=torch.int32),
    )


def _sample_out(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    positions: Tensor,
    epochs: Tensor | None,
    purpose: int,
    backend: str | None,
    *,
    tokens: Tensor,
    threshold: Tensor,
    lse: Tensor,
    status: Tensor,
) -> None:
    rows = contiguous(temperature, top_k, top_p, min_p, seed, positions, epochs)
    run = choose("sample", logits.device, backend)
    run(logits, *rows, purpose, tokens, threshold, lse, status)


def _sample(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, threshold, lse, status = outputs = _new_outputs(arguments[0])
    _sample_out(*arguments, tokens=tokens, threshold=threshold, lse=lse, status=status)
    return outputs


def _sample_fake(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _new_outputs(logits)


def _sample_out_fake(*_: Any, **__: Any) -> None:
    pass


define(f"sample({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)", _sample, _sample_fake)
define(
    f"sample_out({_ARGUMENTS}, *, Tensor(a!) tokens, Tensor(b!) threshold, Tensor(c!) lse, Tensor(d!) status) -> ()",
    _sample_out,
    _sample_out_fake,
)
