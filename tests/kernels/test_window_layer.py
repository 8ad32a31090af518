"""A whole decoder layer over a window, against float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from pearl_kernels import LayerWeights, Linear, packed, quantized, window_layer
from pearl_kernels.window_layer.reference import window_layer as reference
from tests.kernels.levels import LEVELS, run_at

SIZE, INNER, CAPACITY = 40, 72, 50


@dataclass
class Case:
    x: Tensor
    weights: LayerWeights
    cos: Tensor
    sin: Tensor
    k_cache: Tensor
    v_cache: Tensor
    seq_lens: Tensor
    scale: float = 0.3

    def run(self, backend: str | None = None) -> Tensor:
        return window_layer(**vars(self), backend=backend)

    def cloned(self) -> Case:
        return replace(self, k_cache=self.k_cache.clone(), v_cache=self.v_cache.clone())


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape)


def weights_of(
    *, heads: int = 6, kv_heads: int = 2, head_dim: int = 10, dtype: torch.dtype = torch.float32, extras: bool = False
) -> LayerWeights:
    """extras: biases, and norms of queries and keys."""
    wide, narrow = heads * head_dim, kv_heads * head_dim

    def linear(outputs: int, inputs: int) -> Linear:
        weight, bias = draw(outputs, inputs) / inputs**0.5, draw(outputs) if extras else None
        stored, scale = quantized(weight) if dtype is torch.int8 else (weight.to(dtype), None)
        return Linear(stored, bias, scale)

    return LayerWeights(
        1 + 0.2 * draw(SIZE), linear(wide, SIZE), linear(narrow, SIZE), linear(narrow, SIZE), linear(SIZE, wide),
        1 + 0.2 * draw(SIZE), linear(INNER, SIZE), linear(INNER, SIZE), linear(SIZE, INNER),
        head_dim=head_dim, eps=1e-5, q_norm=1 + 0.2 * draw(head_dim) if extras else None,
        k_norm=1 + 0.2 * draw(head_dim) if extras else None,
    )  # fmt: skip


def case_of(lengths: list[int], width: int, weights: LayerWeights) -> Case:
    batch = len(lengths)
    angles = torch.rand(batch, width, weights.head_dim) * 6
    cache = [draw(batch, weights.kv_heads, CAPACITY, weights.head_dim) for _ in range(2)]
    return Case(draw(batch, width, SIZE), weights, angles.cos(), angles.sin(), *cache, torch.tensor(lengths))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


@pytest.fixture(params=["cpu", "reference"])
def backend(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 10), (4, 4, 16), (3, 1, 64)])
@pytest.mark.parametrize("width", [1, 5])
def test_equals_float64(backend, dtype, extras, heads, kv_heads, head_dim, width):
    weights = weights_of(heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, extras=extras)
    case = case_of([0, 17, CAPACITY - width], width, weights)
    exact = case.cloned()
    wanted = reference(**vars(exact), dtype=torch.float64)
    torch.testing.assert_close(case.run(backend), wanted, rtol=2e-5, atol=2e-5)
    for ours, theirs in ((case.k_cache, exact.k_cache), (case.v_cache, exact.v_cache)):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_a_row_has_the_bits_it_would_have_alone():
    case = case_of([4, 0, 31], 6, weights_of(extras=True))
    apart, together = case.cloned(), case.run("cpu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for row in range(3):
            for query in range(6):
                b, at = slice(row, row + 1), slice(query, query + 1)
                step = replace(
                    apart, x=apart.x[b, at], cos=apart.cos[b, at], sin=apart.sin[b, at], k_cache=apart.k_cache[b],
                    v_cache=apart.v_cache[b], seq_lens=apart.seq_lens[b] + query,
                )  # fmt: skip
                assert torch.equal(step.run("cpu")[0, 0], together[row, query]), (row, query)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(apart.k_cache, case.k_cache)
    assert torch.equal(apart.v_cache, case.v_cache)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_share_many_rows_change_no_bit(threads):
    case = case_of([row % 30 for row in range(60)], 16, weights_of(extras=True))
    apart, before = case.cloned(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = case.run("cpu")
        torch.set_num_threads(threads)
        assert torch.equal(apart.run("cpu"), alone)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(apart.k_cache, case.k_cache)
    assert torch.equal(apart.v_cache, case.v_cache)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_packed_weights_give_the_same_bits(backend, dtype):
    case = case_of([4, 0, 31], 6, weights_of(dtype=dtype, extras=True))
    norms, weights, biases, scales, outputs = case.weights.as_lists()
    together = LayerWeights.of_lists(
        norms, [packed(weight) for weight in weights], biases, scales, outputs, case.weights.eps, case.weights.head_dim
    )
    assert together.sizes == case.weights.sizes
    assert torch.equal(replace(case.cloned(), weights=together).run(backend), case.run(backend))


def test_angles_may_be_shared_and_strides_be_any(backend):
    case = case_of([7, 7], 3, weights_of())
    case.cos, case.sin = case.cos[:1], case.sin[:1]
    wanted = replace(case.cloned(), cos=case.cos.repeat(2, 1, 1), sin=case.sin.repeat(2, 1, 1)).run(backend)
    spread = case.cloned()
    spread.x = torch.stack((case.x, case.x), dim=-1)[..., 0]
    spread.k_cache = torch.cat((case.k_cache, case.k_cache), dim=-1)[..., : case.weights.head_dim]
    assert not spread.x.is_contiguous()
    assert torch.equal(spread.run(backend), wanted)
    assert torch.equal(case.run(backend), wanted)


@pytest.mark.parametrize(("value", "wanted"), [(1e4, 1e4), (-1e4, 0.0), (-200.0, 0.0), (0.0, 0.0)])
def test_the_gate_neither_overflows_nor_loses_its_end(backend, value, wanted):
    """With nothing but biases, the layer adds silu(value) to its input."""
    zeros = [(torch.zeros(rows, columns), torch.zeros(rows)) for rows, columns in ((20, 8), (20, 8), (20, 8), (8, 20))]
    gate, up = ((torch.zeros(8, 8), torch.full((8,), number)) for number in (value, 1.0))
    weights = LayerWeights(
        torch.ones(8), *zeros, torch.ones(8), gate, up, (torch.eye(8), None), head_dim=20, eps=1e-5
    )  # fmt: skip
    angles, caches = torch.zeros(1, 1, 20), [torch.zeros(1, 1, 4, 20) for _ in range(2)]
    x = torch.ones(1, 1, 8)
    out = window_layer(x, weights, angles, angles, *caches, torch.tensor([0]), scale=1.0, backend=backend)
    torch.testing.assert_close(out - x, torch.full_like(x, wanted), rtol=1e-6, atol=1e-6)


def test_weights_may_move_and_change_their_type():
    case = case_of([3], 2, weights_of(dtype=torch.bfloat16))
    before = case.cloned().run("cpu")
    for tensor in case.weights.tensors:
        tensor.data = tensor.data.float().clone()
    assert torch.equal(case.cloned().run("cpu"), before)
    case.weights.tensors[0].data.zero_()
    assert not torch.equal(case.run("cpu"), before)


def test_is_an_operation_of_torch(backend):
    case = case_of([3, 11], 2, weights_of(extras=True))
    torch.library.opcheck(
        torch.ops.pearl.window_layer_,
        (case.x, *case.weights.as_lists(), case.weights.eps, case.cos, case.sin, case.k_cache, case.v_cache,
         case.seq_lens, case.scale, backend),
    )  # fmt: skip
    compiled = torch.compile(lambda x: 2 * replace(case, x=x).run(backend), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(case.x), 2 * case.run(backend))


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_this_processor_runs(level):
    program = """
