"""What every test may use."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

# No test may wait for a model hub; a name that is not a local folder has to fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"

# Read when triton is imported, which nothing has done yet. Its kernels then run on CPU tensors, as numpy.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from pearl_decode.builtin import BuiltinModelError, ensure_builtin

if importlib.util.find_spec("triton"):
    from tests.quick_interpreter import patch_once

    patch_once()

# Processes that share the tests share the cores: more threads would only wait for each other.
torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the built-in model: from PEARL_CACHE or this repository's .cache, made there the first time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEARL_CACHE", os.environ.get("PEARL_CACHE") or str(REPOSITORY / ".cache"))
        try:
            return ensure_builtin()
        except BuiltinModelError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no built-in model here: {error}")
