"""`Rounds` in C++."""

from __future__ import annotations

from typing import Any

from pearl_kernels import _C
from pearl_kernels._pointers import RULES, address, sampling_params
from pearl_kernels.advance._native import described_state
from pearl_kernels.dispatch import contiguous
from pearl_kernels.draft_chain._native import described_strengths, described_text
from pearl_kernels.rounds.drafter import Drafter
from pearl_kernels.types import DecodeState, SamplingTensors
from pearl_kernels.window_decoder import Window
from pearl_kernels.window_decoder._native import described_weights, described_window


def native_rounds(
    state: DecodeState, params: SamplingTensors, target: Window, draft: Drafter | None, rule: str
) -> tuple[_C.Rounds, list[Any]]:
    """The rounds, and what has to be kept as long as they are, as they point into it."""
    columns = contiguous(params.temperature, params.top_k, params.top_p, params.min_p, params.seed)
    max_len, eos_ids = state.max_len.contiguous(), state.eos_ids.contiguous()
    target = _settled(target)
    weights = described_weights(target.weights)
    kept: list[Any] = [state, columns, max_len, eos_ids, weights, target]
    described = None
    if draft is not None:
        window = _settled(draft.window)
        of_draft = described_weights(window.weights)
        d2t, strengths = contiguous(draft.d2t, draft.strengths)
        kept += [window, of_draft, d2t, draft.text, strengths]
        described = (
            of_draft,
            described_window(window),
            window.weights.head.out_features if draft.vocab is None else draft.vocab,
            int(draft.purpose),
            address(d2t),
            described_text(draft.text),
            described_strengths(strengths),
        )
    rounds = _C.Rounds(
        len(target.tokens),
        described_state(state.tokens, state.committed, state.window, max_len, eos_ids, state.finished, state.status),  # type: ignore[arg-type]
        sampling_params(*columns),  # type: ignore[arg-type]
        RULES[rule],
        weights,
        described_window(target),
        described,
    )
    return rounds, kept


def _settled(window: Window) -> Window:
    """The same, none of which moves."""
    weights = window.weights if window.weights.memory else window.weights.held()
    return window.contiguous()._replace(weights=weights)
