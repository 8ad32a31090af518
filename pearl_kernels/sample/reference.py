"""`sample` in plain torch, and what a row of logits means. Clear before fast; float64 to judge by.

It reads a few parameters on the host, so on a GPU it synchronises.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pearl_kernels.philox import gumbel_row
from pearl_kernels.types import Status


class Rows(NamedTuple):
    """What is known of each row of a (batch, vocab) tensor of logits. Bad rows have a status.

    threshold, lse: (batch,) as in RowStats, in the dtype of the computation
    best:           (batch,) int64, argmax, lowest index first
    status:         (batch,) int32, TARGET_INVALID or EMPTY_DISTRIBUTION or 0
    """

    threshold: Tensor
    lse: Tensor
    best: Tensor
    status: Tensor


def inverse_temperature(temperature: Tensor) -> Tensor:
    """1 / temperature in float32, of at least the smallest normal number; 1 where it is 0. (batch,) -> (batch, 1)."""
    return torch.where(temperature > 0, 1 / temperature.clamp(min=torch.finfo(torch.float32).tiny), 1.0)[:, None]


def describe_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> Rows:
    """Statistics of each row of (batch, vocab) logits under parameters of (batch,)."""
    values = logits.to(dtype)
    invalid = ~(values < torch.inf).all(-1)  # NaN compares false
    empty = (values == -torch.inf).all(-1)
    status = Status.TARGET_INVALID * invalid.int() + Status.EMPTY_DISTRIBUTION * empty.int()
    bad = invalid | empty
    values = values.masked_fill(bad[:, None], 0.0)
    best = values.argmax(-1)
    top = values.gather(1, best[:, None])  # (batch, 1)
    inv_t = inverse_temperature(temperature).to(dtype)
    threshold = torch.maximum(
        _rank_threshold(values, top, inv_t, top_k, top_p), _min_p_threshold(top, temperature, min_p)
    )
    weights = torch.exp((values - top) * inv_t) * (values >= threshold[:, None])
    lse = (top * inv_t).squeeze(1) + weights.sum(-1, dtype=torch.float64).log().to(dtype)
    greedy = temperature == 0
    threshold = torch.where(greedy, top.squeeze(1), threshold).masked_fill(bad, -torch.inf)
    return Rows(threshold, lse.masked_fill(greedy | bad, 0.0), best, status)


def _rank_threshold(values: Tensor, top: Tensor, inv_t: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit that top_k, and then top_p on what top_k kept, keep. (batch,)"""
    vocab = values.shape[1]
    by_count, by_mass = (top_k > 0) & (top_k < vocab), top_p < 1
    threshold = torch.full_like(values[:, 0], -torch.inf)
    if not bool((by_count | by_mass).any()):
        return threshold
    ordered = values.sort(dim=-1, descending=True).values
    kth = ordered.gather(1, (top_k.long() - 1).clamp(0, vocab - 1)[:, None]).squeeze(1)
    threshold = torch.where(by_count, kth, threshold)
    weights = (torch.exp((ordered - top) * inv_t) * (ordered >= threshold[:, None])).double()
    mass = weights.cumsum(-1)
    mass_above = (mass - weights) / mass[:, -1:]
    # Equal logits stay together: the last one kept sets the threshold, and its equals pass it.
    num_kept = (mass_above < top_p[:, None]).sum(-1, keepdim=True)
    nucleus = ordered.gather(1, num_kept - 1).squeeze(1)
    return torch.where(by_mass, torch.maximum(threshold, nucleus), threshold)


def _min_p_threshold(top: Tensor, temperature: Tensor, min_p: Tensor) -> Tensor:
    """The logit at which the probability is min_p of the largest, rounded to float32. (batch,)"""
    return (top.squeeze(1).double() + temperature * min_p.double().log()).float().to(top.dtype)


def log_weights(logits: Tensor, inv_t: Tensor, threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """logit / temperature where kept, else -inf: log probabilities plus lse. (batch, vocab)"""
    values = logits.to(dtype)
    return torch.where(values >= threshold[:, None].to(dtype), values * inv_t.to(dtype), -torch.inf)


@torch.no_grad()
def sample_out(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    positions: Tensor,
    epochs: Tensor | None,
    purpose: int,
    tokens: Tensor,
    threshold: Tensor,
    lse: Tensor,
    status: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """`pearl_kernels.sample`, written into tokens, threshold, lse and status."""
    rows = describe_rows(logits, temperature, top_k, top_p, min_p, dtype=dtype)
    noise = gumbel_row(seed, positions, purpose, 0 if epochs is None else epochs, logits.shape[1], dtype)
    drawn = (log_weights(logits, inverse_temperature(temperature), rows.threshold, dtype) + noise).argmax(-1)
    drawn = torch.where(temperature == 0, rows.best, drawn)
    tokens.copy_(drawn.masked_fill(rows.status != 0, 0))
    threshold.copy_(rows.threshold)
    lse.copy_(rows.lse)
    status.copy_(rows.status)
