"""The door of `draft_chain`: all steps of a draft, each a decoder's forward and a draw."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pearl_kernels import checks
from pearl_kernels.dispatch import choose
from pearl_kernels.draft_chain.reference import Draws, Found, one_by_one
from pearl_kernels.induction import check_induction
from pearl_kernels.types import Purpose, RowStats, SampleOutput, SamplingTensors
from pearl_kernels.window_decoder import DecoderWeights, Window

__all__ = ["DraftChain", "check_draws", "draft_chain"]


class DraftChain(NamedTuple):
    """What was drawn, and from what.

    drawn:  SampleOutput of (batch, steps); its tokens are target ids
    logits: (batch, steps, outputs of the head) of the type of the decoder's rows, induction included; None in an `out`
            that is not to have them
    All of it lies step by step: transposed it is contiguous.
    """

    drawn: SampleOutput
    logits: Tensor | None


def draft_chain(
    tokens: Tensor,
    weights: DecoderWeights,
    cos: Tensor,
    sin: Tensor,
    k_caches: Tensor,
    v_caches: Tensor,
    seq_lens: Tensor,
    params: SamplingTensors,
    *,
    scale: float,
    steps: int,
    vocab: int | None = None,
    purpose: Purpose = Purpose.DRAFT,
    epochs: Tensor | None = None,
    d2t: Tensor | None = None,
    text: Tensor | None = None,
    strengths: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
    out: DraftChain | None = None,
) -> DraftChain:
    """Draft `steps` tokens after a window: each is drawn from the decoder's last row, and is then the next window.

    Equivalent to, `steps` times:
        logits = window_decoder(tokens, ..., seq_lens, keep=1)[:, 0, :vocab]
        seq_lens += width
        induce_(logits, text, seq_lens, strengths, d2t=d2t), the window's tokens written to the text before
        drawn = sample(logits, params, seq_lens, purpose=purpose, epochs=epochs)
        tokens = d2t[drawn.tokens]

    tokens ... seq_lens, scale: as in `window_decoder`; seq_lens + width + steps - 1 must not exceed the capacity
    params, purpose, epochs:    as in `sample`
    steps:      at least 1
    vocab:      columns of the logits that are drawn from, the first ones; None: all
    d2t:        (vocab,) int64, strictly increasing, the target id of each column; None: they are target ids
    text:       (batch, length) int64, the sequences up to the window, for induction; the window and the drafted tokens
                but for the last are written to it, and must have room there. None: no induction
    strengths:  as in `induce_`, with a text
    lengths:    (batch,) int64, in [1, width], how many of the window's tokens each row has; None: all. What is read of
                the others is written over, or lies past the end of the text
    backend:    None picks the best for the device
    out:        written and returned, instead of new tensors

    Returns DraftChain. On the cpu backend it is one call, with the bits of the operations one by one. On a GPU a step
    is that decoder's launches, one more for `sample`'s few, and one for `induce_`. A row that cannot be drawn from has
    a status, and goes on with column 0.
    Raises ValueError naming the argument, what was expected and what came.
    """
    op = "draft_chain"
    window = Window(tokens, weights, cos, sin, k_caches, v_caches, seq_lens, scale)
    capacity = window.check(op)
    (batch, width), device = tokens.shape, tokens.device
    if width < 1:
        raise ValueError(f"{op}: tokens must be (batch, width) with a width of at least 1, got {tuple(tokens.shape)}")
    if steps < 1:
        raise ValueError(f"{op}: steps must be at least 1, got {steps}")
    checks.params(op, params, batch, device)
    checks.noise(op, purpose, epochs, batch, device)
    vocab = check_draws(op, weights, vocab, d2t, text, strengths, batch, device)
    if checks.readable(seq_lens) and batch:
        checks.in_range(op, "seq_lens", seq_lens, 0, capacity - width - steps + 1)
    if lengths is not None:
        checks.tensor(op, "lengths", lengths, (("batch", batch),), torch.int64, device)
        if checks.readable(lengths) and batch:
            checks.in_range(op, "lengths", lengths, 1, width)
    if text is not None and checks.readable(seq_lens) and batch:
        written = int((seq_lens + (width if lengths is None else lengths)).max()) + steps - 1
        if text.shape[1] < written:
            raise ValueError(
                f"{op}: text must have a length of at least {written} for what is drafted, got {text.shape[1]}"
            )
    draws = Draws(params, steps, vocab, purpose, epochs, d2t, text, strengths, lengths)
    outputs = weights.head.out_features
    found = _new(steps, batch, outputs, weights) if out is None else _of(out, steps, batch, outputs, weights)
    if checks.traced(tokens):
        one_by_one(window, draws, found, backend)
    else:
        choose(op, device, backend)(window.contiguous(), draws, found)
    if out is not None:
        return out
    ids, threshold, lse, status, logits = found
    assert logits is not None
    return DraftChain(SampleOutput(ids.T, RowStats(threshold.T, lse.T), status.T), logits.transpose(0, 1))


def _new(steps: int, batch: int, outputs: int, weights: DecoderWeights) -> Found:
    like = weights.norm.detach()
    ids, status = (like.new_empty(steps, batch, dtype=kind) for kind in (torch.int64, torch.int32))
    threshold, lse = (like.new_empty(steps, batch, dtype=torch.float32) for _ in range(2))
    return Found(ids, threshold, lse, status, like.new_empty(steps, batch, outputs))


def _of(out: DraftChain, steps: int, batch: int, outputs: int, weights: DecoderWeights) -> Found:
    """The tensors of an `out`, which is refused unless they fit."""
    op, sizes, device = "draft_chain", (("steps", steps), ("batch", batch)), weights.norm.device
    if not isinstance(out, DraftChain) or not isinstance(out.drawn, SampleOutput):
        raise ValueError(f"{op}: out must be DraftChain of a SampleOutput, got {type(out).__name__}")
    given: list[Any] = [out.drawn.tokens, *out.drawn.stats, out.drawn.status, out.logits]
    found = Found(*(each.transpose(0, 1) if getattr(each, "ndim", 0) > 1 else each for each in given))
    checks.updatable(op, "out.drawn.tokens, transposed,", found.ids, sizes, torch.int64, device)
    checks.updatable(op, "out.drawn.stats.threshold, transposed,", found.threshold, sizes, torch.float32, device)
    checks.updatable(op, "out.drawn.stats.lse, transposed,", found.lse, sizes, torch.float32, device)
    checks.updatable(op, "out.drawn.status, transposed,", found.status, sizes, torch.int32, device)
    if found.logits is not None:
        of_logits = (*sizes, ("outputs", outputs))
        checks.updatable(op, "out.logits, transposed,", found.logits, of_logits, weights.dtype, device)
    return found


def check_draws(
    op: str,
    weights: DecoderWeights,
    vocab: int | None,
    d2t: Tensor | None,
    text: Tensor | None,
    strengths: Tensor | None,
    batch: int,
    device: torch.device,
) -> int:
    """Refuse arguments of `draft_chain` that do not go with each other. Returns the columns that are drawn from."""
    outputs = weights.head.out_features
    vocab = outputs if vocab is None else vocab
    if not 1 <= vocab <= outputs:
        raise ValueError(f"{op}: vocab must be from 1 to the head's {outputs} outputs, got {vocab}")
    if (text is None) != (strengths is None):
        raise ValueError(f"{op}: text and strengths must be given together, got one of them")
    if text is not None:
        check_induction(op, "text", text, strengths, d2t, batch, vocab, device)
    elif d2t is not None:
        checks.tensor(op, "d2t", d2t, (("vocab", vocab),), torch.int64, device)
    return vocab
