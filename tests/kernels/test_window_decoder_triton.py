"""A whole decoder, and a chain of drafts, by Triton's kernels and torch's products; here they are interpreted."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import DecoderWeights, LayerWeights, Linear, SampleOutput
from tests.kernels.test_draft_chain import (
    D2T,
    STEPS,
    STRIDED_D2T,
    assert_rows_may_have_fewer_tokens,
    induction_of,
    new_chain,
    one_by_one,
)
from tests.kernels.test_draft_chain import Case as ChainCase
from tests.kernels.test_draft_chain import chain_of as any_chain
from tests.kernels.test_triton_launches import TorchOps
from tests.kernels.test_window_decoder import (
    OUTPUTS,
    assert_nearer_ends_are_taken,
    case_of,
    decoder_of,
    float64_logits,
    of_type,
)
from tests.kernels.test_window_layer import CAPACITY, draw, weights_of
from tests.kernels.test_window_layer_triton import NOTHING, TOLERANCES, layer_of_type

NO_KERNEL = (*NOTHING, "select", "slice", "transpose", "unsqueeze", "contiguous", "expand")
LAYER = ["norm_rows", "place_heads", "attention", "norm_rows", "gate_rows"]


@pytest.fixture(autouse=True)
def _interpreted() -> None:
    if torch.cuda.is_available() or not pearl_kernels.backends()["triton"].available:
        pytest.skip("Triton is not interpreted here")
    torch.manual_seed(3)


def two_layers() -> list[LayerWeights]:
    return [weights_of(extras=True), weights_of()]


def chain_of(*, induces: bool = False, **options: Any) -> ChainCase:
    case = replace(any_chain(**options), weights=decoder_of(*two_layers()))
    case.k_caches, case.v_caches = case.k_caches[:2], case.v_caches[:2]
    if induces:
        case.options |= induction_of(case)
    return case


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("keep", "bias"), [(0, False), (1, False), (3, True)])
def test_equals_float64(dtype, keep, bias):
    weights = decoder_of(*two_layers())
    if bias:
        head = weights.head._replace(bias=draw(OUTPUTS))
        weights = DecoderWeights(weights.embedding, weights.layers, weights.norm, head, eps=weights.eps)
    case = of_type(replace(case_of([0, 17, CAPACITY - 3], 3, weights), keep=keep), dtype)
    exact = case.cloned()
    wanted = float64_logits(exact)
    got, within = case.run("triton"), 2 * TOLERANCES[dtype]
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), wanted, rtol=within, atol=within)
    for ours, theirs in ((case.k_caches, exact.k_caches), (case.v_caches, exact.v_caches)):
        torch.testing.assert_close(ours, theirs, rtol=within, atol=within)


def test_tokens_lengths_and_positions_out_of_range_are_taken_to_the_nearer_end():
    assert_nearer_ends_are_taken(decoder_of(*two_layers()), "triton")


def test_an_embedding_of_another_type_and_caches_of_any_strides_do():
    case = case_of([7, 2], 3, decoder_of(*two_layers(), dtype=torch.bfloat16))
    weights = case.weights
    rows = Linear(weights.head.weight.float())
    case.weights = DecoderWeights(weights.embedding, weights.layers, weights.norm, rows, eps=weights.eps)
    wide = replace(case.cloned(), weights=DecoderWeights(
        weights.embedding.float(), weights.layers, weights.norm, rows, eps=weights.eps
    ))  # fmt: skip
    wanted = wide.run("triton")
    case.v_caches = case.v_caches.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(case.run("triton"), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_head_of_another_type_is_refused(dtype):
    with pytest.raises(ValueError, match=r"triton backend: head must be torch.float32 like the norms, and not packed"):
        case_of([3], 2, decoder_of(*two_layers(), dtype=dtype)).run("triton")


@pytest.mark.parametrize(
    ("width", "induces", "options"),
    [(1, True, {"d2t": STRIDED_D2T}), (3, False, {"epochs": torch.tensor([5, 1 << 40, 2]), "vocab": 23})],
    ids=["strided d2t", "epochs and fewer ids"],
)
def test_a_chain_has_the_bits_of_its_operations(width, induces, options, monkeypatch):
    case = replace(chain_of(width=width, induces=induces, **options), steps=3)
    apart = case.cloned()
    monkeypatch.setenv("PEARL_BACKEND", "triton")
    drawn, rows = one_by_one(apart, "triton")
    found, logits = case.run("triton")
    assert torch.equal(logits, torch.stack(rows, dim=1))
    for column, mine in zip(zip(*drawn, strict=True), (found.tokens, *found.stats, found.status), strict=True):
        assert torch.equal(mine, torch.stack(column, dim=1))
    assert torch.equal(case.k_caches, apart.k_caches)
    assert torch.equal(case.v_caches, apart.v_caches)
    if induces:
        assert torch.equal(case.options["text"], apart.options["text"])


@pytest.mark.parametrize("keeps", [False, True])
def test_a_chain_is_written_where_the_caller_wants_it(keeps):
    case, out = chain_of(d2t=D2T, induces=True), new_chain(logits=keeps)
    wanted = case.cloned().run("triton")
    case.options["out"] = out
    assert case.run("triton") is out
    assert torch.equal(out.drawn.tokens, wanted.drawn.tokens)
    assert torch.equal(out.drawn.stats.lse, wanted.drawn.stats.lse)
    if keeps:
        assert torch.equal(out.logits, wanted.logits)


def test_rows_of_a_chain_may_have_fewer_tokens():
    assert_rows_may_have_fewer_tokens(chain_of(width=3, d2t=D2T, induces=True), "triton")


class Launches(list[str]):
    """Kernels of the layers and the decoder are counted and not run, and so are attention, `sample` and `induce_`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        def attend(queries: Tensor, *_: object, **__: object) -> Tensor:
            self.append("attention")
            return queries

        patch.setattr(importlib.import_module("pearl_kernels.window_layer._triton"), "window_attention", attend)

        def sample(*_: object, out: SampleOutput, **__: object) -> None:
            self.append("sample")
            out.tokens.numpy()[:] = 0

        chain = importlib.import_module("pearl_kernels.draft_chain._triton")
        patch.setattr(chain, "sample", sample)
        patch.setattr(chain, "induce_", lambda *_, **__: self.append("induce_"))
        kernels = importlib.import_module("pearl_kernels._triton.decoder")
        patch.setattr(type(kernels.enter_rows), "run", lambda kernel, *_, **__: self.append(kernel.__name__))


