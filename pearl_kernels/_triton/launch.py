"""How the kernels of `sample`, `verify` and `advance_` are launched: tiles, and logits as kernels take them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
if INTERPRETED and isinstance(tl.sum, triton.JITFunction):
    raise ImportError("TRITON_INTERPRET was set after triton had been imported")
# Elements of a tile, of a row that one program takes, and of the steps in which one walks a whole row. The interpreter
# is quickest with few large ones.
TILE = 1 << 16 if INTERPRETED else 1 << 10
SLICE = 1 << 16 if INTERPRETED else 1 << 12
STEP = 1 << 16 if INTERPRETED else 1 << 11
MOST_ROWS = 16
WARPS = 8
REGISTERS = 64  # of a thread that may draw or filter: what is rare would take so many that one block filled a processor
RESIDUAL_WARPS = 16  # logarithms in float64 take many registers

# What is multiplied and added is rounded once, as it was when the kernels were tested. Triton 3.10 no longer does so by
# itself.
FUSED = {"enable_fp_fusion": True}

# Bits of a float32 below this one are always zero where it was one of these.
LOW_BIT = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 12}


class Tiles(NamedTuple):
    """How many rows, each of another request, a program takes, and in how many slices of which length a row is cut."""

    rows: int
    block: int
    step: int
    slices: int
    slices_block: int  # the next power of two


def tiles_of(vocab: int, batch: int) -> Tiles:
    """The tiles for `batch` requests. What comes out for a row must not depend on batch."""
    block = max(4, min(SLICE, triton.next_power_of_2(vocab)))
    if INTERPRETED:  # which reduces every row by itself
        per_program = min(max(1, TILE // block), triton.next_power_of_2(batch))
    else:  # more rows would spill, and take Triton long to compile
        per_program = max(1, min(MOST_ROWS, TILE // block))
    slices = triton.cdiv(vocab, block)
    return Tiles(per_program, block, min(STEP, block), slices, triton.next_power_of_2(slices))


def view_of(logits: Tensor) -> tuple[Tensor, int, int, int]:
    """Logits as kernels take them: strides of a request and of a row, and the vocabulary."""
    row_stride = 0 if logits.ndim == 2 else logits.stride(1)
    return logits, logits.stride(0), row_stride, logits.shape[-1]
