"""The vector functions of every SIMD level: here, and on ARM where a cross compiler and an emulator are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pearl_kernels import _C
from tests.conftest import REPOSITORY
from tests.kernels.levels import LEVELS, OPTIONS

PROGRAM = Path(__file__).parent / "simd_vocabulary.cpp"
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def run_checks(folder: Path, command: list[str], emulator: list[str]) -> None:
    program = str(folder / "simd_vocabulary")
    sources = [f"-I{REPOSITORY / 'csrc'}", "-DPEARL_SIMD=level", str(PROGRAM)]
    subprocess.run([*command, *OPTIONS, *sources, "-o", program], check=True)
    run = subprocess.run([*emulator, program], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_every_function_means_the_same_at_every_level(tmp_path, level):
    if list(LEVELS).index(level) > list(LEVELS).index(_C.build_info()["simd_level"]):
        pytest.skip(f"{level} does not run here")
    run_checks(tmp_path, ["c++", *LEVELS[level].split()], [])


@pytest.mark.skipif(
    not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)), reason=f"{ARM_COMPILER}, {ARM_EMULATOR} needed"
)
def test_every_function_means_the_same_on_arm(tmp_path):
    run_checks(tmp_path, [ARM_COMPILER, "-static"], [ARM_EMULATOR])
