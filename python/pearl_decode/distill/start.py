"""What training begins with: layers of the target as they are, or a draft that was distilled before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from pearl_decode.drafts import draft_directory, load_draft, read_config

LAYERS, DRAFT_VOCAB = 2, 16384  # where nothing is said


@dataclass(frozen=True)
class Start:
    """layers: of the target, that the draft is or once was. draft: that is gone on from, None for those layers."""

    layers: tuple[int, ...]
    draft_vocab: int
    draft: PreTrainedModel | None = None

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
        if layers is not None or draft_vocab is not None:
            raise ValueError(
                "initial_draft has layers and vocabulary already: layers and draft_vocab must not be given with it, "
                f"got layers={layers!r} and draft_vocab={draft_vocab!r}"
            )
        directory = draft_directory(initial_draft)
        if directory is None:
            raise ValueError(
                f"initial_draft must be the directory of a distilled draft, got {os.fspath(initial_draft)!r}"
            )
        config = read_config(directory)
        return cls(tuple(config.layers), config.vocab_size, load_draft(directory, target))


def _layers(target: PreTrainedModel, layers: int | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(layers, int):
        return tuple(layers)
    total: int = target.config.get_text_config().num_hidden_layers
    if not 1 <= layers < total:
        raise ValueError(f"layers must be from 1 to {total - 1} for this target, got {layers}")
    return tuple(range(layers))
