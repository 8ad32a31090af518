"""Models whose text is written in their weights: a target's by itself, a draft's guesses right as often as is asked.

What a model that was never trained says is worth nothing, but what its forward costs is the same as ever. Its head is
its embedding, moved on by some ids, and its layers add little to what they pass on: each token is then followed by the
one so many ids further, by a wide margin, whatever the width of the window that computes it, and with all the work of a
trained model of that shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def write_text(model: PreTrainedModel, stride: int) -> None:
    """Let each token be followed by the one `stride` ids further. The model's head must not be its embedding."""
    parts: Any = model
    embedding, head = parts.get_input_embeddings().weight, parts.get_output_embeddings().weight
    assert head is not embedding, "a head of its own is needed"
    # Of one length: the likeliest token is then the right one however many others there are.
    embedding.normal_().mul_(embedding.shape[1] ** 0.5 / embedding.norm(dim=1, keepdim=True))
    layers = parts.base_model.layers
    for layer in layers:
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.div_((2 * len(layers)) ** 0.5)
    head.copy_(embedding.roll(stride, 0))


class Agreement:
    """Lets a draft, whose text was written with this stride, guess texts of a target with the same as often as asked.

    At the other positions it guesses another token. Which these are is drawn once, by row and position: a position that
    is drafted again is guessed the same, whoever decodes. The share is exact, its order random, and what is right at
    one acceptance is right at every higher one. It is the draft's head that is changed, where it is, and nothing else:
    what was captured with it, or compiled, goes on.
    """

    def __init__(self, draft: PreTrainedModel, stride: int) -> None:
        parts: Any = draft
        self._embedding, self._head = parts.get_input_embeddings().weight, parts.get_output_embeddings().weight
        self._stride = stride

    @torch.no_grad()
    def follow(self, texts: Sequence[Sequence[int]], begin: int, acceptance: float) -> None:
        """Guess these texts from now on.

        texts: a row each of one length, prompts included; the guesses count from position `begin` on
        Raises ValueError for texts that are not a target's own, or come to a token twice.
        """
        if not 0 <= acceptance <= 1:
            raise ValueError(f"acceptance must be in [0, 1], got {acceptance!r}")
        vocab, read = len(self._head), torch.tensor(texts)[:, begin - 1 :]
        if (strange := ((read[:, 1:] - read[:, :-1]) % vocab != self._stride % vocab).any(0)).any():
            where = begin + int(strange.nonzero()[0])
            raise ValueError(f"texts must go on by {self._stride} ids from position {begin} on, got another at {where}")
        if len(read.unique()) < read.numel():
            raise ValueError("texts must come to no token twice from their last prompt token on, got one again")
        right = (read + self._stride) % vocab
        away = next((n for n in range(1, vocab) if not torch.isin((right + n) % vocab, right).any()), None)
        if away is None:
            raise ValueError(f"texts must leave room for wrong guesses among {vocab} ids, got {read.numel()} tokens")
        read = read[:, :-1]
        order = torch.rand(*read.shape, generator=torch.Generator().manual_seed(0)).argsort(1).argsort(1)
        missed = right[:, :-1][(order + 0.5) / read.shape[1] >= acceptance].to(self._head.device)
        others = (missed + away) % vocab
        # Both rows of the head change places: the token whose own follower that other one is, no text comes to.
        self._head.copy_(self._embedding.roll(self._stride, 0))
        self._head[missed], self._head[others] = self._head[others], self._head[missed]
