"""A whole decoder over a window, against the operations that it is equivalent to, and float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from pearl_kernels import (
    DecoderWeights,
    LayerWeights,
    Linear,
    packed,
    quantized,
    window_decoder,
    window_layer,
    window_linear,
    window_norm,
)
from pearl_kernels.window_layer.reference import window_layer as exact_layer
from tests.kernels.levels import LEVELS, run_at
from tests.kernels.test_window_layer import CAPACITY, SIZE, draw, weights_of
from tests.kernels.test_window_layer_triton import layer_of_type

VOCAB, OUTPUTS, HEAD_DIM = 30, 41, 10


@dataclass
class WindowCase:
    """What the decoder and a chain of drafts are both given."""

    tokens: Tensor
    weights: DecoderWeights
    cos: Tensor
    sin: Tensor
    k_caches: Tensor
    v_caches: Tensor
    seq_lens: Tensor
    scale: float = 0.3

    def cloned(self) -> Any:
        return replace(self, k_caches=self.k_caches.clone(), v_caches=self.v_caches.clone())


@dataclass
class Case(WindowCase):
    keep: int = 2

    def run(self, backend: str | None = None) -> Tensor:
        return window_decoder(**vars(self), backend=backend)


def decoder_of(*layers: LayerWeights, dtype: torch.dtype = torch.float32) -> DecoderWeights:
    """dtype: of the embedding, and of the head; int8 of the head alone"""
    embedding, rows = draw(VOCAB, SIZE), draw(OUTPUTS, SIZE) / SIZE**0.5
    if dtype is torch.int8:
        weight, scale = quantized(rows)
        head = Linear(weight, draw(OUTPUTS), scale)
    else:
        embedding, head = embedding.to(dtype), Linear(rows.to(dtype))
    return DecoderWeights(embedding, layers, 1 + 0.2 * draw(SIZE), head, eps=1e-3)


def case_of(lengths: list[int], width: int, weights: DecoderWeights, positions: int = CAPACITY) -> Case:
    angles = torch.rand(positions, HEAD_DIM) * 6
    caches = [draw(len(weights.layers), len(lengths), weights.kv_heads, CAPACITY, HEAD_DIM) for _ in range(2)]
    tokens = torch.randint(VOCAB, (len(lengths), width))
    return Case(tokens, weights, angles.cos(), angles.sin(), *caches, torch.tensor(lengths))


def of_type(case: Any, dtype: torch.dtype) -> Any:
    """The case with everything in it of one type."""
    given, head = case.weights, case.weights.head
    bias = None if head.bias is None else head.bias.to(dtype)
    weights = DecoderWeights(
        given.embedding.to(dtype), [layer_of_type(layer, dtype) for layer in given.layers], given.norm.to(dtype),
        Linear(head.weight.to(dtype), bias), eps=given.eps,
    )  # fmt: skip
    names = ("cos", "sin", "k_caches", "v_caches")
    return replace(case, weights=weights, **{name: getattr(case, name).to(dtype) for name in names})


def three_layers() -> list[LayerWeights]:
    return [weights_of(extras=True), weights_of(dtype=torch.int8), weights_of(dtype=torch.bfloat16)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


@pytest.fixture(params=["cpu", "reference"])
def backend(request) -> str:
    return request.param


def float64_logits(case: Case) -> Tensor:
    """As computed in float64; the caches are written to."""
    weights, width = case.weights, case.tokens.shape[1]
    positions = case.seq_lens[:, None] + torch.arange(width)
    x = weights.embedding[case.tokens].double()
    for layer, k, v in zip(weights.layers, case.k_caches, case.v_caches, strict=True):
        x = exact_layer(
            x, layer, case.cos[positions], case.sin[positions], k, v, case.seq_lens, case.scale, dtype=torch.float64
        ).double()
    x = x[:, width - case.keep :]
    x = x * (x.pow(2).mean(-1, keepdim=True) + weights.eps).rsqrt() * weights.norm.double()
    head = weights.head
    return linear(x, head.widened(torch.float64), None if head.bias is None else head.bias.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("keep", [1, 3])
def test_equals_float64(backend, dtype, keep):
    case = replace(case_of([0, 17, CAPACITY - 3], 3, decoder_of(*three_layers(), dtype=dtype)), keep=keep)
    exact = case.cloned()
    wanted = float64_logits(exact)
    torch.testing.assert_close(case.run(backend), wanted.float(), rtol=5e-5, atol=5e-5)
    torch.testing.assert_close(case.k_caches, exact.k_caches, rtol=5e-5, atol=5e-5)
    torch.testing.assert_close(case.v_caches, exact.v_caches, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("keep", [0, 1, 4])
def test_one_call_has_the_bits_of_the_operations_one_by_one(backend, keep):
    case = replace(case_of([3, 0, 31], 4, decoder_of(*three_layers(), dtype=torch.bfloat16)), keep=keep)
    apart = case.cloned()
    positions = case.seq_lens[:, None] + torch.arange(4)
    cos, sin = case.cos[positions], case.sin[positions]
    x = case.weights.embedding[case.tokens].float()
    for layer, k, v in zip(case.weights.layers, apart.k_caches, apart.v_caches, strict=True):
        x = window_layer(x, layer, cos, sin, k, v, case.seq_lens, scale=case.scale, backend=backend)
    x = window_norm(x[:, 4 - keep :], case.weights.norm, eps=case.weights.eps, backend=backend)
    logits = case.run(backend)
    assert torch.equal(logits, window_linear(x, *case.weights.head, backend=backend))
    assert logits.shape == (3, keep, OUTPUTS)
    assert torch.equal(case.k_caches, apart.k_caches)
    assert torch.equal(case.v_caches, apart.v_caches)


def test_a_row_has_the_bits_it_would_have_alone():
    case = replace(case_of([4, 0, 31], 5, decoder_of(*three_layers())), keep=5)
    apart, together = case.cloned(), case.run("cpu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for row in range(3):
            for query in range(5):
                b = slice(row, row + 1)
                step = replace(
                    apart, tokens=apart.tokens[b, query : query + 1], k_caches=apart.k_caches[:, b],
                    v_caches=apart.v_caches[:, b], seq_lens=apart.seq_lens[b] + query, keep=1,
                )  # fmt: skip
                assert torch.equal(step.run("cpu")[0, 0], together[row, query]), (row, query)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(apart.k_caches, case.k_caches)


def assert_nearer_ends_are_taken(weights: DecoderWeights, backend: str) -> None:
    """For tokens, lengths and positions out of range."""
    case = case_of([CAPACITY + 9, -4], 3, weights, positions=20)
    case.tokens[0], case.tokens[1] = torch.tensor([VOCAB, 3, -1]), torch.tensor([1, 1 << 40, 2])
    near = case.cloned()
    near.tokens = case.tokens.clamp(0, VOCAB - 1)
    near.seq_lens = torch.tensor([CAPACITY - 3, 0])
    near.cos = torch.cat((near.cos, near.cos[-1:].repeat(CAPACITY, 1)))
    near.sin = torch.cat((near.sin, near.sin[-1:].repeat(CAPACITY, 1)))
    assert torch.equal(case.run(backend), near.run(backend))
    assert torch.equal(case.k_caches, near.k_caches)


def test_tokens_lengths_and_positions_out_of_range_are_taken_to_the_nearer_end(backend):
    assert_nearer_ends_are_taken(decoder_of(*three_layers()), backend)


def test_strides_may_be_any(backend):
    case = case_of([7, 2], 3, decoder_of(*three_layers()))
    wanted = case.cloned().run(backend)
    spread = case.cloned()
    spread.tokens = torch.stack((case.tokens, case.tokens), dim=-1)[..., 0]
    spread.cos, spread.sin = case.cos.mT.contiguous().mT, case.sin.mT.contiguous().mT
    spread.k_caches = torch.cat((case.k_caches, case.k_caches), dim=-1)[..., :HEAD_DIM]
    spread.v_caches = case.v_caches.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(spread.run(backend), wanted)


def test_weights_may_move_and_change_their_type():
    weights = decoder_of(*three_layers(), dtype=torch.bfloat16)
    case = case_of([3], 2, weights)
    before = case.cloned().run("cpu")
    tensors = [weights.embedding, weights.norm, weights.head.weight, *weights.layers[2].tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float().clone()
    assert torch.equal(case.cloned().run("cpu"), before)
    for tensor in tensors:
        changed, kept = case.cloned(), tensor.data.clone()
        tensor.data *= 1.5
        assert not torch.equal(changed.run("cpu"), before)
        tensor.data.copy_(kept)
    together = replace(case, weights=DecoderWeights(
        weights.embedding, weights.layers, weights.norm, weights.head.packed(), eps=weights.eps
    ))  # fmt: skip
    assert torch.equal(together.run("cpu"), before)


def test_weights_that_are_held_stay_where_they_are_at_the_first_call():
    """Their values may change there; tensors that are elsewhere since, or are gone, are no longer read."""
    weights = decoder_of(*three_layers(), dtype=torch.bfloat16)
    case = case_of([3], 2, weights)
    held = replace(case, weights=weights.held())
    weights.norm.data = weights.norm.data * 1.25
    before = case.cloned().run("cpu")
    assert torch.equal(held.cloned().run("cpu"), before)
    memory = {storage.data_ptr() for storage in held.weights.memory}
    tensors = [weights.embedding, weights.norm, weights.head.weight, *weights.layers[2].tensors]
    assert all(tensor.untyped_storage().data_ptr() in memory for tensor in tensors)
    for tensor in tensors:
        kept = tensor.data.clone()
        tensor.data *= 1.5
        changed = held.cloned().run("cpu")
        assert not torch.equal(changed, before)
        assert torch.equal(changed, case.cloned().run("cpu"))
        tensor.data.copy_(kept)
    for tensor in tensors:
        tensor.data = torch.full_like(tensor, torch.nan)
    assert torch.equal(held.cloned().run("cpu"), before)
    assert case.run("cpu").isnan().all()


def test_can_be_compiled(backend):
    case = case_of([3, 11], 2, decoder_of(*three_layers()))
    wanted = case.cloned().run(backend)
    compiled = torch.compile(
        lambda tokens: 2 * replace(case, tokens=tokens).run(backend), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(case.tokens), 2 * wanted)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_this_processor_runs(level):
    program = """
