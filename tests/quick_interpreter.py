"""Triton's interpreter without half of its work: it patches `triton.language` at every call in a kernel."""

from __future__ import annotations

from functools import partial
from types import FunctionType
from typing import Any

from triton.runtime import interpreter


def patch_once() -> None:
    """Let the functions of a module find what the first of them in a kernel has patched, until the kernel ends.

    Older versions of Triton, which patch in another way, go on as they do.
    """
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    patch = interpreter._patch_lang
    done: set[int] = set()  # the modules, by their globals

    def end(restore: Any) -> None:
        done.clear()
        restore()

    def patch_new(function: FunctionType) -> Any:
        module = id(function.__globals__)
        if module in done:
            return interpreter._LangPatchScope()
        scope = patch(function)
        scope.restore = partial(end, scope.restore)
        done.add(module)
        return scope

    interpreter._patch_lang = patch_new
