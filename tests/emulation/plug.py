"""Runs the backend `cuda` on CPU tensors: the Python side as it is, the kernels emulated."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import pytest

from pearl_kernels import _cuda, dispatch
from tests.emulation import build

MULTIPROCESSORS = 132  # batches of many hundreds have their rows looked at in turn, others all at once

CAPABILITY = 9

needs_emulation = pytest.mark.skipif(build.lacking() is not None, reason=str(build.lacking()))

emulated_extension = functools.cache(build.build_extension)


def plug_in(monkeypatch: pytest.MonkeyPatch, extension: ModuleType, multiprocessors: int = MULTIPROCESSORS) -> None:
    """Until the test ends, backend="cuda" takes CPU tensors and calls `extension`; other backends are as they were."""
    refusal = dispatch._refusal

    def refuse(name: str, op: str, device: str) -> str | None:
        return None if (name, device) == ("cuda", "cpu") else refusal(name, op, device)

    for op in dispatch._operations("cuda"):
        monkeypatch.setattr(importlib.import_module(f"pearl_kernels.{op}._cuda"), "_C", extension)
    monkeypatch.setattr(dispatch, "_refusal", refuse)
    monkeypatch.setattr(_cuda, "_stream", lambda device: 0)
    monkeypatch.setattr(_cuda, "_properties", lambda device: (multiprocessors, CAPABILITY))
