"""Triton compiles every kernel for a GPU. Needs none: the compiler and the assembler come with triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("dtype", "variant"), [("fp32", "full"), ("fp32", "plain"), ("bf16", "full"), ("fp16", "full")]
)
def test_every_kernel_compiles(dtype: str, variant: str, tmp_path: Path) -> None:
    assert len(compiled(dtype, variant, tmp_path).split()) == (13 if dtype == "fp32" else 9)


@pytest.mark.parametrize(
    ("dtype", "variant", "head_dims"), [("bf16", "attention", [128]), ("fp32", "attention-plain", [64, 256])]
)
def test_attention_compiles_for_two_generations_of_gpus(
    dtype: str, variant: str, head_dims: list[int], tmp_path: Path
) -> None:
    assert compiled(dtype, variant, tmp_path).splitlines() == [f"attention {dim}" for dim in head_dims]


def compiled(dtype: str, variant: str, tmp_path: Path) -> str:
    """What was compiled, in a process of its own: this one may interpret Triton."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_triton", dtype, variant],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
