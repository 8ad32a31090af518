"""The backend that runs is the best one for the device or the one that was asked for, and never silently another."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pearl_kernels
from pearl_kernels import SamplingTensors, dispatch


def sample(**arguments: Any) -> pearl_kernels.SampleOutput:
    logits = torch.zeros(2, 9)
    return pearl_kernels.sample(logits, SamplingTensors.make(2), torch.zeros(2, dtype=torch.int64), **arguments)


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine where the extension was not built."""
    hidden = [name for name in sys.modules if name == "pearl_kernels._C" or name.endswith("._native")]
    for name in hidden:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pearl_kernels._C", None)
    forget()
    yield
    forget()


def forget() -> None:
    for cached in (dispatch._state, dispatch._refusal, dispatch._entry, dispatch._pick, dispatch._warn_once):
        cached.cache_clear()


def test_every_backend_says_what_it_is_or_why_not() -> None:
    states = pearl_kernels.backends()
    assert list(states) == ["reference", "cpu", "triton", "cuda", "flash"]
    assert states["reference"].available
    assert all(state.reason for state in states.values())


def test_cpu_tensors_run_on_the_best_backend_there_is() -> None:
    best = "_native" if pearl_kernels.backends()["cpu"].available else "reference"
    for op in ("sample", "verify", "advance"):
        assert dispatch.choose(op, torch.device("cpu"), None).__module__ == f"pearl_kernels.{op}.{best}"


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_the_reference_runs_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="pearl_kernels"):
        for _ in range(3):
            sample()
            pearl_kernels.verify(
                torch.zeros(1, 1, 5), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int32),
                SamplingTensors.make(1), torch.zeros(1, dtype=torch.int64),
            )  # fmt: skip
    assert len(caplog.records) == 1
    assert "cpu tensors run on the reference backend: cpu backend: " in caplog.text
    assert "pearl_kernels._C" in caplog.text
    state = pearl_kernels.backends()["cpu"]
    assert not state.available
    assert "pearl_kernels._C" in state.reason
    with pytest.raises(RuntimeError, match=r"^sample: cpu backend: the native extension did not import"):
        sample(backend="cpu")


def test_a_level_of_the_kernels_that_does_not_run_here_is_the_reason() -> None:
    backends = "import pearl_kernels; print(pearl_kernels.backends()['cpu'])"
    for level, wanted in (("best", "PEARL_SIMD=best is not compiled in or does not run"), ("", "available=True")):
        ran = subprocess.run(
            [sys.executable, "-c", backends], env={**os.environ, "PEARL_SIMD": level}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert wanted in ran.stdout


def test_cuda_is_not_there_for_devices_that_its_kernels_fail_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Extension:
        @staticmethod
        def build_info() -> dict[str, object]:
            return {"cuda": True, "cuda_architectures": "80-real"}

        @staticmethod
        def cuda_problem(device: int) -> str | None:
            return "no kernel image is available" if device == 1 else None

    monkeypatch.setattr(dispatch, "_extension", Extension)
    monkeypatch.setattr(dispatch, "_operations", lambda name: set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for devices, available in ((1, True), (2, False)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        assert dispatch._state.__wrapped__("cuda").available is available
    reason = dispatch._state.__wrapped__("cuda").reason
    assert reason == "its kernels, built for 80-real, fail on cuda:1: no kernel image is available"


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that does not interpret Triton."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    forget()
    yield
    forget()


@pytest.mark.parametrize("name", ["triton", "cuda"])
@pytest.mark.usefixtures("no_interpreter")
def test_a_forced_backend_runs_or_raises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=f"^sample: {name} backend: "):
        sample(backend=name)
    monkeypatch.setenv("PEARL_BACKEND", name)
    with pytest.raises(RuntimeError, match=f"^sample: {name} backend: "):
        sample()


def test_the_environment_forces_a_backend_and_the_argument_wins(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setenv("PEARL_BACKEND", "reference")
    assert dispatch.choose("verify", device, None).__module__ == "pearl_kernels.verify.reference"
    chosen = dispatch.choose("verify", device, backend).__module__
    assert chosen == f"pearl_kernels.verify.{dispatch._MODULE[backend]}"


def test_an_unknown_backend_is_the_callers_mistake_wherever_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "^sample: backend must be one of reference, cpu, triton, cuda, got 'fast'$"
    with pytest.raises(ValueError, match=message):
        sample(backend="fast")
    monkeypatch.setenv("PEARL_BACKEND", "fast")
    with pytest.raises(ValueError, match=message):
        sample()


def test_the_cpu_backend_refuses_other_devices(backend: str) -> None:
    if backend == "cpu":
        with pytest.raises(RuntimeError, match=r"^verify: cpu backend: takes CPU tensors, got cuda tensors$"):
            dispatch.choose("verify", torch.device("cuda"), "cpu")
    assert dispatch.choose("verify", torch.device("cuda"), "reference").__module__ == "pearl_kernels.verify.reference"


@pytest.mark.usefixtures("no_interpreter")
def test_the_triton_backend_takes_cpu_tensors_from_the_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = pearl_kernels.backends()["triton"]
    assert not state.available
    with pytest.raises(RuntimeError) as refused:
        sample(backend="triton")
    assert str(refused.value) == f"sample: triton backend: {state.reason}"


def test_importing_the_kernels_imports_neither_models_nor_the_runtime() -> None:
    code = (
        "import sys, pearl_kernels; pearl_kernels.backends(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('transformers', 'pearl_decode', 'triton')])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
