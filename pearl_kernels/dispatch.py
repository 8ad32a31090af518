"""Which backend runs an operation, and why the others do not."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_LOG = logging.getLogger("pearl_kernels")

BACKENDS = ("reference", "cpu", "triton", "cuda", "flash")
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("flash", "cuda", "triton", "reference")}
_ENTRY = {
    "sample": "sample_out",
    "verify": "verify_out",
    "advance": "advance_",
    "induction": "induce_",
    "window_linear": "window_linear_out",
    "window_norm": "window_norm_out",
    "window_attention": "window_attention",
    "window_layer": "window_layer",
    "window_decoder": "window_decoder",
    "draft_chain": "draft_chain",
}
# Operations a backend does not have.
_WITHOUT = {
    "triton": {"window_linear"},
    "cuda": _ENTRY.keys() - {"sample", "verify", "advance"},
    "flash": _ENTRY.keys() - {"window_attention"},
}
_MODULE = {"reference": "reference", "cpu": "_native", "triton": "_triton", "cuda": "_cuda", "flash": "_flash"}


# Held for the life of the process: dropping a Library drops its operations.
_LIBRARY: Any = torch.library.Library("pearl", "DEF")  # type: ignore[no-untyped-call]


class Backend(NamedTuple):
    """Whether a backend can run here, and why not (or what it is)."""

    available: bool
    reason: str


def backends() -> dict[str, Backend]:
    """Every backend by name, whether it can run on this machine, and why not (or what it is)."""
    return {name: _state(name) for name in BACKENDS}


@functools.cache
def _state(name: str) -> Backend:
    if name == "reference":
        return Backend(True, "plain torch, any device")
    if name == "triton":
        return _triton_state()
    if name == "flash":
        return _flash_state()
    try:
        info = _extension().build_info()
        for op in _operations(name):
            _entry(name, op)
    except ImportError as error:
        return Backend(False, f"the native extension did not import: {error}")
    except RuntimeError as error:  # of a PEARL_SIMD that does not run here
        return Backend(False, str(error))
    if name == "cpu":
        return Backend(True, f"C++ for CPU tensors, {info['simd_level']}, built with {info['compiler']}")
    if not info["cuda"]:
        return Backend(False, "the native extension was built without CUDA")
    if not torch.cuda.is_available():
        return Backend(False, "needs a CUDA device")
    for device in range(torch.cuda.device_count()):
        problem = _extension().cuda_problem(device)
        if problem is not None:
            return Backend(
                False, f"its kernels, built for {info['cuda_architectures']}, fail on cuda:{device}: {problem}"
            )
    return Backend(True, f"CUDA C++ for CUDA tensors, built for {info['cuda_architectures']}")


def _extension() -> Any:
    return importlib.import_module("pearl_kernels._C")


def _triton_state() -> Backend:
    """Without a device to run on, triton is not even imported."""
    if importlib.util.find_spec("triton") is None:
        return Backend(False, "triton is not installed")
    if not _interpreted() and not torch.cuda.is_available():
        return Backend(False, "needs a CUDA device, or TRITON_INTERPRET=1 to be interpreted on the CPU")
    try:
        for op in _operations("triton"):
            _entry("triton", op)
    except ImportError as error:
        return Backend(False, f"the Triton kernels did not import: {error}")
    return Backend(True, "Triton, interpreted on the CPU" if _interpreted() else "Triton for CUDA tensors")


def _operations(name: str) -> set[str]:
    return _ENTRY.keys() - _WITHOUT.get(name, set())


def _flash_state() -> Backend:
    """Without a device to run on, flash-attn is not imported, which takes seconds."""
    if importlib.util.find_spec("flash_attn") is None:
        return Backend(False, "flash-attn is not installed: pip install 'pearl-kernels[flash]'")
    if not torch.cuda.is_available():
        return Backend(False, "needs a CUDA device")
    try:
        _entry("flash", "window_attention")
    except ImportError as error:
        return Backend(False, f"flash-attn did not import: {error}")
    return Backend(True, "flash-attn's attention over a cache, for window_attention on CUDA tensors")


def _interpreted() -> bool:
    """Whether Triton's interpreter is on. It has to be before triton is imported, by whomever."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "y", "on")


