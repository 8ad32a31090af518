"""How far a draft's distribution is from its target's."""

from __future__ import annotations

from collections.abc import Callable

import torch

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def forward_kl(target_probs: torch.Tensor, draft_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the draft under the target: the forward KL and the target's entropy, per position.

    target_probs: (positions, draft_vocab), the target's probabilities of the ids the draft knows; sums to at most 1
    draft_logits: (positions, draft_vocab)
    """
    return -(target_probs * torch.log_softmax(draft_logits, dim=-1)).sum(-1)


def total_variation(target_probs: torch.Tensor, draft_logits: torch.Tensor) -> torch.Tensor:
    """1 - sum_v min(target_prob, draft_prob): the share of drafted tokens that verification refuses."""
    return 1 - torch.minimum(target_probs, torch.softmax(draft_logits, dim=-1)).sum(-1)


def mixed(target_probs: torch.Tensor, draft_logits: torch.Tensor) -> torch.Tensor:
    """Forward KL, whose gradient is strong far from the target, and total variation, which is what is wanted."""
    return forward_kl(target_probs, draft_logits) + 2 * total_variation(target_probs, draft_logits)


LOSSES: dict[str, Loss] = {"kl": forward_kl, "tv": total_variation, "mix": mixed}
