"""`draft_chain` on a GPU: a step is a decoder's forward, and two launches or three."""

from __future__ import annotations

import torch

from pearl_kernels.dispatch import contiguous
from pearl_kernels.draft_chain.reference import Draws, Found
from pearl_kernels.induction import induce_
from pearl_kernels.sample import sample
from pearl_kernels.types import RowStats, SampleOutput
from pearl_kernels.window_decoder import Window
from pearl_kernels.window_decoder._triton import decode, enter


@torch.no_grad()
def draft_chain(window: Window, draws: Draws, found: Found) -> None:
    """`pearl_kernels.draft_chain`: nothing but the launches of its operations, of d2t one for all steps, and of
    lengths two.
    """
    params, steps, vocab, purpose, epochs, d2t, text, strengths, lengths = draws
    epochs, d2t, lengths = contiguous(epochs, d2t, lengths)
    columns = found.ids if d2t is None else torch.empty_like(found.ids)
    ends = torch.empty_like(found.ids)
    one_row = window.cos.new_empty(len(window.tokens), window.weights.head.out_features)
    for step in range(steps):
        x = enter(window, d2t=d2t if step else None, lengths=lengths, ends=ends[step], text=text)
        logits = one_row if found.logits is None else found.logits[step]
        decode(x, window, 1, logits, lengths)
        rows = logits[:, :vocab]
        if text is not None and strengths is not None:
            induce_(rows, text, ends[step], strengths, d2t=d2t)
        out = SampleOutput(columns[step], RowStats(found.threshold[step], found.lse[step]), found.status[step])
        sample(rows, params, ends[step], purpose=purpose, epochs=epochs, out=out)
        window, lengths = window._replace(tokens=columns[step, :, None], seq_lens=ends[step]), None
    if d2t is not None:
        torch.index_select(d2t, 0, columns.view(-1), out=found.ids.view(-1))
