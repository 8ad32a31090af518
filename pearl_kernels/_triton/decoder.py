"""What comes before the layers of a decoder, in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def enter_rows(
    tokens, d2t, embedding, vocab, out, size, seq_lens, lengths, ends, text, text_stride, text_length, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out (batch * width, size) = the embedding's rows of the tokens (batch, width), or of d2t[tokens] if there is one.

    text:    (batch, text_length), where the same ids are written from seq_lens (batch,) on, or None
    lengths: (batch,), how many tokens each row has, or None: all
    ends:    (batch,), that becomes seq_lens + lengths, or None, and then there is neither text nor lengths
    One program for each row.
    """
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    token = tl.load(tokens + row)
    if d2t is not None:
        token = tl.load(d2t + token)
    known = tl.minimum(tl.maximum(token, 0), vocab - 1)
    inside = column < size
    values = tl.load(embedding + known * size + column, mask=inside, other=0.0)
    tl.store(out + row * size + column, values.to(out.dtype.element_ty), mask=inside)
    if ends is not None:
        batch = row // width
        position = tl.load(seq_lens + batch) + row % width
        length = width
        if lengths is not None:
            length = tl.load(lengths + batch)
        tl.store(ends + batch, position + 1, mask=row % width == length - 1)
        if text is not None:
            held = (position >= 0) & (position < text_length)
            tl.store(text + batch * text_stride + position, token, mask=held)
