"""Compiles CUDA sources as C++ against the emulation, once for as long as they and what they include stay the same."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "emulation"

EMULATION = [HERE / "emulation.cpp", HERE / "runtime.cpp"]

_COMPILER = shlex.split(os.environ.get("CXX", "g++"))
_THREADS = 64  # of a block: few, so that small inputs still need several blocks and several slices of a row
# Kernels look at loaded vectors as values of other types, which nvcc allows. Static variables must not be shared by the
# libraries of a process: a test loads several versions of one kernel.
_FLAGS = [
    "-std=c++20", "-O2", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-gnu-unique",
    f"-DPEARL_CUDA_THREADS={_THREADS}",
]  # fmt: skip


def lacking() -> str | None:
    """What there is not, of what CUDA is emulated with; None where nothing lacks."""
    if shutil.which(_COMPILER[0]) is None:
        return "no C++ compiler to emulate CUDA with"
    return None if importlib.util.find_spec("triton") else "no triton, which has CUDA's headers"


def build_library(sources: list[Path]) -> Path:
    """A shared library of CUDA sources and the emulation, for ctypes."""
    return _link([*sources, *EMULATION], [], ROOT / "csrc")


def build_extension(csrc: Path = ROOT / "csrc") -> ModuleType:
    """pearl_kernels._C with every kernel of csrc/**/*.cu emulated, and without the CPU kernels.

    Raises RuntimeError with the compiler's messages if something does not compile.
    """
    import pybind11

    sources = [csrc / "bindings.cpp", HERE / "no_cpu_kernels.cpp", *EMULATION]
    flags = [
        "-DPEARL_WITH_CUDA", '-DPEARL_CUDA_ARCHITECTURES="emulated"', '-DPEARL_VERSION="emulated"',
        f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}",
    ]  # fmt: skip
    path = _link([*sources, *sorted(csrc.rglob("*.cu"))], flags, csrc)
    # The last part of the name is the one the binary's own entry point has; pybind11 keeps one module for each name.
    loader = importlib.machinery.ExtensionFileLoader(f"emulated_{path.stem}._C", str(path))
    spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _link(sources: list[Path], flags: list[str], csrc: Path) -> Path:
    triton = importlib.util.find_spec("triton")
    assert triton is not None, lacking()
    assert triton.origin is not None
    folders = [HERE / "include", csrc]
    flags = [*_FLAGS, *flags, "-isystem", str(Path(triton.origin).parent / "backends" / "nvidia" / "include")]

    def compile_one(source: Path) -> Path:
        # To make a broken kernel fast takes longer than to run it.
        options = [*flags, "-O0"] if source.suffix == ".cu" and csrc != ROOT / "csrc" else flags
        command = [*options, *(f"-I{folder}" for folder in folders), "-c", "-x", "c++", str(source)]
        return _make(f"{source.stem}.o", command, [*options, *_texts(source, folders)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(compile_one, sources)]
    # What the emulation calls cudaMalloc is its own, whatever libraries of CUDA's the process has loaded.
    linked = ["-shared", "-pthread", "-Wl,-Bsymbolic", *objects]
    return _make(f"{sources[0].stem}.so", linked, linked)


def _texts(source: Path, folders: list[Path]) -> list[str]:
    """What is compiled: the source, and all that it includes out of the folders."""
    paths = [source]
    for path in paths:
        names = re.findall(r'#include [<"](.+)[>"]', path.read_text())
        found = [folder / name for name in names for folder in folders]
        paths += [path for path in found if path.is_file() and path not in paths]
    return [path.read_text() for path in paths]


def _make(name: str, arguments: list[str], parts: list[str]) -> Path:
    """Lets the compiler write a file, unless it made one of the same parts before. The second finds a whole file."""
    path = CACHE / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}-{name}"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}{path.suffix}")
    command = [*_COMPILER, *arguments, "-o", str(draft)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
    draft.replace(path)
    return path
