"""`advance_` in plain torch, on top of the reference of `verify`."""

from __future__ import annotations

import torch
from torch import Tensor

from pearl_kernels.types import Finished, Status
from pearl_kernels.verify.reference import verify_out


@torch.no_grad()
def advance_(
    tokens: Tensor,
    committed: Tensor,
    window: Tensor,
    max_len: Tensor,
    eos_ids: Tensor,
    finished: Tensor,
    status: Tensor,
    target_logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    draft_logits: Tensor | None,
    draft_threshold: Tensor | None,
    draft_lse: Tensor | None,
    d2t: Tensor | None,
    rule: str,
    next_window: int,
    num_emitted: Tensor,
    num_accepted: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """`pearl_kernels.advance_` on the tensors of the state, written into num_emitted and num_accepted too."""
    running = finished == Finished.RUNNING
    offsets = torch.arange(target_logits.shape[1], device=tokens.device)
    # The rows of finished sequences are judged too, and dropped below; theirs may be any lengths.
    columns = (committed[:, None] + offsets).clamp(0, tokens.shape[1] - 1)  # (batch, width)
    chain_len = window + 1
    accepted, bits = torch.empty_like(window), torch.empty_like(status)
    next_token = torch.empty_like(committed)
    verify_out(
        target_logits, tokens.gather(1, columns), chain_len, temperature, top_k, top_p, min_p, seed,
        committed, draft_logits, draft_threshold, draft_lse, d2t, rule, accepted, next_token, bits,
        dtype=dtype,
    )  # fmt: skip
    failed = running & ((bits & ~Status.DRAFT_INVALID) != 0)
    advancing = running & ~failed
    whole = accepted == chain_len
    _write_corrected(tokens, columns, accepted, next_token, advancing & ~whole)

    gained = torch.where(whole, chain_len, accepted + 1)
    end, reason = _cut(tokens.gather(1, columns), committed, gained, max_len, eos_ids)
    emitted = torch.where(advancing, end - committed, 0)
    reason = torch.where(failed, int(Finished.ERROR), torch.where(advancing, reason, finished))
    next_windows = torch.where(whole & (reason == Finished.RUNNING), next_window, 0)

    num_emitted.copy_(emitted)
    num_accepted.copy_(torch.minimum(accepted, emitted))
    committed.add_(emitted)
    window.copy_(torch.where(running, next_windows, window))
    finished.copy_(reason)
    status.copy_(torch.where(running, status | bits, status))


def _write_corrected(tokens: Tensor, columns: Tensor, accepted: Tensor, next_token: Tensor, where: Tensor) -> None:
    column = columns.gather(1, accepted.long().clamp(max=columns.shape[1] - 1)[:, None])
    tokens.scatter_(1, column, torch.where(where[:, None], next_token[:, None], tokens.gather(1, column)))


def _cut(chain: Tensor, committed: Tensor, gained: Tensor, max_len: Tensor, eos_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row ends once `gained` tokens are committed, and why (Finished). chain is (batch, width)."""
    limit = torch.minimum(committed + gained, max_len)
    offsets = torch.arange(chain.shape[1], device=chain.device)
    new = committed[:, None] + offsets < limit[:, None]
    # A placeholder in the chain is never among the new tokens, so padding in eos_ids matches nothing there.
    is_eos = (chain[:, :, None] == eos_ids[:, None, :]).any(2) & new
    stop = is_eos.any(1)
    end = torch.where(stop, committed + is_eos.int().argmax(1) + 1, limit)
    reason = torch.where(limit >= max_len, int(Finished.LENGTH), int(Finished.RUNNING))
    return end, torch.where(stop, int(Finished.STOP), reason)
