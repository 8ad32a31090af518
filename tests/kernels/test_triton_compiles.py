"""Triton compiles every kernel for a GPU. Needs none: the compiler and the assembler come with triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parent.parent.parent


# What is compiled for one type and chip nearly is what is for the others: each once, and what is particular again.
@pytest.mark.parametrize(
    ("dtype", "variant", "chip", "kernels"),
    [
        ("bf16", "full", "sm_90", "greedy,coupled,token one-hot,token both sides,block,block one-hot,masses,residuals"),
        ("bf16", "full", "sm_80", "sample,greedy,token both sides,masses,residuals"),
        ("fp32", "plain", "sm_90", "sample,token"),
        ("fp16", "plain", "sm_80", "greedy,residuals"),
    ],
)
def test_every_kernel_compiles(dtype: str, variant: str, chip: str, kernels: str, tmp_path: Path) -> None:
    assert compiled(tmp_path, dtype, variant, chip, kernels).splitlines() == kernels.split(",")


@pytest.mark.parametrize(
    ("dtype", "variant", "head_dims"), [("bf16", "attention", [128, 512]), ("fp32", "attention-plain", [64, 256])]
)
def test_attention_compiles_for_two_generations_of_gpus(
    dtype: str, variant: str, head_dims: list[int], tmp_path: Path
) -> None:
    assert compiled(tmp_path, dtype, variant).splitlines() == [f"attention {dim}" for dim in head_dims]


@pytest.mark.parametrize(("dtype", "variant"), [("bf16", "induction"), ("fp16", "induction-plain")])
def test_induction_compiles_for_two_generations_of_gpus(dtype: str, variant: str, tmp_path: Path) -> None:
    assert compiled(tmp_path, dtype, variant).splitlines() == ["induction"]


@pytest.mark.parametrize(("dtype", "variant"), [("bf16", "layer"), ("fp32", "layer-plain")])
def test_a_layer_compiles_for_two_generations_of_gpus(dtype: str, variant: str, tmp_path: Path) -> None:
    assert compiled(tmp_path, dtype, variant).splitlines() == ["layer"]


def compiled(tmp_path: Path, *arguments: str) -> str:
    """What was compiled, in a process of its own: this one may interpret Triton."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_triton", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
