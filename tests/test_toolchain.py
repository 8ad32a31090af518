"""Where a change is let in, nothing may be skipped for want of a tool."""

from __future__ import annotations

import importlib.util
import os

import pytest

from tests import test_cuda_build
from tests.emulation import build


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere the tests that need a tool are skipped without it")
def test_what_tests_would_be_skipped_without_is_there() -> None:
    assert build.lacking() is None
    assert test_cuda_build.compiler() is not None, "no nvcc, to compile the kernels with"
    assert importlib.util.find_spec("triton") is not None, "no triton, whose kernels are interpreted and compiled"