@functools.cache
def _refusal(name: str, op: str, device: str) -> str | None:
    """Why backend `name` cannot run `op` on tensors of `device`, or None if it can."""
    if op not in _operations(name):
        return f"{name} backend: has no {op}"
    if not _state(name).available:
        return f"{name} backend: {_state(name).reason}"
    if name == "cpu" and device != "cpu":
        return f"cpu backend: takes CPU tensors, got {device} tensors"
    if name in ("cuda", "flash") and device != "cuda":
        return f"{name} backend: takes CUDA tensors, got {device} tensors"
    if name == "triton" and device != "cuda" and not _interpreted():
        return f"triton backend: takes CUDA tensors, got {device} tensors; TRITON_INTERPRET=1 interprets it on the CPU"
    return None


@functools.cache
def _entry(name: str, op: str) -> Callable[..., Any]:
    module = importlib.import_module(f"pearl_kernels.{op}.{_MODULE[name]}")
    entry: Callable[..., Any] = getattr(module, _ENTRY[op])
    return entry


@functools.cache
def _warn_once(message: str) -> None:
    _LOG.warning(message)


@functools.cache
def _pick(op: str, device: str, unfit: tuple[str, ...] = ()) -> Callable[..., Any]:
    """The first backend for `device` that can run `op`, but none of `unfit`.

    To pass over one that this machine should have is logged, once, and so is what is left to the reference.
    """
    passed_over: list[str] = []
    missed = False
    for name in _ORDER.get(device, ("reference",)):
        refusal = f"{name} backend: does not take these sizes" if name in unfit else _refusal(name, op, device)
        if name == "flash" and refusal is not None:
            continue  # an extra
        if refusal is None:
            if missed or (passed_over and name == "reference"):
                _warn_once(f"{device} tensors run on the {name} backend: {'; '.join(passed_over)}")
            return _entry(name, op)
        missed |= op in _operations(name)
        passed_over.append(refusal)
    raise RuntimeError(f"{op}: no backend for {device} tensors: {'; '.join(passed_over)}")


def choose(op: str, device: torch.device, backend: str | None, unfit: tuple[str, ...] = ()) -> Callable[..., Any]:
    """The function that runs `op` for tensors on `device`.

    backend: forces one by name, as does the environment variable PEARL_BACKEND, but that only for operations
             the backend has; None picks the best for the device
    unfit:   backends that do not take these arguments: not picked
    Raises ValueError for an unknown name, RuntimeError with the reason if the forced backend cannot run here.
    """
    forced = backend or os.environ.get("PEARL_BACKEND")
    if not forced or (not backend and op in _WITHOUT.get(forced, ())):
        return _pick(op, device.type, unfit)
    if forced not in BACKENDS:
        those = ", ".join(name for name in BACKENDS if op in _operations(name))
        raise ValueError(f"{op}: backend must be one of {those}, got {forced!r}")
    refusal = _refusal(forced, op, device.type)
    if refusal is not None:
        raise RuntimeError(f"{op}: {refusal}")
    return _entry(forced, op)


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register pearl::<schema>: `run` on every device, `fake` to tell its outputs while tracing."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")  # nothing here has a derivative
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pearl::{name}", fake, lib=_LIBRARY)


def operation(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """pearl::<name> while torch traces or a dispatch mode looks on, else `run`, which it runs: asking costs time."""
    asked = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    return getattr(torch.ops.pearl, name).default if asked else run


def contiguous(*values: Tensor | None) -> list[Tensor | None]:
    """The small per-row tensors as backends want them; logits never pass here."""
    return [None if value is None else value.contiguous() for value in values]
