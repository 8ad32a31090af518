"""How far a draft's distribution is from its target's, and which way its logits have to go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pearl_decode.distill.lessons import Head, Lesson, probs_of

# Of the target's probabilities of the ids the draft knows, (positions, draft_vocab) with sums of at most 1, and the
# draft's logits: the loss of each position, and its gradient by the logits.
Loss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# Of the target's logits of those ids, their logsumexp with all others, and the draft's logits: the sum of the losses,
# and its gradient by the draft's logits, in their type.
SumOfLosses = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def forward_kl(target_probs: torch.Tensor, draft_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the draft under the target: the forward KL and the target's entropy."""
    log_probs = torch.log_softmax(draft_logits, dim=-1)
    loss = -(target_probs * log_probs).sum(-1)
    return loss, log_probs.exp_().mul_(target_probs.sum(-1, keepdim=True)).sub_(target_probs)


def total_variation(target_probs: torch.Tensor, draft_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """1 - sum_v min(target_prob, draft_prob): the share of drafted tokens that verification refuses."""
    probs = torch.softmax(draft_logits, dim=-1)
    loss = 1 - torch.minimum(target_probs, probs).sum(-1)
    rising = probs.where(probs < target_probs, 0)  # more of these lowers the loss, more of others does nothing
    return loss, probs.mul_(rising.sum(-1, keepdim=True)).sub_(rising)


def mixed(target_probs: torch.Tensor, draft_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward KL, whose gradient is strong far from the target, and total variation, which is what is wanted."""
    far, near = forward_kl(target_probs, draft_logits), total_variation(target_probs, draft_logits)
    return far[0] + 2 * near[0], far[1].add_(near[1], alpha=2)


LOSSES: dict[str, Loss] = {"kl": forward_kl, "tv": total_variation, "mix": mixed}


def sum_of(loss: Loss) -> SumOfLosses:
    """`loss` over logits as the heads make them, in the precision of the logsumexp."""

    def sum_of_losses(
        target_logits: torch.Tensor, target_lse: torch.Tensor, draft_logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values, by_logits = loss(probs_of(target_logits, target_lse), draft_logits.to(target_lse.dtype))
        return values.sum(), by_logits.to(draft_logits.dtype)

    return sum_of_losses


def mean_loss(losses: SumOfLosses, hidden: torch.Tensor, head: Head, lesson: Lesson) -> torch.Tensor:
    """The mean loss of the logits of `head`, which is not trained, for hidden (positions, hidden), beside the lesson's.

    Logits and their gradients are made for a few positions at a time and never kept: they are many times as large as
    all else.
    """
    value: torch.Tensor = _MeanLoss.apply(hidden, head, lesson, losses)  # type: ignore[no-untyped-call]
    return value


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: Head, lesson: Lesson, losses: SumOfLosses) -> torch.Tensor:
        gradient, sums = torch.empty_like(hidden), []
        for rows in head.parts(len(hidden)):
            target_logits, draft_logits = head.product(lesson.hidden[rows]), head.product(hidden[rows])
            value, by_logits = losses(target_logits, lesson.lse[rows], draft_logits)
            sums.append(value)
            gradient[rows] = torch.matmul(by_logits, head.weight)
        ctx.save_for_backward(gradient.div_(len(hidden)))
        return torch.stack(sums).sum() / len(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return ctx.saved_tensors[0] * upstream[0], None, None, None
