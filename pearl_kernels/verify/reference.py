"""`verify` in plain torch. Clear before fast; any device; `dtype` float64 to judge by.

Vectorised over the batch, with a loop over chain positions. Every draft is first spread over the target's
vocabulary, and a deterministic one becomes rows of probability 1: below that point all drafts are alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pearl_kernels.philox import gumbel_row, uniform
from pearl_kernels.sample.reference import describe_rows, inverse_temperature, log_weights
from pearl_kernels.types import Purpose, Status


class Model(NamedTuple):
    """The rows of one model, target or draft, over the target's vocabulary."""

    logits: Tensor  # (batch, width, vocab)
    threshold: Tensor  # (batch, width)
    lse: Tensor  # (batch, width)
    best: Tensor  # (batch, width) argmax
    status: Tensor  # (batch, width)
    inv_t: Tensor  # (batch, 1)
    dtype: torch.dtype

    def log_weights(self, row: Tensor) -> Tensor:
        """Log probabilities, but for the constant lse, of row[b] of each b. (batch, vocab)"""
        return log_weights(pick(self.logits, row), self.inv_t, pick(self.threshold, row), self.dtype)

    def probs(self, row: Tensor) -> Tensor:
        """Probabilities of row[b] of each b. (batch, vocab)"""
        return (self.log_weights(row) - pick(self.lse, row)[:, None].to(self.dtype)).exp()

    def probs_of(self, ids: Tensor) -> Tensor:
        """Probability of ids[b, i] in row i, in float64, in which decisions are made. (batch, width)"""
        values = self.logits_of(ids)
        log_probs = (values * self.inv_t.to(self.dtype)).double() - self.lse.double()
        return torch.where(values >= self.threshold.to(self.dtype), log_probs.exp(), 0.0)

    def logits_of(self, ids: Tensor) -> Tensor:
        """Logit of ids[b, i] in row i. (batch, width)"""
        return self.logits.gather(2, ids[:, :, None]).squeeze(2).to(self.dtype)


class Chain(NamedTuple):
    """The drafted tokens. It is cut where none can be judged: there the target draws for itself."""

    ids: Tensor  # (batch, width), 0 in place of placeholders
    length: Tensor  # (batch,), chain_len
    placeholder: Tensor  # (batch, width) bool
    draft_invalid: Tensor  # (batch, width) bool

    def cut(self) -> Tensor:
        return self.placeholder | self.draft_invalid

    def inside(self) -> Tensor:
        """Columns before chain_len. (batch, width) bool"""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.length[:, None]


class Verdict(NamedTuple):
    """How much of each chain stands, what was wrong, and the target's factor in the residual after it."""

    num_accepted: Tensor  # (batch,) int64
    status: Tensor  # (batch,) bits of Status
    scale: Tensor  # (batch,) float64


