"""The product of a window's few rows and a weight matrix, against float64."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode

from pearl_kernels import Linear, packed, quantized, unpacked, window_linear, window_linears
from tests.kernels.levels import LEVELS, run_at

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
SHAPES = [(1, 1), (7, 5), (33, 64), (64, 33), (96, 131), (192, 576), (10, 2500)]  # (outputs, inputs)


def problem(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, Linear]:
    generator = torch.Generator().manual_seed(rows + outputs * inputs)
    x = torch.randn(rows, inputs, generator=generator)
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    stored, scale = quantized(weight) if dtype is torch.int8 else (weight.to(dtype), None)
    return x, Linear(stored, bias, scale)


@pytest.fixture(params=["cpu", "reference"])
def backend(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ["rows", "packed"])
def test_equals_float64(backend, dtype, shape, order):
    for rows in (1, 2, 3, 5, 11, 12, 13, 17, 40):
        x, layer = problem(rows, *shape, dtype)
        layer = layer.packed() if order == "packed" else layer
        weight = layer.widened(torch.float64)
        wanted = x.double() @ weight.T
        bound = 1e-6 * (x.double().abs() @ weight.abs().T) + 1e-6
        without_bias = layer._replace(bias=None)
        assert ((window_linear(x, *without_bias, backend=backend) - wanted).abs() <= bound).all()
        assert ((window_linear(x, *layer, backend=backend) - (wanted + layer.bias)).abs() <= 2 * bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("threads", "inputs"), [(1, 577), (2, 577), (2, 2500)])
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype, threads, inputs):
    x, layer = problem(29, 300, inputs, dtype)
    before = torch.get_num_threads()
    alone = torch.cat([window_linear(row, *layer) for row in x.split(1)])
    try:
        torch.set_num_threads(threads)
        for rows in range(1, len(x) + 1):
            assert torch.equal(window_linear(x[:rows], *layer), alone[:rows])
            assert torch.equal(window_linear(x[:rows], *layer.packed()), alone[:rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (31, 5), (64, 7)])
def test_unpacked_is_what_was_packed(dtype, shape):
    weight = (100 * torch.randn(shape)).to(dtype)
    together = packed(weight)
    assert together.shape == (-(-shape[0] // 32), shape[1], 32)
    assert together.dtype is dtype
    assert together.is_contiguous()
    assert torch.equal(unpacked(together, shape[0]), weight)
    assert torch.equal(Linear(together, outputs=shape[0]).widened(torch.float64), weight.double())
    # What is added to fill the last block is 0.
    assert together.double().abs().sum() == weight.double().abs().sum()


def test_any_leading_shape_and_strides(backend):
    x, (weight, bias, *_) = problem(12, 33, 64, torch.bfloat16)
    flat = window_linear(x, weight, bias, backend=backend)
    torch.testing.assert_close(window_linear(x.view(3, 4, 64), weight, bias, backend=backend), flat.view(3, 4, 33))
    torch.testing.assert_close(window_linear(x[0], weight, bias, backend=backend), flat[0])
    spaced = torch.cat([x, x], dim=1)[:, :64]
    torch.testing.assert_close(window_linear(spaced, weight, bias, backend=backend), flat)
    wide = torch.cat([weight, weight], dim=1)[:, :64]
    torch.testing.assert_close(window_linear(x, wide, bias, backend=backend), flat)
    assert window_linear(x[:0], weight, bias, backend=backend).shape == (0, 33)
    one = weight[:1].expand(33, -1)
    torch.testing.assert_close(window_linear(x, one, bias, backend=backend), x @ one.float().T + bias)
    zeros = window_linear(x[:, :0], weight[:, :0], bias, backend=backend)
    assert torch.equal(zeros, bias.expand(12, 33))


def test_several_layers_at_once_have_the_bits_of_each_alone(backend):
    x, (weight, bias, *_) = problem(5, 301, 577, torch.bfloat16)
    eighth = quantized(weight[:40])
    layers = [
        Linear(weight, bias), Linear(weight[:7].float()), Linear(weight[:0]), Linear(eighth[0], bias[:40], eighth[1]),
        Linear(weight[:64].half(), bias[:64]), Linear(weight, bias).packed(), Linear(packed(weight[:64])),
    ]  # fmt: skip
    found = window_linears(x.view(1, 5, 577), layers, backend=backend)
    for layer, got in zip(layers, found, strict=True):
        assert torch.equal(got, window_linear(x.view(1, 5, 577), *layer, backend=backend))
    assert window_linears(x, []) == []
    with pytest.raises(ValueError, match=r"window_linear: x must be \(\.\.\., 576\), got shape"):
        window_linears(x, [Linear(weight, bias), Linear(weight[:, 1:])])


def test_quantized_is_within_half_a_step_and_keeps_the_greatest_number():
    weight = torch.randn(20, 64) * torch.logspace(-6, 3, 20)[:, None]
    weight[3] = 0
    stored, scale = quantized(weight.bfloat16())
    wide = weight.bfloat16().float()
    assert stored.dtype is torch.int8
    assert ((Linear(stored, None, scale).widened() - wide).abs() <= 0.5001 * scale[:, None]).all()
    assert (stored[3] == 0).all()
    assert (stored.int().abs().amax(dim=1)[torch.arange(20) != 3] == 127).all()


def test_a_bad_weight_spoils_its_own_output_only(backend):
    x, (weight, *_) = problem(5, 33, 64, torch.bfloat16)
    clean = window_linear(x, weight, backend=backend)
    weight[4, 63] = torch.nan
    for layer in (Linear(weight), Linear(weight).packed()):
        spoilt = window_linear(x, *layer, backend=backend)
        assert spoilt[:, 4].isnan().all()
        kept = [n for n in range(33) if n != 4]
        assert torch.equal(spoilt[:, kept], clean[:, kept])


@pytest.mark.parametrize("order", ["rows", "packed"])
def test_is_an_operation_of_torch(backend, order):
    x, layer = problem(3, 33, 64, torch.int8)
    layer = layer.packed() if order == "packed" else layer
    torch.library.opcheck(torch.ops.pearl.window_linear, (x, *layer, backend))

    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * window_linear(x, *layer, backend=backend)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), twice(x))


def test_of_a_tensor_without_memory_only_shapes_are_told():
    x, layer = problem(3, 33, 64, torch.int8)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        found = window_linears(mode.from_tensor(x), [layer, layer.packed()])
    assert [(type(each), each.shape) for each in found] == [(FakeTensor, (3, 33))] * 2


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_this_processor_runs(level):
    """In a process of its own: a level is chosen once."""
    program = """
