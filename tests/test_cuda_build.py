"""nvcc compiles every kernel for the chips that are shipped for, with all it works on in registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
SOURCES = sorted(CSRC.rglob("*.cu"))
CHIPS = ("sm_80", "sm_90a")

_FUNCTION = re.compile(r"Function properties for (\S+)")
_USED = re.compile(r"Used (\d+) registers, .*?(\d+) bytes smem")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


class Resources(NamedTuple):
    """What the assembler says of one kernel, or of a function that it did not put into one: bytes of local memory."""

    stack_frame: int
    spill_stores: int
    spill_loads: int


def resources(report: str) -> dict[str, Resources]:
    """Every function in a report of `ptxas -v`, by its mangled name."""
    found: dict[str, Resources] = {}
    name = ""
    for line in report.splitlines():
        if match := _FUNCTION.search(line):
            name = match[1]
        elif match := _MEMORY.search(line):
            found[name] = Resources(*map(int, match.groups()))
    return found


def compiler() -> str | None:
    """nvcc as CMake looks for it: CUDACXX, PATH, and where it usually is."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def readable(name: str) -> str:
    """A mangled name as in the source, if this machine has the program that tells it."""
    program = shutil.which("c++filt")
    if program is None:
        return name
    return subprocess.run([program, name], capture_output=True, text=True, check=True).stdout.strip()


class Compiled(NamedTuple):
    """report: of `ptxas -v`; ptx: what it was given."""

    report: str
    ptx: str


def compiled(nvcc: str, source: Path, chip: str, out_dir: Path) -> Compiled:
    """A source for a chip, or AssertionError with what the compiler prints if it does not compile."""
    kept = out_dir / f"{source.stem}-{chip}"
    kept.mkdir()
    done = subprocess.run(
        [nvcc, "-std=c++17", "-O3", f"-I{CSRC}", f"-arch={chip}", "-Xptxas", "-v", "-cubin", str(source),
         "--keep", "--keep-dir", str(kept), "-o", str(kept / "kernels.cubin")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{source.name} for {chip}:\n{done.stderr[-3000:]}"
    return Compiled(done.stderr, (kept / f"{source.stem}.ptx").read_text())


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Compiled]:
    """Every source for every chip, compiled side by side."""
    nvcc = compiler()
    if nvcc is None:
        pytest.skip("no nvcc found")
    out_dir = tmp_path_factory.mktemp("cubins")
    jobs = [(source, chip) for source in SOURCES for chip in CHIPS]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(lambda job: compiled(nvcc, *job, out_dir), jobs)
        return {(source.name, chip): kernel for (source, chip), kernel in zip(jobs, found, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_kernels_keep_everything_in_registers(
    source: Path, chip: str, kernels: dict[tuple[str, str], Compiled]
) -> None:
    found = resources(kernels[source.name, chip].report)
    assert len(found) >= source.read_text().count("__global__"), f"{source.name} holds kernels that {found} lacks"
    spilling = [f"{readable(name)}: {memory}" for name, memory in found.items() if any(memory)]
    assert not spilling, f"{source.name} for {chip}:\n" + "\n".join(spilling)


def used(report: str) -> dict[str, tuple[int, int]]:
    """Registers of a thread and bytes of shared memory, of every kernel in a report of `ptxas -v`."""
    found: dict[str, tuple[int, int]] = {}
    name = ""
    for line in report.splitlines():
        if match := _FUNCTION.search(line):
            name = match[1]
        elif match := _USED.search(line):
            found[name] = int(match[1]), int(match[2])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["rows_kernel", "in_turn_kernel"])
def test_kernels_of_rule_greedy_hold_nothing_that_other_rules_need(
    name: str, chip: str, kernels: dict[tuple[str, str], Compiled]
) -> None:
    """A multiprocessor then holds more of their blocks: kGreedyBlocksHeld of csrc/common/cuda/launch.cuh."""
    found = used(kernels["chain_cuda.cu", chip].report)
    (greedy,) = (each for kernel, each in found.items() if f"{name}ILb1E" in kernel)
    (other,) = (each for kernel, each in found.items() if f"{name}ILb0E" in kernel)
    assert greedy[0] <= 64 < other[0]
    assert greedy[1] <= 8 << 10 < other[1]


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "overlaps"), [("sm_80", False), ("sm_90a", True)])
def test_kernels_wait_for_the_one_before_where_they_may_begin_early(
    chip: str, overlaps: bool, kernels: dict[tuple[str, str], Compiled]
) -> None:
    """All of them do: of a chain of three, the last waits for the first by way of the second."""
    begun = {source.name: kernels[source.name, chip].ptx.count(".entry") for source in SOURCES}
    waiting = {source.name: kernels[source.name, chip].ptx.count("griddepcontrol.wait") for source in SOURCES}
    assert sum(begun.values()) > 0
    assert waiting == (begun if overlaps else dict.fromkeys(begun, 0))


def test_sources_are_found() -> None:
    assert {path.stem for path in SOURCES} >= {"sample_cuda", "chain_cuda"}


def test_a_report_is_read() -> None:
    text = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1fv' for 'sm_80'
ptxas info    : Function properties for _Z1fv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function '_Z1gi' for 'sm_80'
ptxas info    : Function properties for _Z1gi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
    assert used(text) == {"_Z1fv": (255, 1024)}
    assert resources(text) == {"_Z1fv": Resources(16, 8, 12), "_Z1gi": Resources(0, 0, 0)}
