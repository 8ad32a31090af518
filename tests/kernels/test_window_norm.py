"""The norm of a window's few rows, against float64."""

from __future__ import annotations

import pytest
import torch

import pearl_kernels
from pearl_kernels import window_norm
from tests.kernels.levels import LEVELS, run_at


@pytest.fixture(params=["cpu", "reference", "triton"])
def backend(request) -> str:
    if request.param == "triton" and (torch.cuda.is_available() or not pearl_kernels.backends()["triton"].available):
        pytest.skip("Triton is not interpreted here")
    return request.param


def problem(rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(rows, size, generator=generator) + 0.3, torch.randn(size, generator=generator)


@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 576, 1000])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("scale", "eps"), [(1.0, 1e-5), (1e-3, 1e-5), (1e4, 1e-6), (0.0, 1e-6)])
def test_equals_float64(backend, size, offset, scale, eps):
    x, weight = problem(7, size)
    x = x * scale
    wide = x.double()
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * (weight.double() + offset)
    got = window_norm(x, weight, eps=eps, offset=offset, backend=backend)
    torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("backend", ["reference", "triton"], indirect=True)
def test_rows_of_16_bits_are_normed_in_float32(backend, dtype, tolerance):
    x, weight = (tensor.to(dtype) for tensor in problem(5, 300))
    wide = x.double()
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * (weight.double() + 1)
    got = window_norm(x, weight, eps=1e-5, offset=1.0, backend=backend)
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=1e-3)


def test_rows_of_16_bits_are_not_for_the_cpu_backend():
    with pytest.raises(ValueError, match=r"cpu backend: x must be float32, got .*bfloat16"):
        window_norm(torch.zeros(2, 8).bfloat16(), torch.zeros(8).bfloat16(), eps=1e-5, backend="cpu")


def test_a_row_does_not_depend_on_the_rows_beside_it():
    x, weight = problem(29, 577)
    alone = torch.cat([window_norm(row, weight, eps=1e-5) for row in x.split(1)])
    for rows in range(1, len(x) + 1):
        assert torch.equal(window_norm(x[:rows], weight, eps=1e-5), alone[:rows])


def test_any_leading_shape_and_strides(backend):
    x, weight = problem(12, 64)
    flat = window_norm(x, weight, eps=1e-5, backend=backend)
    assert torch.equal(window_norm(x.view(3, 4, 64), weight, eps=1e-5, backend=backend), flat.view(3, 4, 64))
    spaced = torch.cat([x, x], dim=1)[:, :64]
    assert torch.equal(window_norm(spaced, weight, eps=1e-5, backend=backend), flat)
    assert window_norm(x[:0], weight, eps=1e-5, backend=backend).shape == (0, 64)


def test_a_bad_row_spoils_no_other(backend):
    x, weight = problem(3, 100)
    clean = window_norm(x, weight, eps=1e-5, backend=backend)
    x[1, 99] = torch.nan
    spoilt = window_norm(x, weight, eps=1e-5, backend=backend)
    assert spoilt[1].isnan().all()
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])


def test_is_an_operation_of_torch(backend):
    x, weight = problem(3, 64)
    torch.library.opcheck(torch.ops.pearl.window_norm, (x, weight, 1e-5, 1.0, backend))

    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * window_norm(x, weight, eps=1e-5, backend=backend)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), twice(x))


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_this_processor_runs(level):
    program = """
import torch
from pearl_kernels import window_norm
x, weight = torch.randn(7, 577), torch.randn(577)
wanted = window_norm(x, weight, eps=1e-5, backend="reference")
torch.testing.assert_close(window_norm(x, weight, eps=1e-5, backend="cpu"), wanted)
"""
    run_at(level, program)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 8, dtype=torch.bfloat16)}, r"x must be \(\.\.\., 8\) float32, got torch.bfloat16"),
        ({"x": torch.zeros(2, 7)}, r"x must be \(\.\.\., 8\) float32, got torch.float32 of shape \(2, 7\)"),
        ({"x": torch.zeros(())}, r"x must be \(\.\.\., 8\)"),
        ({"weight": torch.zeros(2, 8)}, r"weight must be \(size,\) .* of shape \(2, 8\)"),
        (
            {"weight": torch.zeros(8).half()},
            r"x must be \(\.\.\., 8\) float16, got torch.float32 of shape \(2, 8\)",
        ),
        (
            {"weight": torch.zeros(16)[::2]},
            r"weight must be \(size,\) float32, bfloat16 or float16 and contiguous on cpu",
        ),
        ({"weight": torch.zeros(8, device="meta")}, r"weight must be .* on cpu, got torch.float32 .* on meta"),
        ({"eps": -1.0}, r"eps must be at least 0, got -1.0"),
        ({"eps": float("nan")}, r"eps must be at least 0, got nan"),
        ({"backend": "fast"}, r"backend must be one of"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match="window_norm: " + message):
        window_norm(**({"x": torch.zeros(2, 8), "weight": torch.zeros(8), "eps": 1e-5} | changes))
