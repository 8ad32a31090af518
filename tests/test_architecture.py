"""Imports run one way, and each part sees only what it may."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
ROOTS = {"pearl_kernels": REPOSITORY / "pearl_kernels", "pearl_decode": REPOSITORY / "python" / "pearl_decode"}

# Top to bottom: a layer imports only from those below it, or from itself.
LAYERS = (
    ("cli",),
    ("doctor", "distill"),
    ("hook",),
    ("decoder",),
    ("engine",),
    ("strategies",),
    ("round",),
    ("lanes",),
    ("models", "state", "request"),
    ("cache", "masks", "sampling", "result", "text", "builtin"),
    ("stats",),
)
RANKS = {name: rank for rank, layer in enumerate(reversed(LAYERS)) for name in layer}


def modules(package: str) -> dict[str, Path]:
    """Dotted name of every module of a package, and its file."""
    root = ROOTS[package]
    named = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(name: str, path: Path) -> set[str]:
    """Everything a module imports, wherever in the file, by absolute dotted name."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            found |= {f"{base}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names}
    return found


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


ALL = [(name, path) for package in ROOTS for name, path in modules(package).items()]


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_packages_import_neither_tests_nor_benchmarks(name: str, path: Path):
    assert not [used for used in imports(name, path) if under(used, "tests") or under(used, "bench")]


def test_kernels_know_neither_runtime_nor_transformers():
    for name, path in modules("pearl_kernels").items():
        foreign = [used for used in imports(name, path) if under(used, "pearl_decode") or under(used, "transformers")]
        assert not foreign, name


def test_references_know_neither_triton_nor_the_extension():
    references = {name: path for name, path in modules("pearl_kernels").items() if name.endswith(".reference")}
    assert references
    for name, path in references.items():
        used = imports(name, path)
        assert not [u for u in used if under(u, "triton") or u.startswith("pearl_kernels._C") or "_native" in u], name


def test_runtime_imports_run_downwards():
    upwards = []
    for name, path in modules("pearl_decode").items():
        own = name.split(".")[1:2]
        for used in imports(name, path) if own and own[0] in RANKS else ():
            part = used.split(".")[1:2] if under(used, "pearl_decode") else []
            if part and part != own and RANKS.get(part[0], -1) >= RANKS[own[0]]:
                upwards.append(f"{name} imports {used}")
    assert not upwards


def test_lanes_do_not_know_each_other():
    named = modules("pearl_decode")
    for one, other in (("draft", "target"), ("target", "draft")):
        name = f"pearl_decode.lanes.{one}"
        assert not [u for u in imports(name, named[name]) if under(u, f"pearl_decode.lanes.{other}")]


def test_only_the_bindings_know_python():
    for path in sorted((REPOSITORY / "csrc").rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
            text = path.read_text(encoding="utf-8")
            included = re.findall(r'#\s*include\s*[<"]([^>"]+)', text)
            forbidden = ("torch/", "ATen/", "c10/", *(() if path.name == "bindings.cpp" else ("pybind11/", "Python.h")))
            assert not [header for header in included if header.startswith(forbidden)], path
