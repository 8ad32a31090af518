"""The door of `verify`: accept the longest valid prefix of each drafted chain and draw the token after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels._cuda import unfit
from pearl_kernels.dispatch import choose, contiguous, define, operation
from pearl_kernels.types import RowStats, SamplingTensors, VerifyOutput

_ARGUMENTS = (
    "Tensor target_logits, Tensor draft_tokens, Tensor chain_len, Tensor temperature, Tensor top_k, "
    "Tensor top_p, Tensor min_p, Tensor seed, Tensor positions, Tensor? draft_logits, "
    "Tensor? draft_threshold, Tensor? draft_lse, Tensor? d2t, str rule, str? backend"
)


def verify(
    target_logits: Tensor,
    draft_tokens: Tensor,
    chain_len: Tensor,
    params: SamplingTensors,
    positions: Tensor,
    *,
    draft_logits: Tensor | None = None,
    draft_stats: RowStats | None = None,
    rule: str = "token",
    d2t: Tensor | None = None,
    backend: str | None = None,
    out: VerifyOutput | None = None,
) -> VerifyOutput:
    """Accept the longest valid prefix of each drafted chain and draw the token after it.

    target_logits: (batch, width, vocab) float32/bfloat16/float16, any strides but contiguous last dimension;
                   row i is the target's distribution of the token at positions + i
    draft_tokens:  (batch, width) int64, target ids; columns at or past chain_len are ignored. An id outside
                   [0, vocab) is a placeholder: the chain ends there, and the token after it is the target's
                   own draw
    chain_len:     (batch,) int32 in [1, width]
    params:        SamplingTensors of (batch,), for target and draft alike; rows of temperature 0 are greedy
    positions:     (batch,) int64, absolute index of the first token being decided
    draft_logits:  (batch, width, draft_vocab <= vocab), dtype free, strides as target_logits: what the
                   drafted tokens were sampled from. None says the draft was deterministic (one-hot)
    draft_stats:   RowStats of (batch, width), as `sample` returned them; computed from draft_logits if None
    rule:          "greedy", "token", "block", or "coupled" (which needs no draft_logits)
    d2t:           (draft_vocab,) int64, strictly increasing: the target id of each draft id. None is the
                   identity. Target ids that no draft id maps to have draft probability 0
    backend:       None picks the best for the device
    out:           written and returned, instead of new tensors

    Returns VerifyOutput: num_accepted (batch,) int32 in [0, chain_len]; next_token (batch,) int64, -1 if the
    whole chain was accepted; status (batch,) int32, bits of Status. With a bad target row next_token is 0.
    Raises ValueError naming the argument, what was expected and what came.
    Source: token, Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1; block, Sun et al. 2024 (arXiv
    2403.10444), Algorithm 2; coupled, Daliri et al. 2024 (arXiv 2408.07978).
    """
    checks.logits("verify", "target_logits", target_logits, ("batch", "width", "vocab"))
    (batch, width, vocab), device = target_logits.shape, target_logits.device
    checks.params("verify", params, batch, device)
    row = (("batch", batch),)
    checks.tensor("verify", "draft_tokens", draft_tokens, (*row, ("width", width)), torch.int64, device)
    checks.tensor("verify", "chain_len", chain_len, row, torch.int32, device)
    checks.tensor("verify", "positions", positions, row, torch.int64, device)
    if checks.readable(chain_len):
        checks.in_range("verify", "chain_len", chain_len, 1, width)
    checks.draft("verify", draft_logits, draft_stats, d2t, batch, width, vocab, device)
    checks.rule("verify", rule)
    draft_threshold, draft_lse = (None, None) if draft_stats is None else draft_stats
    arguments = (
        target_logits, draft_tokens, chain_len, params.temperature, params.top_k, params.top_p, params.min_p,
        params.seed, positions, draft_logits, draft_threshold, draft_lse, d2t, rule, backend,
    )  # fmt: skip
    if out is None:
        return VerifyOutput(*operation("verify", _verify)(*arguments))
    _check_out(out, batch, device)
    operation("verify_out", _verify_out)(
        *arguments, num_accepted=out.num_accepted, next_token=out.next_token, status=out.status
    )
    return out


def _check_out(out: VerifyOutput, batch: int, device: torch.device) -> None:
    if not isinstance(out, VerifyOutput):
        raise ValueError(f"verify: out must be VerifyOutput, got {type(out).__name__}")
    sizes = (("batch", batch),)
    checks.updatable("verify", "out.num_accepted", out.num_accepted, sizes, torch.int32, device)
    checks.updatable("verify", "out.next_token", out.next_token, sizes, torch.int64, device)
    checks.updatable("verify", "out.status", out.status, sizes, torch.int32, device)


def _new_outputs(target_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch = target_logits.shape[:1]
    return (
        target_logits.new_empty(batch, dtype=torch.int32),
        target_logits.new_empty(batch, dtype=torch.int64),
        target_logits.new_empty(batch, dtype=torch.int32),
    )


def _verify_out(
    target_logits: Tensor,
    draft_tokens: Tensor,
    chain_len: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    positions: Tensor,
    draft_logits: Tensor | None,
    draft_threshold: Tensor | None,
    draft_lse: Tensor | None,
    d2t: Tensor | None,
    rule: str,
    backend: str | None,
    *,
    num_accepted: Tensor,
    next_token: Tensor,
    status: Tensor,
) -> None:
    rows = contiguous(draft_tokens, chain_len, temperature, top_k, top_p, min_p, seed, positions)
    draft = contiguous(draft_threshold, draft_lse, d2t)
    run = choose("verify", target_logits.device, backend, unfit(target_logits.shape[1]))
    run(target_logits, *rows, draft_logits, *draft, rule, num_accepted, next_token, status)


def _verify(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_accepted, next_token, status = outputs = _new_outputs(arguments[0])
    _verify_out(*arguments, num_accepted=num_accepted, next_token=next_token, status=status)
    return outputs


def _verify_fake(target_logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _new_outputs(target_logits)


def _verify_out_fake(*_: Any, **__: Any) -> None:
    pass


define(f"verify({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _verify, _verify_fake)
define(
    f"verify_out({_ARGUMENTS}, *, Tensor(a!) num_accepted, Tensor(b!) next_token, Tensor(c!) status) -> ()",
    _verify_out,
    _verify_out_fake,
)
