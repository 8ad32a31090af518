"""window_linear by tiles of bfloat16, AMX: its instructions described in C++, and a processor that has them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pearl_kernels import _C
from tests.conftest import REPOSITORY
from tests.kernels.levels import LEVELS, OPTIONS

FOLDER = Path(__file__).parent
SOURCES = REPOSITORY / "csrc"
PARTS = ["window_linear/window_linear_cpu", "common/parallel", "common/scratch", "common/openmp"]

pytestmark = pytest.mark.skipif("amx" not in _C.build_info()["simd_levels"], reason="no tiles in this build")


def run_checks(folder: Path, options: list[str]) -> str:
    """What the program prints of its results."""
    program = str(folder / "tiles")
    sources = [str(FOLDER / "tiles.cpp"), *(str(SOURCES / f"{part}.cpp") for part in PARTS)]
    command = ["c++", *OPTIONS, "-O1", *options, f"-I{SOURCES}", "-DPEARL_SIMD=level", *sources, "-ldl", "-pthread"]
    subprocess.run([*command, "-o", program], check=True)
    run = subprocess.run([program], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def described(tmp_path_factory) -> str:
    return run_checks(tmp_path_factory.mktemp("described"), ["-include", str(FOLDER / "emulated_tiles.h")])


def test_tiles_as_described_are_the_product_whatever_the_shape(described):
    assert len(described.split()) == 1


def test_the_processor_has_the_same_bits(tmp_path, described):
    if _C.build_info()["simd_level"] != "amx":
        pytest.skip("amx does not run here")
    assert run_checks(tmp_path, [*LEVELS["amx"].split(), "-DPEARL_ASKS_FOR_TILES"]) == described
