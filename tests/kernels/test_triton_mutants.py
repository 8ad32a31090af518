"""The laws see it when the Triton sources are broken: noise, residuals, prefixes, and who comes last."""

from __future__ import annotations

import functools
import importlib
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pearl_kernels
from pearl_kernels import SamplingTensors, VerifyOutput, dispatch
from tests.kernels.advance_checks import check_stories, stories_of_every_ending
from tests.kernels.cases import VerifyCase, verify_case
from tests.kernels.test_agreement import assert_few_differ
from tests.mutants import Mutant, memory_of_nonsense

SOURCES = Path(pearl_kernels.__file__).parent / "_triton"
OPERATIONS = ("sample", "verify", "advance")
NUMBERS = itertools.count()


@functools.cache
def judged(rule: str, kind: str) -> tuple[VerifyCase, VerifyOutput]:
    """Chains of three without filters, and what the reference says of them."""
    kinds: dict[str, dict[str, bool]] = {
        "one-hot": {"one_hot": True},
        "mapped": {"mapped": True},
        "logits": {"stats": False},
    }
    case = verify_case(200, 3, 24, rule=rule, seed=1, **kinds.get(kind, {}))  # type: ignore[arg-type]
    temperature = [(1.0, 0.8, 1.3, 0.0)[b % 4] for b in range(200)]
    case = case.with_(params=SamplingTensors.make(200, temperature=temperature, seed=range(200)))
    return case, case.judged()


def agrees(rule: str, kind: str = "", calls: int = 1) -> Callable[[], None]:
    def check() -> None:
        case, wanted = judged(rule, kind)
        for _ in range(calls):
            assert_few_differ(case.run("triton"), wanted)

    return check


def endings() -> None:
    check_stories(stories_of_every_ending(corrected=True), next_window=3, backend="triton")


MUTANTS = {
    "epoch dropped from the draws that accept": Mutant(
        "chain.py", "tl.int32), start[:, None], seed[:, None])", "tl.int32), start[:, None] * 0, seed[:, None])",
        agrees("block"),
    ),
    "residual shares the draft's noise": Mutant(
        "residuals.py", "noise_words(begin, position, purpose, ", "noise_words(begin, position, purpose + 1, ",
        agrees("token"),
    ),
    "accepts without dividing by the draft": Mutant(
        "chains.py", "accept_draws(start, column, seed) * draft_prob <", "accept_draws(start, column, seed) <",
        agrees("token"),
    ),
    "target in place of the residual": Mutant(
        "residuals.py", "mass -= probabilities(", "mass -= 0.0 * probabilities(", agrees("token"),
    ),
    "residual of the wrong weight": Mutant(
        "residuals.py", "mass = weight[:, None] * probabilities(", "mass = probabilities(", agrees("block"),
    ),
    "prefix one too long": Mutant(
        "chain.py", "tl.where(holds, WIDTH, column), axis=1), length)",
        "tl.where(holds, WIDTH, column), axis=1) + 1, length)", agrees("greedy"),
    ),
    "refused token drawn again": Mutant(
        "race.py", " & (ids[None, :] != excluded[:, None])", "", agrees("token", "one-hot"),
    ),
    "a token that the draft lacks taken for another": Mutant(
        "chain.py", "return tl.where(found, low, -1)", "return tl.minimum(low, size - 1)", agrees("token", "mapped"),
    ),
    "exact score of another id's noise": Mutant(
        "noise.py", "tl.where(lane == 0, w0, w1)", "tl.where(lane == 1, w0, w1)", agrees("coupled"),
    ),
    "last slice skipped": Mutant(
        "race.py", "has_part = mask[:, None] & (part < slices)[None, :]",
        "has_part = mask[:, None] & (part < slices - 1)[None, :]", agrees("coupled"),
    ),
    "last row not waited for": Mutant(
        "chains.py", "arrive(request_counters + group, width * SIDES)",
        "arrive(request_counters + group, width * SIDES - 1)", agrees("coupled"),
    ),
    "last row of the draft not waited for": Mutant(
        "chains.py", "arrive(request_counters + group, width * SIDES)",
        "arrive(request_counters + group, width * SIDES - 1)", agrees("token", "logits"),
    ),
    "counters not left at zero": Mutant(
        "rows.py", "tl.store(counter, 0)", "tl.store(counter, count)", agrees("greedy", calls=2),
    ),
    "end of sequence one too late": Mutant(
        "close.py", "begin + first + 1, end)", "begin + first + 2, end)", endings,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _several_slices_of_nonsense(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    state = pearl_kernels.backends()["triton"]
    if not state.available or torch.cuda.is_available():
        pytest.skip(f"not interpreted: {state.reason}")
    cut_into_slices(monkeypatch, importlib.import_module("pearl_kernels._triton.launch"))
    with memory_of_nonsense():
        yield


def cut_into_slices(patch: pytest.MonkeyPatch, launch: ModuleType) -> None:
    patch.setattr(launch, "SLICE", 16)


def plug_in(patch: pytest.MonkeyPatch, folder: Path, mutant: Mutant) -> None:
    """Until the test ends, the backend's operations are of a copy of its sources that is broken."""
    name = f"broken_triton_{next(NUMBERS)}"
    package = folder / name
    shutil.copytree(SOURCES, package)
    for operation in OPERATIONS:
        shutil.copy(SOURCES.parent / operation / "_triton.py", package / f"{operation}.py")
    mutant.break_in(package)
    for path in package.glob("*.py"):
        path.write_text(path.read_text().replace("pearl_kernels._triton", name))
    patch.syspath_prepend(str(folder))
    cut_into_slices(patch, importlib.import_module(f"{name}.launch"))
    modules: dict[str, Any] = {operation: importlib.import_module(f"{name}.{operation}") for operation in OPERATIONS}
    entry = dispatch._entry

    def broken_entry(backend: str, operation: str) -> Any:
        if backend == "triton" and operation in OPERATIONS:
            return getattr(modules[operation], dispatch._ENTRY[operation])
        return entry(backend, operation)

    patch.setattr(dispatch, "_entry", broken_entry)
    for module in [each for each in sys.modules if each.startswith(name)]:
        patch.delitem(sys.modules, module)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_kernel_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, tmp_path, MUTANTS[name])
    with pytest.raises(AssertionError):
        MUTANTS[name].check()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_same_check_passes_for_the_kernel_as_it_is(name: str) -> None:
    MUTANTS[name].check()
