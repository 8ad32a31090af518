"""Compiles every Triton kernel to a binary for GPUs, on any machine, and prints their names.

`python -m tests.kernels.compile_triton bf16 full sm_90 [KERNEL,...]`, in a process that does not interpret Triton.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from pearl_kernels._triton import chain
from pearl_kernels._triton.attention import attend_parts, join_parts
from pearl_kernels._triton.chains import judge_rows
from pearl_kernels._triton.decoder import enter_rows
from pearl_kernels._triton.launch import FUSED, REGISTERS, RESIDUAL_WARPS, WARPS, tiles_of
from pearl_kernels._triton.layer import gate_rows, norm_rows, place_heads
from pearl_kernels._triton.residuals import draw_residuals, sum_masses
from pearl_kernels.window_attention._triton import MOST_PARTS, joined_at_once, launch_of
from pearl_kernels.window_layer._triton import GATE_BLOCK
from pearl_kernels.window_norm._triton import warps_of

sample_rows = importlib.import_module("pearl_kernels.sample._triton").sample_rows
induction = importlib.import_module("pearl_kernels.induction._triton")

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "sm_80": GPUTarget("cuda", 80, 32)}
SHARED_BYTES = 99 << 10  # of a block on the smallest of today's GPUs
STACK_BYTES = 32  # a few numbers; of a tile that is too large it is hundreds
TILES = tiles_of(151936, 1)
LOW_BITS = {"fp32": 0, "bf16": 16, "fp16": 12}

POINTERS = {
    "*i32": "lengths finished top_k row_counters request_counters counters best_ids winners statuses own own_ids "
    "left_ids draft_statuses columns purposes bits usable_lengths num_accepted_out status_out num_emitted_out",
    "*fp32": "temperature top_p min_p maxima sums threshold_out lse_out thresholds lses draft_thresholds draft_lses",
    "*fp64": "scores own_scores left_scores masses weights prefix_weights",
    "*i64": "seeds positions epochs tokens starts next_out max_len eos_ids d2t",
}
TYPES = {name: kind for kind, names in POINTERS.items() for name in names.split()}
# What may be None, and is in a plain call: of a draft with its statistics or with no probabilities, of no DecodeState.
STATE = {"finished", "max_len", "eos_ids", "num_emitted_out"}
DRAFT = {"draft", "draft_thresholds", "draft_lses"}
CERTAIN = DRAFT | {"d2t", "draft_statuses"}
NOT_PLAIN = STATE | {"epochs", "d2t", "draft_statuses"}
LAST = {"WIDTH": 8, "EOS_BLOCK": 2, "STEPS": 17}

# Of each kernel: what it is called, its constants, and the arguments that are None besides those of its variant.
RULES: list[tuple[str, dict[str, int], set[str]]] = [
    ("greedy", {"RULE": chain.GREEDY.value, "DRAWS": False, "SIDES": 1}, CERTAIN),
    ("coupled", {"RULE": chain.COUPLED.value, "DRAWS": True, "SIDES": 1}, CERTAIN),
    ("token", {"RULE": chain.TOKEN.value, "DRAWS": False, "SIDES": 1}, {"draft_statuses"}),
    ("token one-hot", {"RULE": chain.TOKEN.value, "DRAWS": True, "SIDES": 1}, CERTAIN),
    ("token both sides", {"RULE": chain.TOKEN.value, "DRAWS": False, "SIDES": 2}, set()),
    ("block", {"RULE": chain.BLOCK_RULE.value, "DRAWS": False, "SIDES": 1}, {"draft_statuses"}),
    ("block one-hot", {"RULE": chain.BLOCK_RULE.value, "DRAWS": True, "SIDES": 1}, CERTAIN),
]
KERNELS: list[tuple[Any, str, dict[str, int], set[str]]] = [
    (sample_rows, "sample", {}, set()),
    *((judge_rows, name, {**constants, **LAST}, none) for name, constants, none in RULES),
    (sum_masses, "masses", LAST, set()),
    (draw_residuals, "residuals", LAST, set()),
]
NAMES = tuple(name for _, name, _, _ in KERNELS)


def compile_kernel(
    kernel: Any, name: str, dtype: str, constants: dict[str, int], none: set[str], chip: str, *, plain: bool
) -> None:
    """plain: without what is optional, and with every size 1, which Triton makes a constant of."""
    given: dict[str, int | None] = {
        "REQUESTS": TILES.rows,
        "BLOCK": TILES.block,
        "STEP": TILES.step,
        "SLICES": TILES.slices_block,
        "LOW_BIT": LOW_BITS[dtype],
        "DRAFT_LOW_BIT": LOW_BITS[dtype],
        **constants,
        **dict.fromkeys(none | (NOT_PLAIN if plain else {"next_out"})),
    }
    signature: dict[str, str] = {}
    values: dict[tuple[int], int | None] = {}
    for i, argument in enumerate(kernel.arg_names):
        is_size = argument not in TYPES and argument not in ("logits", "draft")
        if argument in given:
            signature[argument], values[i,] = "constexpr", given[argument]
        elif plain and is_size:
            signature[argument], values[i,] = "constexpr", 1
        elif is_size:
            signature[argument] = "i64" if argument.endswith("stride") else "i32"
        else:
            signature[argument] = TYPES.get(argument, f"*{dtype}")
    options: dict[str, int] = {"num_warps": WARPS, **FUSED}
    if kernel in (sum_masses, draw_residuals):
        options["num_warps"] = RESIDUAL_WARPS
    elif name != "greedy":
        options["maxnreg"] = REGISTERS
    source = ASTSource(kernel, signature, values, aligned(signature))
    compiled = compile(source, target=TARGETS[chip], options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_BYTES, (name, chip, compiled.metadata.shared)
    check_order(name, compiled.asm["ptx"])
    print(name)


def aligned(signature: dict[str, str]) -> dict[tuple[int], list[list[str | int]]]:
    """As calls nearly always have it: memory and strides that can be read 16 bytes at a time, or copied beside work."""
    sizes = ("stride", "vocab", "head_dim", "length")
    return {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind != "constexpr" and (kind.startswith("*") or name.endswith(sizes))
    }


def check_order(name: str, ptx: str) -> None:
    """Programs tell each other things by atomics that order memory for the whole device, each right after a barrier."""
    lines = [line.split() for line in ptx.splitlines()]
    memory = [words for words in lines if any(word.startswith(("bar.", "atom.", "st.", "ld.global")) for word in words)]
    atomics = [i for i, words in enumerate(memory) if any(word.startswith("atom.") for word in words)]
    assert atomics, name
    for i in atomics:
        assert any(word.startswith("atom.global.gpu.acq_rel.add") for word in memory[i]), (name, memory[i])
        assert memory[i - 1][0] == "bar.sync", (name, memory[i - 1])


def compile_attention(dtype: str, *, plain: bool) -> None:
    """plain: one query of a model with neither window nor softcap nor anything to append."""
    precise = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for head_dim in (64, 256) if plain else (128, 512):
        tile = launch_of(16 if plain else 64, head_dim, precise)
        constants = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": tile.block_d, "BLOCK_NEW": 32}
        constants["PARTS"] = joined_at_once(MOST_PARTS, tile.block_d)
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
            for target in TARGETS.values():
                options = {"num_warps": tile.warps, "num_stages": tile.stages, **FUSED}
                source = ASTSource(kernel, signature, values, aligned(signature))
                compiled = compile(source, target=target, options=options)
                assert compiled.metadata.shared <= SHARED_BYTES, (head_dim, target, compiled.metadata.shared)
                assert stack_bytes(compiled.asm["cubin"]) <= STACK_BYTES, (kernel.__name__, head_dim, tile, target)
        print("attention", head_dim)


def compile_induction(dtype: str, *, plain: bool) -> None:
    """plain: of a draft with all ids."""
    constants = {"MOST": 8, "BLOCK": induction.BLOCK, **({"d2t": None} if plain else {})}
    pointers = {"logits": f"*{dtype}", "strengths": "*fp32", "d2t": "*i64", "tokens": "*i64", "lengths": "*i64"}
    signature: dict[str, str] = {}
    values: dict[tuple[int], Any] = {}
    for i, name in enumerate(induction.induce_rows.arg_names):
        if name in constants:
            signature[name], values[i,] = "constexpr", constants[name]
        else:
            signature[name] = pointers.get(name, "i64" if name.endswith("stride") else "i32")
    for target in TARGETS.values():
        source = ASTSource(induction.induce_rows, signature, values, aligned(signature))
        compiled = compile(source, target=target, options={"num_warps": induction.WARPS, **FUSED})
        assert stack_bytes(compiled.asm["cubin"]) == 0, target
    print("induction")


def compile_layer(dtype: str, *, plain: bool) -> None:
    """plain: no norms of queries and keys, rows that are not copied, angles of all positions, a decoder alone."""
    none = {"q_norm", "k_norm", "copy", "angles_batch_stride", "d2t", "lengths", "ends", "text"} if plain else set()
    kernels: list[tuple[Any, dict[str, int], int]] = [
        (norm_rows, {"BLOCK": 8192}, warps_of(8192)),
        (place_heads, {"HALF": 64}, 1),
        (gate_rows, {"BLOCK": GATE_BLOCK}, 4),
        (enter_rows, {"BLOCK": 4096}, warps_of(4096)),
    ]
    sizes = {"size", "inner", "width", "heads", "kv_heads", "head_dim", "capacity", "positions", "vocab", "text_length"}
    others = {"eps": "fp32", "offset": "fp32"}
    others |= dict.fromkeys(("tokens", "d2t", "text", "seq_lens", "lengths", "starts", "ends"), "*i64")
    for kernel, constants, warps in kernels:
        signature: dict[str, str] = {}
        values: dict[tuple[int], Any] = {}
        for i, name in enumerate(kernel.arg_names):
            if name in constants or name in none:
                signature[name], values[i,] = "constexpr", constants.get(name)
            elif name in sizes or name.endswith("stride"):
                signature[name] = "i64" if name.endswith("stride") else "i32"
            else:
                signature[name] = others.get(name, f"*{dtype}")
        for target in TARGETS.values():
            source = ASTSource(kernel, signature, values, aligned(signature))
            compiled = compile(source, target=target, options={"num_warps": warps, **FUSED})
            assert stack_bytes(compiled.asm["cubin"]) == 0, (kernel.__name__, target)
    print("layer")


def stack_bytes(cubin: bytes) -> int:
    """Of each thread: what does not fit into registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(int(count) for count in re.findall(r"STACK:(\d+)", report))


def main(dtype: str, variant: str, chip: str = "", names: str = "") -> None:
    if variant.startswith("attention"):
        compile_attention(dtype, plain=variant == "attention-plain")
        return
    if variant.startswith("induction"):
        compile_induction(dtype, plain=variant == "induction-plain")
        return
    if variant.startswith("layer"):
        compile_layer(dtype, plain=variant == "layer-plain")
        return
    for kernel, name, constants, none in KERNELS:
        if name in (names.split(",") if names else NAMES):
            compile_kernel(kernel, name, dtype, constants, none, chip, plain=variant == "plain")


if __name__ == "__main__":
    main(*sys.argv[1:])
