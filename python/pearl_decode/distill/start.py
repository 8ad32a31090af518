"""What training begins with: layers of the target as they are, or a draft that was distilled before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pearl_decode.drafts import draft_directory, load_draft, new_draft, own_parameters, read_config

LAYERS, DRAFT_VOCAB = 2, 16384  # where nothing is said


@dataclass(frozen=True)
class Start:
    """layers: of the target, that the draft is or once was. draft: that is gone on from, None for those layers.

    new_ids: whether the draft_vocab ids it can draw are to be chosen
    """

    layers: tuple[int, ...]
    draft_vocab: int
    draft: PreTrainedModel | None = None
    new_ids: bool = True

    @classmethod
    def make(
        cls,
        target: PreTrainedModel,
        layers: int | Sequence[int] | None,
        draft_vocab: int | None,
        initial_draft: str | os.PathLike[str] | None,
    ) -> Start:
        """Raises ValueError naming the argument: layers that the target lacks, a draft that is not the target's."""
        if initial_draft is None:
            size = DRAFT_VOCAB if draft_vocab is None else draft_vocab
            return cls(_layers(target, LAYERS if layers is None else layers), size)
        if layers is not None:
            raise ValueError(
                f"initial_draft has layers already: layers must not be given with it, got layers={layers!r}"
            )
        directory = draft_directory(initial_draft)
        if directory is None:
            raise ValueError(
                f"initial_draft must be the directory of a distilled draft, got {os.fspath(initial_draft)!r}"
            )
        config, draft = read_config(directory), load_draft(directory, target)
        size = config.vocab_size if draft_vocab is None else draft_vocab
        return cls(tuple(config.layers), size, draft, draft_vocab is not None)

    def draft_with(self, target: PreTrainedModel, d2t: torch.Tensor | None) -> PreTrainedModel:
        """The draft that training begins with, where new_ids with the ids d2t, as in `new_draft`."""
        if self.draft is not None and not self.new_ids:
            return self.draft
        draft = new_draft(target, self.layers, d2t)
        if self.draft is not None:
            draft.load_state_dict(own_parameters(self.draft), strict=False)
        return draft


def _layers(target: PreTrainedModel, layers: int | Sequence[int]) -> tuple[int, ...]:
    total: int = target.config.get_text_config().num_hidden_layers
    if not isinstance(layers, int):
        if not layers or not all(layer in range(total) for layer in layers):
            raise ValueError(f"layers must be in [0, {total}) for this target, got {layers!r}")
        return tuple(layers)
    if not 1 <= layers < total:
        raise ValueError(f"layers must be from 1 to {total - 1} for this target, got {layers}")
    return tuple(range(layers))
