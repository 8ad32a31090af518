"""Compiles every Triton kernel to a binary for a GPU, on any machine, and prints their names.

`python -m tests.kernels.compile_triton fp32 full`, in a process that does not interpret Triton.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from pearl_kernels._triton import block, chain, race, rows
from pearl_kernels._triton.attention import attend_parts, join_parts
from pearl_kernels._triton.launch import WARPS, tiles_of
from pearl_kernels.window_attention._triton import launch_of

TARGET = GPUTarget("cuda", 90, 32)
ATTENTION_TARGETS = (TARGET, GPUTarget("cuda", 80, 32))
SHARED_BYTES = 99 << 10  # of a block on the smallest of today's GPUs
TILES = tiles_of(151936, 1)
LOW_BITS = {"fp32": 0, "bf16": 16, "fp16": 12}

POINTERS = {
    "*i32": "lengths finished top_k best_ids best_out status_out best statuses own_ids left_ids draft_ids "
    "draft_statuses columns purposes num_accepted_out usable_lengths cut_statuses window status verdict_accepted "
    "verdict_status num_emitted_out",
    "*fp32": "temperature top_p min_p maxima sums threshold_out lse_out thresholds lses draft_thresholds draft_lses",
    "*fp64": "own_scores left_scores weights prefix_weights target_probs leftovers",
    "*i64": "seeds positions epochs tokens starts next_out next_tokens verdict_next excluded committed max_len eos_ids",
}
TYPES = {name: kind for kind, names in POINTERS.items() for name in names.split()}
# What may be None, and is in a plain call: greedy, of a draft without probabilities, outside a DecodeState.
OPTIONAL = {
    *("lengths", "finished", "epochs", "sums", "own_scores", "own_ids", "leftovers", "columns"),
    *("draft", "draft_ids", "draft_thresholds", "draft_lses", "draft_statuses"),
}
TILE = {"ROWS": TILES.rows, "BLOCK": TILES.block}
REQUESTS = {"REQUESTS": 1, "SLICES": TILES.slices_block}

# Of each kernel: its constants, and the optional arguments it cannot do without.
BY_DTYPE: list[tuple[Any, dict[str, int], str]] = [
    (rows.describe_slices, TILE, ""),
    (rows.describe_rows, {**TILE, "SLICES": TILES.slices_block}, ""),
    (race.race_rows, TILE, "own_scores own_ids"),
    (race.race_corrections, TILE, "columns own_scores own_ids"),
    (chain.judge_prefix, {**REQUESTS, "RULE": chain.EQUALS_ARGMAX.value}, ""),
    (chain.judge_prefix, {**REQUESTS, "RULE": chain.EQUALS_DRAW.value}, "own_scores own_ids"),
    (chain.judge_prefix, {**REQUESTS, "RULE": chain.RATIO.value}, "columns"),
    (block.weigh_prefixes, {"REQUESTS": 1}, ""),
    (block.sum_leftovers, TILE, "leftovers draft draft_thresholds draft_lses"),
]
FOR_ALL_DTYPES: list[tuple[Any, dict[str, int], str]] = [
    (block.judge_blocks, REQUESTS, "columns"),
    (chain.write_corrected, REQUESTS, "columns own_scores own_ids"),
    (importlib.import_module("pearl_kernels.sample._triton").crown, {"ROWS": 1, "SLICES": 128}, "own_scores own_ids"),
    (importlib.import_module("pearl_kernels.advance._triton").commit, {**REQUESTS, "EOS_BLOCK": 2}, "finished"),
]


def compile_kernel(kernel: Any, dtype: str, constants: dict[str, int], needed: str, *, plain: bool) -> None:
    """plain: without what is optional, and with every size 1, which Triton makes a constant of."""
    signature: dict[str, str] = {}
    values: dict[tuple[int], int | None] = {}
    for i, name in enumerate(kernel.arg_names):
        is_size = name not in TYPES and name not in ("logits", "draft")
        if name in constants:
            signature[name], values[i,] = "constexpr", constants[name]
        elif plain and name in OPTIONAL and name not in needed.split():
            signature[name], values[i,] = "constexpr", None
        elif plain and is_size:
            signature[name], values[i,] = "constexpr", 1
        elif is_size:
            signature[name] = "i64" if name.endswith("stride") else "i32"
        else:
            signature[name] = TYPES.get(name, f"*{dtype}")
    source = ASTSource(kernel, signature, values)
    assert compile(source, target=TARGET, options={"num_warps": WARPS}).asm["cubin"]
    print(kernel.__name__)


def compile_attention(dtype: str, *, plain: bool) -> None:
    """plain: one query of a model with neither window nor softcap nor anything to append."""
    precise = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for head_dim in (64, 256) if plain else (128,):
        tile = launch_of(16 if plain else 64, head_dim, precise)
        constants = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": tile.block_d, "BLOCK_NEW": 32}
        for kernel in (attend_parts, join_parts):
            signature: dict[str, str] = {}
            values: dict[tuple[int], Any] = {}
            for i, name in enumerate(kernel.arg_names):
                if name in constants or name == "PRECISION":
                    signature[name] = "constexpr"
                    values[i,] = constants.get(name, "ieee" if dtype == "fp32" else "tf32")
                elif plain and name in ("k_new", "v_new", "window", "softcap"):
                    signature[name], values[i,] = "constexpr", None
                elif name in ("part_best", "part_total", "part_sums"):
                    signature[name] = "*fp32"
                elif name in ("q", "k_cache", "v_cache", "k_new", "v_new", "out"):
                    signature[name] = f"*{dtype}"
                elif name in ("scale", "softcap"):
                    signature[name] = "fp32"
                elif name == "seq_lens":
                    signature[name] = "*i64"
                else:
                    signature[name] = "i64" if name.endswith("stride") else "i32"
            for target in ATTENTION_TARGETS:
                options = {"num_warps": tile.warps, "num_stages": tile.stages}
                compiled = compile(ASTSource(kernel, signature, values), target=target, options=options)
                assert compiled.metadata.shared <= SHARED_BYTES, (head_dim, target, compiled.metadata.shared)
        print("attention", head_dim)


def main(dtype: str, variant: str) -> None:
    if variant.startswith("attention"):
        compile_attention(dtype, plain=variant == "attention-plain")
        return
    for kernel, constants, needed in BY_DTYPE + (FOR_ALL_DTYPES if dtype == "fp32" else []):
        own = {**constants, "LOW_BIT": LOW_BITS[dtype]} if "LOW_BIT" in kernel.arg_names else constants
        compile_kernel(kernel, dtype, own, needed, plain=variant == "plain")


if __name__ == "__main__":
    main(*sys.argv[1:])