@torch.no_grad()
def verify_out(
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
    num_accepted: Tensor,
    next_token: Tensor,
    status: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """`pearl_kernels.verify`, written into num_accepted, next_token and status."""
    if rule == "greedy":
        temperature = torch.zeros_like(temperature)
    greedy = temperature == 0
    params = (temperature, top_k, top_p, min_p)
    target = describe_model(target_logits, params, dtype)
    placeholder = (draft_tokens < 0) | (draft_tokens >= target_logits.shape[2])
    ids = draft_tokens.masked_fill(placeholder, 0)
    if draft_logits is None or rule in ("greedy", "coupled"):
        draft = one_hot_model(ids, target)
    else:
        spread = spread_draft(draft_logits, target_logits.shape[2], d2t)
        draft = describe_model(spread, params, dtype)
        if draft_threshold is not None and draft_lse is not None:
            draft = draft._replace(threshold=draft_threshold, lse=draft_lse, status=torch.zeros_like(draft.status))
    chain = Chain(ids, chain_len, placeholder, unusable(draft, ids) & ~placeholder & ~greedy[:, None])

    accepted = ids == target.best
    if rule == "token":
        u = accept_draws(seed, positions, ids)
        accepted = torch.where(greedy[:, None], accepted, accepts(u, target.probs_of(ids), draft.probs_of(ids)))
    elif rule == "coupled":
        accepted = torch.where(greedy[:, None], accepted, ids == coupled_draws(target, seed, positions))
    verdict = judge_prefix(accepted, target, chain)
    if rule == "block":
        block = judge_block(accept_draws(seed, positions, ids), target, draft, chain)
        verdict = Verdict(*(torch.where(greedy, a, b) for a, b in zip(verdict, block, strict=True)))

    drawn = draw_next(target, draft, chain, verdict, seed, positions, always_plain=rule == "coupled")
    drawn = torch.where(greedy, pick(target.best, verdict.num_accepted), drawn)
    drawn = drawn.masked_fill(verdict.num_accepted == chain_len, -1)
    num_accepted.copy_(verdict.num_accepted)
    next_token.copy_(drawn.masked_fill((verdict.status & ~Status.DRAFT_INVALID) != 0, 0))
    status.copy_(verdict.status)


def pick(values: Tensor, row: Tensor) -> Tensor:
    """values[b, row[b]] of each b; a row past the last one gives the last one."""
    return values[torch.arange(len(row), device=row.device), row.clamp(max=values.shape[1] - 1)]


def describe_model(logits: Tensor, params: tuple[Tensor, Tensor, Tensor, Tensor], dtype: torch.dtype) -> Model:
    """A model of (batch, width, vocab) logits, each row under the parameters of its batch row."""
    rows = [describe_rows(logits[:, i], *params, dtype=dtype) for i in range(logits.shape[1])]
    threshold, lse, best, status = (torch.stack(column, dim=1) for column in zip(*rows, strict=True))
    return Model(logits, threshold, lse, best, status, inverse_temperature(params[0]), dtype)


def one_hot_model(ids: Tensor, target: Model) -> Model:
    """A draft that was certain of every id it proposed."""
    logits = torch.full_like(target.logits, -torch.inf).scatter_(2, ids[:, :, None], 0.0)
    nothing = torch.zeros_like(target.lse)
    return target._replace(logits=logits, threshold=nothing, lse=nothing, status=torch.zeros_like(target.status))


def spread_draft(draft_logits: Tensor, vocab: int, d2t: Tensor | None) -> Tensor:
    """Draft logits over the target's ids, -inf where the draft has no such token. (batch, width, vocab)"""
    batch, width, draft_vocab = draft_logits.shape
    if d2t is None:
        d2t = torch.arange(draft_vocab, device=draft_logits.device)
    return draft_logits.new_full((batch, width, vocab), -torch.inf).index_copy_(2, d2t, draft_logits)


def unusable(draft: Model, ids: Tensor) -> Tensor:
    """Where the draft's statistics or the drafted token's logit are no numbers. (batch, width) bool"""
    return (draft.status != 0) | ~draft.lse.isfinite() | ~(draft.logits_of(ids) < torch.inf)


def accept_draws(seed: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """The uniform draw of each chain position; its epoch is the chain's first position. (batch, width)"""
    offsets = torch.arange(ids.shape[1], device=ids.device)
    return uniform(seed[:, None], positions[:, None] + offsets, Purpose.ACCEPT, positions[:, None])


def accepts(u: Tensor, target_prob: Tensor, draft_prob: Tensor) -> Tensor:
    """Accept with probability min(1, target_prob / draft_prob), and never what the target cannot emit."""
    return u * draft_prob < target_prob


def coupled_draws(target: Model, seed: Tensor, positions: Tensor) -> Tensor:
    """The token the target would sample in each row, were it alone. (batch, width)"""
    width, vocab = target.logits.shape[1:]
    columns = []
    for i in range(width):
        noise = gumbel_row(seed, positions + i, Purpose.SAMPLE, 0, vocab, target.dtype)
        columns.append((target.log_weights(torch.full_like(positions, i)) + noise).argmax(-1))
    return torch.stack(columns, dim=1)


def judge_prefix(accepted: Tensor, target: Model, chain: Chain) -> Verdict:
    """The chain stands up to the first token that is refused or cannot be judged, whatever comes after."""
    stands = accepted & chain.inside() & ~chain.cut() & (target.status == 0)
    num_accepted = leading(stands)
    status = pick(target.status, num_accepted) | Status.DRAFT_INVALID * pick(chain.draft_invalid, num_accepted).int()
    status = torch.where(num_accepted < chain.length, status, 0)
    return Verdict(num_accepted, status, torch.ones_like(num_accepted, dtype=torch.float64))


def judge_block(u: Tensor, target: Model, draft: Model, chain: Chain) -> Verdict:
    """Block verification: the chain stands up to the last token that passes."""
    length = leading(chain.inside() & ~chain.cut())  # up to the first token that cannot be judged
    target_prob, draft_prob = target.probs_of(chain.ids), draft.probs_of(chain.ids)
    ratio = torch.where(target_prob > 0, target_prob / draft_prob, 0.0)
    weight = torch.ones_like(ratio[:, 0])
    num_accepted, scale = torch.zeros_like(length), weight
    for i in range(ratio.shape[1]):
        # A token the target cannot emit is never mended by what follows: 0 stays 0, also when the ratio is
        # infinite.
        weight = torch.where(weight > 0, (weight * ratio[:, i]).clamp(max=1.0), 0.0)
        excess = residual(target, draft, torch.full_like(length, i + 1), weight).sum(-1, dtype=torch.float64)
        pass_prob = torch.where(excess + 1 - weight > 0, excess / (excess + 1 - weight), 1.0)
        pass_prob = torch.where(i + 1 < length, pass_prob, weight)
        passes = (i < length) & (u[:, i] <= pass_prob)
        num_accepted = torch.where(passes, i + 1, num_accepted)
        scale = torch.where(passes, weight, scale)
    status, broken = block_status(target, chain, length, num_accepted)
    return Verdict(num_accepted.masked_fill(broken, 0), status, scale)


def block_status(target: Model, chain: Chain, length: Tensor, num_accepted: Tensor) -> tuple[Tensor, Tensor]:
    """Bits of each row, and whether a needed target row is bad; the first bad one gives its bit.

    Needed is the whole chain, and the row it was cut at if the target draws there.
    """
    columns = torch.arange(target.status.shape[1], device=length.device)
    draws = (num_accepted == length) & (length < chain.length)
    bad = (target.status != 0) & (columns < (length + draws.long())[:, None])
    broken = bad.any(1)
    status = pick(target.status, bad.int().argmax(1)).masked_fill(~broken, 0)
    draft_invalid = pick(chain.draft_invalid, length) & (length < chain.length)
    return status | Status.DRAFT_INVALID * draft_invalid.int(), broken


def leading(stands: Tensor) -> Tensor:
    """How many columns from the left are true. (batch, width) -> (batch,)"""
    return stands.long().cumprod(1).sum(1)


def residual(target: Model, draft: Model, row: Tensor, scale: Tensor) -> Tensor:
    """max(scale * target_probs - draft_probs, 0) of row[b] of each b. (batch, vocab)"""
    return (scale[:, None].to(target.dtype) * target.probs(row) - draft.probs(row)).clamp(min=0)


def draw_next(
    target: Model,
    draft: Model,
    chain: Chain,
    verdict: Verdict,
    seed: Tensor,
    positions: Tensor,
    *,
    always_plain: bool,
) -> Tensor:
    """The token after the accepted ones: the target's own draw at a cut, else one from the residual."""
    row = verdict.num_accepted
    plain = pick(chain.cut(), row) | always_plain
    mass = residual(target, draft, row, verdict.scale)
    from_target = plain | (mass == 0).all(-1)
    weights = torch.where(from_target[:, None], target.log_weights(row), mass.log())
    purpose = torch.where(plain, int(Purpose.SAMPLE), int(Purpose.RESIDUAL))
    noise = gumbel_row(seed, positions + row, purpose, 0, target.logits.shape[2], target.dtype)
    return (weights + noise).argmax(-1)
