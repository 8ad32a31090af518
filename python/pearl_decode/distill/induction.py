"""How much likelier a draft should find the token that followed the last time its text ended as it ends now."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from pearl_decode.distill.lessons import Head, Lesson, Lessons
from pearl_kernels import induce_

MOST = 8  # tokens of an end that are compared
ENOUGH = 1 << 15  # positions
CHOICES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0)


def induced(
    logits: torch.Tensor, lesson: Lesson, rows: slice, strengths: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """`induce_` of the draft's logits (positions, draft_vocab) of these rows of a lesson, in place."""
    text, last = (index[rows] for index in lesson.learn.nonzero(as_tuple=True))
    return induce_(logits, lesson.inputs[text], last + 1, strengths, d2t=ids)


@torch.no_grad()
def fit_strengths(
    lessons: Lessons, hidden_states: Callable[[Lesson], torch.Tensor], head: Head, ids: torch.Tensor
) -> torch.Tensor:
    """The strengths (MOST,) float32 with which most of what a draft writes is accepted, greedy and at temperature 1.

    lessons: that the draft did not learn from
    hidden_states: of a lesson, what the draft's head reads
    ids: (draft_vocab,) int64 that the draft can draw. A longer end never has less strength than a shorter one.
    """
    choices = torch.tensor(CHOICES, device=ids.device)
    numbers = torch.arange(1.0, MOST + 1, device=ids.device)
    accepted = torch.zeros(MOST + 1, len(CHOICES), device=ids.device)  # by the tokens that matched
    seen = 0
    for index in random.Random(0).sample(range(len(lessons)), len(lessons)):
        lesson = lessons[index]
        hidden = hidden_states(lesson)
        for rows in head.parts(len(hidden)):
            logits, target_probs = head.logits(hidden[rows]), lesson.probs(head, rows)
            marks = induced(torch.zeros_like(logits), lesson, rows, numbers, ids)
            matched, token = marks.max(1)
            for column, strength in enumerate(choices):
                stronger = logits.scatter_add(1, token[:, None], (strength * (matched > 0))[:, None])
                chance = torch.minimum(target_probs, stronger.softmax(-1)).sum(-1)
                agreed = ids[stronger.argmax(-1)] == lesson.best[rows]
                accepted[:, column].index_add_(0, matched.long(), chance + agreed)
        seen += len(hidden)
        if seen >= ENOUGH:
            break
    return choices[accepted[1:].argmax(1)].cummax(0).values
