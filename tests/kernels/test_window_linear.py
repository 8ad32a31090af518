"""The product of a window's few rows and a weight matrix, against float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pearl_kernels import window_linear, window_linears

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (7, 5), (33, 64), (64, 33), (192, 576), (10, 1000)]  # (outputs, inputs)


def problem(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + outputs * inputs)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    return x, weight, torch.randn(outputs, generator=generator)


@pytest.fixture(params=["cpu", "reference"])
def backend(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64(backend, dtype, shape):
    for rows in (1, 2, 3, 5, 11, 12, 13, 17, 40):
        x, weight, bias = problem(rows, *shape, dtype)
        wanted = x.double() @ weight.double().T
        bound = 1e-6 * (x.double().abs() @ weight.double().abs().T) + 1e-6
        assert ((window_linear(x, weight, backend=backend) - wanted).abs() <= bound).all()
        assert ((window_linear(x, weight, bias, backend=backend) - (wanted + bias)).abs() <= 2 * bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype, threads):
    x, weight, bias = problem(29, 300, 577, dtype)
    before = torch.get_num_threads()
    alone = torch.cat([window_linear(row, weight, bias) for row in x.split(1)])
    try:
        torch.set_num_threads(threads)
        for rows in range(1, len(x) + 1):
            assert torch.equal(window_linear(x[:rows], weight, bias), alone[:rows])
    finally:
        torch.set_num_threads(before)


def test_any_leading_shape_and_strides(backend):
    x, weight, bias = problem(12, 33, 64, torch.bfloat16)
    flat = window_linear(x, weight, bias, backend=backend)
    torch.testing.assert_close(window_linear(x.view(3, 4, 64), weight, bias, backend=backend), flat.view(3, 4, 33))
    torch.testing.assert_close(window_linear(x[0], weight, bias, backend=backend), flat[0])
    spaced = torch.cat([x, x], dim=1)[:, :64]
    torch.testing.assert_close(window_linear(spaced, weight, bias, backend=backend), flat)
    wide = torch.cat([weight, weight], dim=1)[:, :64]
    torch.testing.assert_close(window_linear(x, wide, bias, backend=backend), flat)
    assert window_linear(x[:0], weight, bias, backend=backend).shape == (0, 33)
    zeros = window_linear(x[:, :0], weight[:, :0], bias, backend=backend)
    assert torch.equal(zeros, bias.expand(12, 33))


def test_several_layers_at_once_have_the_bits_of_each_alone(backend):
    x, weight, bias = problem(5, 301, 577, torch.bfloat16)
    layers = [(weight, bias), (weight[:7].float(), None), (weight[:0], None), (weight[:64].half(), bias[:64])]
    found = window_linears(x.view(1, 5, 577), layers, backend=backend)
    for (w, b), got in zip(layers, found, strict=True):
        assert torch.equal(got, window_linear(x.view(1, 5, 577), w, b, backend=backend))
    assert window_linears(x, []) == []
    with pytest.raises(ValueError, match=r"window_linear: x must be \(\.\.\., 576\), got shape"):
        window_linears(x, [(weight, bias), (weight[:, 1:], None)])


def test_a_bad_weight_spoils_its_own_output_only(backend):
    x, weight, _ = problem(5, 33, 64, torch.bfloat16)
    clean = window_linear(x, weight, backend=backend)
    weight[4, 63] = torch.nan
    spoilt = window_linear(x, weight, backend=backend)
    assert spoilt[:, 4].isnan().all()
    kept = [n for n in range(33) if n != 4]
    assert torch.equal(spoilt[:, kept], clean[:, kept])


def test_is_an_operation_of_torch(backend):
    x, weight, bias = problem(3, 33, 64, torch.bfloat16)
    torch.library.opcheck(torch.ops.pearl.window_linear, (x, weight, bias, backend))

    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * window_linear(x, weight, bias, backend=backend)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), twice(x))


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_level_this_processor_runs(level):
    """In a process of its own: a level is chosen once."""
    program = """
import torch
from pearl_kernels import _C, window_linear
x, weight = torch.randn(7, 577), torch.randn(33, 577)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    stored = weight.to(dtype)
    torch.testing.assert_close(window_linear(x, stored), x @ stored.float().T, rtol=1e-4, atol=1e-4)
print(_C.build_info()["simd_level"])
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env={"PEARL_SIMD": level, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if "does not run on this processor" in run.stderr:
        pytest.skip(f"{level} does not run here")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [level]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 8, dtype=torch.bfloat16)}, r"x must be float32, got torch.bfloat16"),
        ({"x": torch.zeros(2, 7)}, r"x must be \(\.\.\., 8\), got shape \(2, 7\)"),
        ({"x": torch.zeros(())}, r"x must be \(\.\.\., 8\), got shape \(\)"),
        ({"weight": torch.zeros(4, 8, dtype=torch.float64)}, r"weight must be .* got torch.float64"),
        ({"weight": torch.zeros(8)}, r"weight must be .* shape \(8,\)"),
        ({"weight": torch.zeros(8, 4).T}, r"weight must be .* strides \(1, 4\)"),
        ({"weight": torch.zeros(4, 8, device="meta")}, r"weight and bias must be on cpu, got weight on meta"),
        ({"bias": torch.zeros(3)}, r"bias must be \(4,\) float32 and contiguous, got torch.float32 of shape \(3,\)"),
        ({"bias": torch.zeros(4, dtype=torch.float16)}, r"bias must be \(4,\) float32"),
        ({"backend": "fast"}, r"backend must be one of"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match="window_linear: " + message):
        window_linear(**({"x": torch.zeros(2, 8), "weight": torch.zeros(4, 8)} | changes))
