"""Examines the installation: versions, hardware, backends and the model cache, each in words."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from pathlib import Path

from pearl_decode.builtin import BUILTIN_TARGET, builtin_state

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PACKAGES = ("pearl-kernels", "torch", "transformers", "tokenizers", "safetensors", "numpy", "gguf")


def examine() -> dict[str, dict[str, str]]:
    """Findings by section; every value is a sentence or a version, fit to be pasted into a report."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "extension": _extension(),
        "backends": _backends(),
        "built-in model": _model(),
    }


def _versions() -> dict[str, str]:
    import torch

    found = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    # By its own word: the metadata of its CUDA builds does not say which CUDA.
    return found | {"torch": str(torch.__version__)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, str]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": f"{usable} usable of {os.cpu_count()}",
        "huge pages": _huge_pages(),
        "gpu": _gpus(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _huge_pages() -> str:
    try:
        settings = HUGE_PAGES.read_text(encoding="utf-8")
    except OSError:
        return "none: this system has no transparent huge pages"
    setting = settings.partition("[")[2].partition("]")[0]
    if setting in ("always", "madvise"):
        return f"yes: {setting}"
    return f"none: {HUGE_PAGES} says {setting}; with madvise decoding on a CPU is faster"


def _gpus() -> str:
    import torch

    if torch.version.cuda is None:
        return f"none usable: torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"none found by torch {torch.__version__} (CUDA {torch.version.cuda})"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _extension() -> dict[str, str]:
    try:
        info = importlib.import_module("pearl_kernels._C").build_info()
    except ImportError as error:
        return {"state": f"missing: {error}"}
    except RuntimeError as error:  # of a PEARL_SIMD that does not run here
        return {"state": f"unusable: {error}"}
    found = {str(name).replace("_", " "): _words(value) for name, value in info.items()}
    if not info["cuda"]:
        found["cuda"] = "no: there was no nvcc when it was built, or PEARL_CUDA=0 was set"
    return found


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value) or "-"


def _backends() -> dict[str, str]:
    import pearl_kernels

    return {
        name: f"{'yes' if backend.available else 'no '}  {backend.reason}"
        for name, backend in pearl_kernels.backends().items()
    }


def _model() -> dict[str, str]:
    state = builtin_state()
    ready = f"ready, {state.size_bytes / 1e6:.0f} MB" if state.ready else "not made yet"
    return {"name": BUILTIN_TARGET, "state": ready, "folder": str(state.directory), "source": state.source}
