"""Imports run one way. The source is read, not imported, so imports inside functions count too."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"pearl_kernels": ROOT / "pearl_kernels", "pearl_decode": ROOT / "python" / "pearl_decode"}

# From the top down. A module of one layer, and all it imports in turn, never comes to a layer above it. Modules that
# are not named here may stand between any two.
LAYERS = ("cli", "decoder", "strategies", "round", "lanes", "cache")
SAME_LAYER = {"models": "cache"}

Graph = dict[str, set[str]]  # module -> modules and names it imports


def imports_of(source: str, module: str, *, is_package: bool) -> set[str]:
    """Full dotted names of all that the source imports; `from a import b` is a.b, be that a module or a name."""
    package = module if is_package else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) + 1 - node.level]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def read_graph() -> Graph:
    graph = {}
    for name, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join((name, *(parts[:-1] if is_package else parts)))
            graph[module] = imports_of(path.read_text(), module, is_package=is_package)
    return graph


GRAPH = read_graph()


def modules_in(name: str, graph: Graph) -> set[str]:
    """The modules of ours that importing this dotted name needs: the longest one that is a module."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (module := ".".join(parts[:end])) in graph:
            return {module}
    return set()


def reached_from(module: str, graph: Graph) -> set[str]:
    """All modules of ours that `module` imports, directly or in turn."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        for name in graph[waiting.pop()]:
            new = modules_in(name, graph) - reached
            reached |= new
            waiting += new
    return reached


def third_parties(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - PACKAGES.keys()


def layer_of(module: str) -> int | None:
    if not module.startswith("pearl_decode."):
        return None
    room = module.split(".")[1]
    room = SAME_LAYER.get(room, room)
    return LAYERS.index(room) if room in LAYERS else None


def upward_imports(graph: Graph) -> list[str]:
    return [
        f"{module} -> {other}"
        for module in graph
        if (own := layer_of(module)) is not None
        for other in reached_from(module, graph)
        if (layer := layer_of(other)) is not None and layer < own
    ]


def cycles(graph: Graph) -> list[str]:
    return sorted(module for module in graph if module in reached_from(module, graph))


def test_the_graph_holds_both_packages() -> None:
    assert {"pearl_kernels", "pearl_kernels.dispatch", "pearl_kernels.verify.reference"} <= GRAPH.keys()
    assert {"pearl_decode", "pearl_decode.round", "pearl_decode.lanes.draft"} <= GRAPH.keys()


def test_imports_run_one_way() -> None:
    assert upward_imports(GRAPH) == []
    assert cycles(GRAPH) == []


def test_kernels_know_nothing_of_the_runtime_or_of_models() -> None:
    for module, names in GRAPH.items():
        if module.startswith("pearl_kernels"):
            assert not any(name.split(".")[0] == "pearl_decode" for name in names), module
            assert third_parties(names) <= {"torch", "triton", "flash_attn"}, module


def test_references_import_neither_triton_nor_the_extension() -> None:
    references = [module for module in GRAPH if module.endswith(".reference")]
    assert len(references) >= 3
    for module in references:
        for other in {module, *reached_from(module, GRAPH)}:
            assert third_parties(GRAPH[other]) <= {"torch"}, other
            assert "pearl_kernels._C" not in GRAPH[other], other


def test_only_native_modules_touch_the_extension() -> None:
    for module, names in GRAPH.items():
        if any(name.startswith("pearl_kernels._C") for name in names):
            assert module.endswith(("._native", "._cuda")), module


def test_the_lanes_do_not_know_each_other() -> None:
    draft, target = "pearl_decode.lanes.draft", "pearl_decode.lanes.target"
    assert target not in reached_from(draft, GRAPH)
    assert draft not in reached_from(target, GRAPH)


def test_packages_import_neither_tests_nor_benchmarks() -> None:
    for module, names in GRAPH.items():
        assert not {name.split(".")[0] for name in names} & {"tests", "bench"}, module


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), flags=re.MULTILINE)


def test_only_the_bindings_see_python_and_nothing_sees_torch() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert sources
    for path in sources:
        for header in includes(path):
            assert not re.match(r"(torch|ATen|c10)/", header), f"{path}: {header}"
            if path.name != "bindings.cpp":
                assert not re.match(r"(pybind11/|Python\.h)", header), f"{path}: {header}"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b, c as d", {"a.b", "a.c"}),
        ("from . import b", {"p.q.b"}),
        ("from ..r import b", {"p.r.b"}),
        ("def f():\n    from a.b import c", {"a.b.c"}),
        ("if x:\n    import a", {"a"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, wanted: set[str]) -> None:
    assert imports_of(source, "p.q.m", is_package=False) == wanted


def test_a_breach_is_seen_through_modules_between() -> None:
    graph = {
        "pearl_decode.cache": {"pearl_decode.helper.thing"},
        "pearl_decode.helper": {"pearl_decode.round"},
        "pearl_decode.round": {"torch"},
    }
    assert upward_imports(graph) == ["pearl_decode.cache -> pearl_decode.round"]
    assert cycles(graph | {"pearl_decode.round": {"pearl_decode.cache"}}) == sorted(graph)