import itertools
import torch
from pearl_kernels import Linear, packed, quantized, window_linear
for dtype, inputs in itertools.product((torch.float32, torch.bfloat16, torch.float16, torch.int8), (576, 577)):
    weight = torch.randn(97, inputs)
    stored, scale = quantized(weight) if dtype is torch.int8 else (weight.to(dtype), None)
    wide = Linear(stored, None, scale).widened()
    for rows in range(1, 20):
        x = torch.randn(rows, inputs)
        found = window_linear(x, stored, None, scale)
        torch.testing.assert_close(found, x @ wide.T, rtol=1e-4, atol=1e-4)
        assert torch.equal(window_linear(x, packed(stored), None, scale, 97), found)
        assert torch.equal(window_linear(x[-1:], packed(stored), None, scale, 97), found[-1:])
"""
    run_at(level, program, OMP_NUM_THREADS="1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 8, dtype=torch.bfloat16)}, r"x must be float32, got torch.bfloat16"),
        ({"x": torch.zeros(2, 7)}, r"x must be \(\.\.\., 8\), got shape \(2, 7\)"),
        ({"x": torch.zeros(())}, r"x must be \(\.\.\., 8\), got shape \(\)"),
        ({"weight": torch.zeros(4, 8, dtype=torch.float64)}, r"weight must be .* got torch.float64"),
        ({"weight": torch.zeros(8)}, r"weight must be .* shape \(8,\)"),
        ({"weight": torch.zeros(8, 4).T}, r"weight must be .* strides \(1, 4\)"),
        ({"weight": torch.zeros(4, 8, device="meta")}, r"weight must be on cpu, got meta"),
        ({"bias": torch.zeros(3)}, r"bias must be \(4,\) float32 and contiguous, got torch.float32 of shape \(3,\)"),
        ({"bias": torch.zeros(4, dtype=torch.float16)}, r"bias must be \(4,\) float32"),
        ({"weight": torch.zeros(4, 8).char()}, r"weight must have a scale if it is int8, got none for torch.int8"),
        ({"scale": torch.ones(4)}, r"weight must have a scale if it is int8, got one for torch.float32"),
        (
            {"weight": torch.zeros(4, 8).char(), "scale": torch.ones(3)},
            r"scale must be \(4,\) float32 and contiguous, got torch.float32 of shape \(3,\)",
        ),
        ({"weight": torch.zeros(1, 8, 16)}, r"weight must be .* or packed, got torch.float32 of shape \(1, 8, 16\)"),
        ({"weight": torch.zeros(1, 32, 8).mT}, r"weight must be .* or packed, got .* strides \(256, 1, 8\)"),
        ({"weight": torch.zeros(1, 7, 32)}, r"x must be \(\.\.\., 7\), got shape \(2, 8\)"),
        ({"weight": torch.zeros(2, 8, 32), "bias": torch.zeros(4)}, r"bias must be \(64,\) float32"),
        ({"weight": torch.zeros(2, 8, 32), "outputs": 65}, r"outputs must be from 33 to 64 for a weight .* got 65"),
        ({"weight": torch.zeros(2, 8, 32), "outputs": 32}, r"outputs must be from 33 to 64 for a weight .* got 32"),
        ({"outputs": 3}, r"outputs must be from 4 to 4 for a weight of shape \(4, 8\), got 3"),
        ({"backend": "fast"}, r"backend must be one of"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match="window_linear: " + message):
        window_linear(**({"x": torch.zeros(2, 8), "weight": torch.zeros(4, 8)} | changes))


def test_only_a_matrix_can_be_packed():
    with pytest.raises(ValueError, match=r"packed: weight must be \(outputs, inputs\), got shape \(2, 8, 32\)"):
        packed(torch.zeros(2, 8, 32))
