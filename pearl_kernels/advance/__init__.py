"""The door of `advance_`: verify each sequence's window, commit what was accepted, and cut at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels._cuda import unfit
from pearl_kernels.dispatch import choose, contiguous, define, operation
from pearl_kernels.types import AdvanceOutput, DecodeState, RowStats, SamplingTensors

_ARGUMENTS = (
    "Tensor(a!) tokens, Tensor(b!) committed, Tensor(c!) window, Tensor max_len, Tensor eos_ids, "
    "Tensor(d!) finished, Tensor(e!) status, Tensor target_logits, Tensor temperature, Tensor top_k, "
    "Tensor top_p, Tensor min_p, Tensor seed, Tensor? draft_logits, Tensor? draft_threshold, "
    "Tensor? draft_lse, Tensor? d2t, str rule, int next_window, str? backend"
)


def advance_(
    state: DecodeState,
    target_logits: Tensor,
    params: SamplingTensors,
    *,
    draft_logits: Tensor | None = None,
    draft_stats: RowStats | None = None,
    rule: str = "token",
    d2t: Tensor | None = None,
    next_window: int = 0,
    backend: str | None = None,
) -> AdvanceOutput:
    """Finish a round: verify each window and the token after it, commit the outcome, and cut at the end.

    Equivalent to `verify` on the chain tokens[committed : committed + window + 1] with positions = committed,
    then
    - all accepted: committed += window + 1; window = next_window
    - else: tokens[committed + num_accepted] = next_token; committed += num_accepted + 1; window = 0
    and then committed is cut just after the first end-of-sequence token of the newly committed ones (finished
    = STOP) or at max_len (finished = LENGTH; STOP where both hold). The first token past committed may be one that
    was cut off.

    state:         DecodeState of `batch` rows, updated in place; rows that are finished are left as they are.
                   For the others 0 <= committed, window + 1 <= width, and committed + window + 1 <= the
                   length of tokens
    target_logits: (batch, width, vocab), row i is the target's distribution of the token at committed + i
    params, draft_logits, draft_stats, rule, d2t, backend: as in `verify`; draft row i is of the token at
                   committed + i
    next_window:   drafted tokens that follow a chain accepted whole, already in place: gamma - 1 where the
                   draft runs ahead during verification, else 0

    Returns AdvanceOutput: num_emitted (batch,) int32, tokens committed, 0 where finished before; num_accepted
    (batch,) int32, those of them that were drafted. A row with a bad target distribution commits nothing:
    finished = ERROR. state.status gathers the bits of Status of every round.
    Raises ValueError naming the argument, what was expected and what came.
    Source: Liu et al. 2024 (arXiv 2408.11850), pre-verify and post-verify; the rules as in `verify`.
    """
    checks.logits("advance_", "target_logits", target_logits, ("batch", "width", "vocab"))
    (batch, width, vocab), device = target_logits.shape, target_logits.device
    checks.params("advance_", params, batch, device)
    checks.state("advance_", state, batch, width, device)
    checks.draft("advance_", draft_logits, draft_stats, d2t, batch, width, vocab, device)
    checks.rule("advance_", rule)
    if next_window < 0:
        raise ValueError(f"advance_: next_window must be at least 0, got {next_window}")
    draft_threshold, draft_lse = (None, None) if draft_stats is None else draft_stats
    return AdvanceOutput(
        *operation("advance_", _advance)(
            state.tokens, state.committed, state.window, state.max_len, state.eos_ids, state.finished,
            state.status, target_logits, params.temperature, params.top_k, params.top_p, params.min_p,
            params.seed, draft_logits, draft_threshold, draft_lse, d2t, rule, next_window, backend,
        )
    )  # fmt: skip


def _new_outputs(committed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(committed, dtype=torch.int32), torch.empty_like(committed, dtype=torch.int32)


def _advance(
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
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    num_emitted, num_accepted = _new_outputs(committed)
    state = (tokens, committed, window, *contiguous(max_len, eos_ids), finished, status)
    params = contiguous(temperature, top_k, top_p, min_p, seed)
    draft = contiguous(draft_threshold, draft_lse, d2t)
    run = choose("advance", target_logits.device, backend, unfit(target_logits.shape[1]))
    run(*state, target_logits, *params, draft_logits, *draft, rule, next_window, num_emitted, num_accepted)
    return num_emitted, num_accepted


def _advance_fake(_tokens: Tensor, committed: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(committed)


define(f"advance_({_ARGUMENTS}) -> (Tensor, Tensor)", _advance, _advance_fake)
