"""A decoder layer by Triton's kernels and torch's products, against float64; here they are interpreted."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import LayerWeights
from pearl_kernels.window_layer.reference import window_layer as reference
from tests.kernels.test_triton_launches import TorchOps
from tests.kernels.test_window_layer import CAPACITY, Case, case_of, weights_of

NOTHING = ("empty", "empty_like", "new_empty", "view", "_unsafe_view", "t", "as_strided", "detach", "alias")  # to run
TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@pytest.fixture(autouse=True)
def _interpreted() -> None:
    if torch.cuda.is_available() or not pearl_kernels.backends()["triton"].available:
        pytest.skip("Triton is not interpreted here")
    torch.manual_seed(3)


def joined(tensors: list[Tensor]) -> list[Tensor]:
    """The same, as neighbouring parts of one tensor."""
    return list(torch.cat(tensors).split([len(tensor) for tensor in tensors]))


def layer_of_type(layer: LayerWeights, dtype: torch.dtype, *, joins: bool = False) -> LayerWeights:
    """The layer with everything in it of one type; joins: as parts of one tensor what is given the same rows."""
    norms, weights, biases, scales, outputs = layer.as_lists()

    def cast(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(dtype)

    weights, biases = list(map(cast, weights)), list(map(cast, biases))
    if joins:
        for each in (weights, biases):
            for group in (slice(0, 3), slice(4, 6)):
                if each[0] is not None:
                    each[group] = joined(each[group])
    return LayerWeights.of_lists(list(map(cast, norms)), weights, biases, scales, outputs, layer.eps, layer.head_dim)


def of_type(case: Case, dtype: torch.dtype, *, joins: bool = False) -> Case:
    """The case with everything in it of one type."""
    weights, names = layer_of_type(case.weights, dtype, joins=joins), ("x", "cos", "sin", "k_cache", "v_cache")
    return replace(case, weights=weights, **{name: getattr(case, name).to(dtype) for name in names})


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 10), (4, 4, 16), (3, 1, 64)])
@pytest.mark.parametrize("width", [1, 5])
def test_equals_float64(dtype, extras, heads, kv_heads, head_dim, width):
    weights = weights_of(heads=heads, kv_heads=kv_heads, head_dim=head_dim, extras=extras)
    case = of_type(case_of([0, 17, CAPACITY - width], width, weights), dtype)
    exact, tolerance = case.cloned(), TOLERANCES[dtype]
    given = case.x.clone()
    wanted = reference(**{**vars(exact), "x": exact.x.double()}, dtype=torch.float64)
    got = case.run("triton")
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)
    for ours, theirs in ((case.k_cache, exact.k_cache), (case.v_cache, exact.v_cache)):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(case.x, given), "what others may still look at was written to"


@pytest.mark.parametrize("absent", [2, 3])
def test_queries_may_be_normed_without_keys_and_keys_without_queries(absent):
    norms, *rest = weights_of(extras=True).as_lists()
    norms[absent] = None
    case = case_of([4, 0, 31], 3, LayerWeights.of_lists(norms, *rest, 1e-5, 10))
    exact = case.cloned()
    torch.testing.assert_close(case.run("triton"), reference(**vars(exact)), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(case.k_cache, exact.k_cache, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("extras", [False, True])
def test_weights_that_are_parts_of_one_give_the_same(extras, monkeypatch):
    case = case_of([4, 0, 31], 3, weights_of(extras=extras))
    apart, together = of_type(case.cloned(), torch.float32), of_type(case.cloned(), torch.float32, joins=True)
    wanted = apart.run("triton")
    monkeypatch.setattr(torch, "cat", None)  # which only weights that are apart need
    torch.testing.assert_close(together.run("triton"), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("without", [[0], [0, 1], [1], [4], [5]])
@pytest.mark.parametrize("joins", [False, True])
def test_some_layers_may_have_biases_and_others_none(without, joins):
    case = of_type(case_of([4, 0, 31], 3, weights_of(extras=True)), torch.float32, joins=joins)
    norms, weights, biases, *rest = case.weights.as_lists()
    biases = [None if place in without else bias for place, bias in enumerate(biases)]
    case.weights = LayerWeights.of_lists(norms, weights, biases, *rest, case.weights.eps, case.weights.head_dim)
    exact = case.cloned()
    torch.testing.assert_close(case.run("triton"), reference(**vars(exact)), rtol=2e-5, atol=2e-5)


def test_heads_of_a_cache_may_lie_far_apart():
    case = of_type(case_of([4], 2, weights_of(heads=3, kv_heads=3)), torch.float16)
    exact, far = case.cloned(), 2**30 + 64
    memory = case.k_cache.new_empty(2 * far + case.k_cache[0, 0].numel())  # of which hardly any is ever touched
    wide = memory.as_strided(case.k_cache.shape, (far, far, *case.k_cache.stride()[2:]))
    case.k_cache = wide.copy_(case.k_cache)
    torch.testing.assert_close(case.run("triton"), exact.run("triton"))
    torch.testing.assert_close(case.k_cache, exact.k_cache)


def test_neighbours_by_chance_are_no_parts_of_one():
    case = of_type(case_of([4], 2, weights_of()), torch.float32, joins=True)
    wanted = case.cloned().run("triton")
    norms, weights, *rest = case.weights.as_lists()
    weights[1], weights[2] = weights[2], weights[1].clone()
    swapped = LayerWeights.of_lists(norms, weights, *rest, case.weights.eps, case.weights.head_dim)
    assert not torch.equal(replace(case.cloned(), weights=swapped).run("triton"), wanted)
    exact = replace(case.cloned(), weights=swapped)
    torch.testing.assert_close(
        replace(case, weights=swapped).run("triton"), reference(**vars(exact)), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("extras", [False, True])
def test_nothing_runs_but_four_kernels_four_products_and_attention(extras, monkeypatch):
    case = of_type(case_of([4, 0, 31], 3, weights_of(extras=extras)), torch.float32, joins=True)
    launches: list[str] = []

    def attend(queries: Tensor, *_: object, **__: object) -> Tensor:
        launches.append("attention")
        return queries

    layer = importlib.import_module("pearl_kernels.window_layer._triton")
    monkeypatch.setattr(layer, "window_attention", attend)
    kernels = importlib.import_module("pearl_kernels._triton.layer")
    for kernel in (each for each in vars(kernels).values() if hasattr(each, "arg_names")):
        monkeypatch.setattr(type(kernel), "run", lambda kernel, *_, **__: launches.append(kernel.__name__))
    with TorchOps() as ops:
        case.run("triton")
    assert launches == ["norm_rows", "place_heads", "attention", "norm_rows", "gate_rows"]
    names = [name.removeprefix("aten.").partition(".")[0] for name in ops.names]
    product = "addmm" if extras else "mm"
    biases = ["add_"] * extras
    wanted = [product, "addmm_", *biases] * 2
    assert [name for name in names if name not in NOTHING] == wanted


def test_lengths_are_taken_to_what_the_cache_has_room_for():
    case = case_of([-3, CAPACITY], 4, weights_of())
    inside = replace(case.cloned(), seq_lens=torch.tensor([0, CAPACITY - 4]))
    assert torch.equal(case.run("triton"), inside.run("triton"))
    assert torch.equal(case.k_cache, inside.k_cache)


def test_angles_may_be_shared_and_strides_be_any():
    case = case_of([7, 7], 3, weights_of())
    case.cos, case.sin = case.cos[:1], case.sin[:1]
    wanted = replace(case.cloned(), cos=case.cos.repeat(2, 1, 1), sin=case.sin.repeat(2, 1, 1)).run("triton")
    spread = case.cloned()
    spread.x = torch.stack((case.x, case.x), dim=-1)[..., 0]
    spread.k_cache = torch.cat((case.k_cache, case.k_cache), dim=-1)[..., : case.weights.head_dim]
    assert torch.equal(spread.run("triton"), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_weights_of_another_type_are_refused(dtype):
    with pytest.raises(ValueError, match=r"triton backend: weights must be .*float32 like x, and not packed"):
        case_of([3], 2, weights_of(dtype=dtype)).run("triton")


def test_rows_of_16_bits_are_not_for_the_cpu_backend():
    with pytest.raises(ValueError, match=r"cpu backend: x must be float32, got .*bfloat16"):
        of_type(case_of([3], 2, weights_of()), torch.bfloat16).run("cpu")
