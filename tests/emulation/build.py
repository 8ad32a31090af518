"""Compiles CUDA sources as C++ against the emulation, once for as long as they stay the same."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
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

_THREADS = 64  # of a block: few, so that small inputs still need several blocks and several slices of a row
# Kernels look at loaded vectors as values of other types, which nvcc allows. Static variables must not be shared by the
# libraries of a process: a test loads several versions of one kernel.
_FLAGS = [
    "-std=c++20", "-O2", "-fPIC", "-fvisibility=default", "-ffp-contract=off", "-Wall", "-Wextra",
    "-fno-strict-aliasing", "-Wno-unknown-pragmas", f"-I{HERE / 'include'}",
    f"-DPEARL_CUDA_THREADS={_THREADS}", "-fno-gnu-unique",
]  # fmt: skip


def build_library(sources: list[Path], out_dir: Path = CACHE) -> Path:
    """A shared library of CUDA sources and the emulation, for ctypes."""
    return _link([*sources, *EMULATION], [], ROOT / "csrc", out_dir)


def build_extension(out_dir: Path = CACHE, csrc: Path = ROOT / "csrc") -> ModuleType:
    """pearl_kernels._C with every kernel of csrc/**/*.cu emulated, and without the CPU kernels.

    Raises RuntimeError with the compiler's messages if something does not compile.
    """
    import pybind11

    sources = [csrc / "bindings.cpp", HERE / "no_cpu_kernels.cpp", *EMULATION]
    flags = [
        "-DPEARL_WITH_CUDA", '-DPEARL_CUDA_ARCHITECTURES="emulated"', '-DPEARL_VERSION="emulated"',
        f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}",
    ]  # fmt: skip
    path = _link([*sources, *sorted(csrc.rglob("*.cu"))], flags, csrc, out_dir)
    # The last part of the name is the one the binary's own entry point has; pybind11 keeps one module for each name.
    loader = importlib.machinery.ExtensionFileLoader(f"emulated_{path.stem}._C", str(path))
    spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def lacking() -> str | None:
    """What there is not, of what CUDA is emulated with; None where nothing lacks."""
    if shutil.which(shlex.split(os.environ.get("CXX", "g++"))[0]) is None:
        return "no C++ compiler to emulate CUDA with"
    return None if importlib.util.find_spec("triton") else "no triton, which has CUDA's headers"


def _link(sources: list[Path], flags: list[str], csrc: Path, out_dir: Path) -> Path:
    out_dir.mkdir(parents=True, exist_ok=True)
    triton = importlib.util.find_spec("triton")
    assert triton is not None, lacking()
    assert triton.origin is not None
    flags = [*flags, "-isystem", str(Path(triton.origin).parent / "backends" / "nvidia" / "include")]
    headers = [path for folder in (HERE / "include", csrc) for path in folder.rglob("*.*h")]
    headers += csrc.rglob("*.h")
    shared = _digest(*(path.read_bytes() for path in sorted(set(headers))))

    def compile_one(source: Path) -> Path:
        name = f"{source.stem}-{_digest(shared, source.read_bytes(), repr(_FLAGS + flags).encode()).hex()[:16]}.o"
        return _make(out_dir / name, [*_FLAGS, f"-I{csrc}", *flags, "-c", "-x", "c++", str(source)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    name = f"{sources[0].stem}-{_digest(*(str(path).encode() for path in objects)).hex()[:16]}.so"
    return _make(out_dir / name, ["-shared", "-pthread", *map(str, objects)])


def _make(path: Path, arguments: list[str]) -> Path:
    """Lets the compiler write `path`, unless it is there. Whoever is second finds a whole file."""
    if path.exists():
        return path
    draft = path.with_suffix(f".{os.getpid()}{path.suffix}")
    command = [*shlex.split(os.environ.get("CXX", "g++")), *arguments, "-o", str(draft)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
    draft.replace(path)
    return path


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
