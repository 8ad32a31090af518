"""Tests that need a GPU, for each backend that CUDA tensors can have. Without one they are skipped.

PEARL_TEST_ALL=1 runs the Triton backend on every size and dtype too. PEARL_TEST_EMULATED=1 tries these tests themselves
where there is no GPU: on CPU tensors, with CUDA emulated and Triton interpreted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Read when triton is imported.
if os.environ.get("PEARL_TEST_EMULATED") and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import pearl_kernels
from tests.emulation import plug
from tests.gpu.elsewhere import run_on

EMULATED = bool(os.environ.get("PEARL_TEST_EMULATED")) and not torch.cuda.is_available()
BACKENDS = ("cuda", "triton")
# Triton compiles anew for most sizes and every dtype, for a second or more each time.
TRITON_SIZES = (2, 32, 1000, 128256)
LONG_IN_TRITON = ("test_sample_agrees_on_rows_of_every_shape",)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the tensors are that a backend is tested on."""
    if EMULATED:
        return torch.device("cpu")
    device: torch.device = request.getfixturevalue("gpu")
    return device


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "triton" and not os.environ.get("PEARL_TEST_ALL"):
        parameters = request.node.callspec.params
        if (
            request.node.originalname in LONG_IN_TRITON
            or parameters.get("vocab", TRITON_SIZES[0]) not in TRITON_SIZES
            or parameters.get("dtype") is torch.float16
        ):
            pytest.skip("Triton would compile for long; PEARL_TEST_ALL=1 runs it")
    if EMULATED and name == "cuda":
        plug.plug_in(monkeypatch, plug.emulated_extension())
        return name
    state = pearl_kernels.backends()[name]
    if not state.available:
        pytest.skip(state.reason)
    return name


@pytest.fixture
def _operations_run_on_the_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that know of CPU tensors only are tests of the device."""
    for name in ("sample", "verify", "advance_"):
        monkeypatch.setattr(pearl_kernels, name, run_on(device, getattr(pearl_kernels, name), BACKENDS))


@pytest.fixture(autouse=True)
def _no_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEARL_BACKEND", raising=False)


@pytest.fixture(autouse=True, scope="package")
def _few_torch_threads() -> Iterator[None]:
    """For the reference's answers; more only wait for each other where tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, 2))
    yield
    torch.set_num_threads(threads)