import torch
from tests.kernels.test_window_layer import case_of, weights_of
torch.manual_seed(0)
case = case_of([0, 17], 3, weights_of(extras=True))
torch.testing.assert_close(case.cloned().run("cpu"), case.run("reference"), rtol=2e-5, atol=2e-5)
"""
    run_at(level, program)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3, 8)}, r"x must be \(batch, width, size=40\) float32, got torch.float32 of \(2, 3, 8\)"),
        ({"x": torch.zeros(2, 3, SIZE).half()}, r"x must be .* got torch.float16"),
        ({"cos": torch.zeros(2, 3, 8)}, r"cos must be \(batch=2, width=3, head_dim=10\) float32"),
        ({"sin": torch.zeros(1, 3, 10)}, r"sin must be \(batch=2, width=3, head_dim=10\) float32"),
        ({"k_cache": torch.zeros(2, 3, 50, 10)}, r"k_cache must be \(batch=2, kv_heads=2, capacity=50, head_dim=10\)"),
        ({"v_cache": torch.zeros(2, 2, 49, 10)}, r"v_cache must be \(batch=2, kv_heads=2, capacity=50, head_dim=10\)"),
        ({"v_cache": torch.zeros(2, 2, 10, 50).transpose(2, 3)}, r"v_cache must have a contiguous last dimension"),
        ({"seq_lens": torch.zeros(2, dtype=torch.int32)}, r"seq_lens must be \(batch=2,\) int64"),
        ({"k_cache": torch.zeros(2, 2, 2, 10), "v_cache": torch.zeros(2, 2, 2, 10)}, r"a capacity of at least width=3"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match="window_layer: .*" + message):
        replace(case_of([3, 11], 3, weights_of()), **changes).run()


@pytest.mark.parametrize(
    ("place", "tensor", "message"),
    [
        (("linears", 3), torch.zeros(SIZE, 61), r"output must be of shape \(40, 60\), got \(40, 61\)"),
        (("linears", 1), torch.zeros(20, SIZE).long(), r"k must be \(outputs, inputs\) float32, bfloat16, float16"),
        (("linears", 0), torch.zeros(15, SIZE), r"head_dim must be even and divide the 15 outputs of q"),
        (
            ("norms", 1),
            torch.zeros(41),
            r"mlp_norm must be \(40,\) float32 and contiguous, got torch.float32 of \(41,\)",
        ),
        (("norms", 2), torch.zeros(10).half(), r"q_norm must be \(10,\) float32 and contiguous, got torch.float16"),
        (("norms", 1), torch.zeros(40, device="meta"), r"mlp_norm must be on cpu, got meta"),
    ],
)
def test_a_mistake_in_the_weights_is_named(place, tensor, message):
    norms, weights, biases, scales, outputs = weights_of().as_lists()
    kind, index = place
    if kind == "linears":
        weights[index], outputs[index] = tensor, len(tensor)
    else:
        norms[index] = tensor
    with pytest.raises(ValueError, match="window_layer: " + message):
        LayerWeights.of_lists(norms, weights, biases, scales, outputs, 1e-5, 10)


def test_heads_must_be_groups():
    with pytest.raises(ValueError, match=r"q must have a multiple of k's 4 heads, got 6 heads"):
        weights_of(kv_heads=4)