import torch
from tests.kernels.test_window_decoder import case_of, decoder_of, three_layers
torch.manual_seed(0)
case = case_of([0, 17], 3, decoder_of(*three_layers(), dtype=torch.float16))
torch.testing.assert_close(case.cloned().run("cpu"), case.run("reference"), rtol=5e-5, atol=5e-5)
"""
    run_at(level, program)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(2, 3)}, r"tokens must be \(batch, width\) int64 on cpu, got torch.float32 of \(2, 3\)"),
        ({"tokens": torch.zeros(6, dtype=torch.int64)}, r"tokens must be .* got torch.int64 of \(6,\)"),
        ({"cos": torch.zeros(8, 8)}, r"cos must be \(positions=8, head_dim=10\) float32"),
        ({"cos": torch.zeros(0, 10)}, r"cos must be \(positions=1, head_dim=10\) float32"),
        ({"sin": torch.zeros(8, 10)}, r"sin must be \(positions=50, head_dim=10\) float32"),
        ({"k_caches": torch.zeros(2, 2, 2, 50, 10)}, r"k_caches must be \(layers=3, batch=2, kv_heads=2, capacity=50,"),
        ({"v_caches": torch.zeros(3, 2, 2, 49, 10)}, r"v_caches must be \(layers=3, batch=2, kv_heads=2, capacity=50,"),
        ({"v_caches": torch.zeros(3, 2, 2, 10, 50).mT}, r"v_caches must have a contiguous last dimension"),
        ({"seq_lens": torch.zeros(2, dtype=torch.int32)}, r"seq_lens must be \(batch=2,\) int64"),
        ({"keep": 4}, r"keep must be from 0 to width=3, got 4"),
        ({"keep": -1}, r"keep must be from 0 to width=3, got -1"),
        (
            {name: torch.zeros(3, 2, 2, 2, 10) for name in ("k_caches", "v_caches")},
            r"k_caches must have a capacity of at least width=3, got 2",
        ),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match="window_decoder: .*" + message):
        replace(case_of([3, 11], 3, decoder_of(*three_layers())), **changes).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, r"layers must be at least 1, got 0"),
        ({"embedding": torch.zeros(5, 41)}, r"embedding must be \(vocab, size=40\) float32, .* of \(5, 41\)"),
        ({"embedding": torch.zeros(5, 40).char()}, r"embedding must be .* got torch.int8 of \(5, 40\)"),
        ({"embedding": torch.zeros(0, 40)}, r"embedding must be .* got torch.float32 of \(0, 40\)"),
        ({"embedding": torch.zeros(40, 5).mT}, r"embedding must be .* contiguous"),
        ({"embedding": torch.zeros(5, 40, device="meta")}, r"embedding must be on cpu, got meta"),
        (
            {"norm": torch.zeros(40).half()},
            r"norm must be \(40,\) float32 and contiguous, got torch.float16 of \(40,\)",
        ),
        ({"head": (torch.zeros(7, 41), None)}, r"head must be of shape \(outputs, 40\), got \(7, 41\)"),
        ({"head": (torch.zeros(7, 40).long(), None)}, r"head must be \(outputs, inputs\) float32, bfloat16"),
        ({"eps": -1.0}, r"eps must be at least 0, got -1.0"),
    ],
)
def test_a_mistake_in_the_weights_is_named(changes, message):
    given = {"embedding": draw(5, SIZE), "layers": three_layers(), "norm": draw(SIZE), "head": (draw(7, SIZE), None)}
    with pytest.raises(ValueError, match="window_decoder: " + message):
        DecoderWeights(**{**given, "eps": 1e-5, **changes})


def test_layers_must_be_alike():
    with pytest.raises(ValueError, match=r"layers must have the sizes .* \(40, 6, 2, 10, 72\), .* got \(40, 4, .*32"):
        decoder_of(weights_of(), weights_of(heads=4))
    with pytest.raises(ValueError, match=r"layers must have .* \(40, 6, .*\), for torch.float32, got .*bfloat16"):
        decoder_of(weights_of(), layer_of_type(weights_of(), torch.bfloat16))


def test_the_cpu_computes_in_float32():
    case = of_type(replace(case_of([3], 1, decoder_of(weights_of())), keep=1), torch.bfloat16)
    assert case.run("reference").dtype is torch.bfloat16
    with pytest.raises(ValueError, match=r"cpu backend: norms and biases must be float32, got torch.bfloat16"):
        case.run("cpu")


def test_the_type_and_device_that_torch_makes_tensors_of_do_not_matter():
    case = case_of([3, 0], 2, decoder_of(*three_layers(), dtype=torch.bfloat16))
    wanted = case.cloned().run("cpu")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = case.run("cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype is torch.float32
    assert torch.equal(got, wanted)


def test_packed_weights_give_the_same_bits(backend):
    case = case_of([4, 0, 31], 3, decoder_of(*three_layers(), dtype=torch.bfloat16))
    layers = []
    for layer in case.weights.layers:
        norms, weights, *rest = layer.as_lists()
        layers.append(LayerWeights.of_lists(norms, [packed(weight) for weight in weights], *rest, layer.eps, HEAD_DIM))
    weights = case.weights
    together = DecoderWeights(weights.embedding, layers, weights.norm, weights.head.packed(), eps=weights.eps)
    assert torch.equal(replace(case.cloned(), weights=together).run(backend), case.run(backend))
