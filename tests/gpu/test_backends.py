"""Where there is a GPU, CUDA tensors run on the kernels written for it, and everything says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import pearl_kernels
from pearl_kernels import SamplingTensors, dispatch

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_the_gpu_backends_are_available(name: str) -> None:
    state = pearl_kernels.backends()[name]
    assert state.available, state.reason


@pytest.mark.parametrize("op", ["sample", "verify", "advance"])
def test_cuda_tensors_run_on_the_cuda_backend(op: str, gpu: torch.device) -> None:
    assert dispatch.choose(op, gpu, None).__module__ == f"pearl_kernels.{op}._cuda"


def test_the_doctor_says_so() -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PEARL_BACKEND")
    }
    code = "import sys; from pearl_decode.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    assert findings["extension"]["cuda"].startswith("yes")
    assert findings["backends"]["cuda"].startswith("yes")
    assert findings["backends"]["triton"].startswith("yes")


def test_tensors_of_another_device_run_there(gpu: torch.device) -> None:
    """A launch goes to the tensors' device and leaves the current one alone."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    other = torch.device("cuda", (gpu.index or 0) + 1)
    params = SamplingTensors.make(2, device=other)
    out = pearl_kernels.sample(torch.randn(2, 50, device=other), params, torch.arange(2, device=other), backend="cuda")
    assert out.tokens.device == other
    assert torch.cuda.current_device() == gpu.index