def operations(ops: TorchOps) -> list[str]:
    names = [name.removeprefix("aten.").partition(".")[0] for name in ops.names]
    return [name for name in names if name not in NO_KERNEL]


@pytest.mark.parametrize("keep", [0, 3])
def test_nothing_runs_beside_the_layers_but_two_kernels_and_a_product(keep, monkeypatch):
    layers = [layer_of_type(weights_of(), torch.float32, joins=True) for _ in range(2)]
    case = replace(case_of([4, 0, 31], 3, decoder_of(*layers)), keep=keep)
    launches = Launches(monkeypatch)
    with TorchOps() as ops:
        case.run("triton")
    if keep:
        assert launches == ["enter_rows", *LAYER, *LAYER, "norm_rows"]
        assert operations(ops) == ["mm", "addmm_"] * 4 + ["mm"]
    else:
        assert launches == ["enter_rows", *LAYER, "norm_rows", "place_heads"]
        assert operations(ops) == ["mm", "addmm_"] * 2 + ["mm"]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("induces", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_step_is_a_decoder_and_its_draw(ragged, induces, mapped, monkeypatch):
    """As CUDA tensors take it: on a CPU lengths are looked at too."""
    case = chain_of(width=1 + ragged, induces=induces, **({"d2t": D2T} if mapped else {}))
    case.options["lengths"] = torch.tensor([2, 1, 2]) if ragged else None
    layers = [layer_of_type(weights_of(), torch.float32, joins=True) for _ in range(2)]
    case.weights, case.options["out"] = decoder_of(*layers), new_chain()
    launches = Launches(monkeypatch)
    monkeypatch.setattr(pearl_kernels.checks, "readable", lambda value: False)
    with TorchOps() as ops:
        case.run("triton")
    assert launches == ["enter_rows", *LAYER, *LAYER, "norm_rows", *["induce_"] * induces, "sample"] * STEPS
    layers_only = ["mm", "addmm_"] * 4
    first = [*layers_only, *["sub", "gather"] * ragged, "mm"]
    assert operations(ops) == first + [*layers_only, "mm"] * (STEPS - 1) + ["index_select"] * mapped
