"""`window_layer` on a GPU, at the sizes of real models, and models that run it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.device import runner
from pearl_decode.layer import WindowDecoderLayer
from pearl_decode.norm import WindowNorm
from pearl_decode.window_model import WHOLE
from pearl_kernels import (
    DecoderWeights,
    DraftChain,
    LayerWeights,
    Linear,
    Purpose,
    RowStats,
    SampleOutput,
    SamplingTensors,
    draft_chain,
    induce_,
    sample,
    window_decoder,
    window_layer,
    window_norm,
)
from pearl_kernels.window_layer.reference import window_layer as reference
from tests.gpu.test_decoding_lanes import PROMPTS, DeviceDecoder, pair, texts

pytestmark = pytest.mark.gpu

# size, inner, heads, kv_heads, head_dim, and whether queries and keys are normed
SHAPES = {
    "llama-8b": (4096, 14336, 32, 8, 128, False),
    "llama-1b": (2048, 8192, 32, 8, 64, False),
    "qwen3-0.6b": (1024, 3072, 16, 8, 128, True),
    "smollm2-135m": (576, 1536, 9, 3, 64, False),
}
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the greatest number


def layer_of(name: str, dtype: torch.dtype, gpu: torch.device) -> LayerWeights:
    size, inner, heads, kv_heads, head_dim, normed = SHAPES[name]
    generator = torch.Generator(gpu).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator, device=gpu)).to(dtype)

    def linear(outputs: int, inputs: int) -> Linear:
        return Linear(draw(outputs, inputs, scale=inputs**-0.5))

    return LayerWeights(
        1 + draw(size, scale=0.1), linear(heads * head_dim, size), linear(kv_heads * head_dim, size),
        linear(kv_heads * head_dim, size), linear(size, heads * head_dim), 1 + draw(size, scale=0.1),
        linear(inner, size), linear(inner, size), linear(size, inner), head_dim=head_dim, eps=1e-5,
        q_norm=1 + draw(head_dim, scale=0.1) if normed else None,
        k_norm=1 + draw(head_dim, scale=0.1) if normed else None,
    )  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("width", [1, 5, 16])
def test_equals_the_reference(name: str, dtype: torch.dtype, width: int, gpu: torch.device) -> None:
    weights = layer_of(name, dtype, gpu)
    batch, capacity, head_dim = 3, 700, weights.head_dim
    generator = torch.Generator(gpu).manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=gpu).to(dtype)

    angles = torch.rand(batch, width, head_dim, generator=generator, device=gpu) * 6
    caches = [draw(batch, weights.kv_heads, capacity, head_dim) for _ in range(2)]
    rest = (angles.cos().to(dtype), angles.sin().to(dtype))
    starts = torch.tensor([0, 300, capacity - width], device=gpu)
    x, scale = draw(batch, width, weights.size), head_dim**-0.5
    exact = [cache.clone() for cache in caches]
    wanted = reference(x, weights, *rest, *exact, starts, scale)
    got = window_layer(x, weights, *rest, *caches, starts, scale=scale, backend="triton")
    within = TOLERANCES[dtype]
    assert (got - wanted).abs().max() <= within * wanted.abs().max()
    for ours, theirs in zip(caches, exact, strict=True):
        assert (ours - theirs).abs().max() <= within * theirs.abs().max()


@pytest.mark.parametrize("size", [5, 576, 4096, 16384])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_norms_equal_the_reference(size: int, dtype: torch.dtype, gpu: torch.device) -> None:
    generator = torch.Generator(gpu).manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator, device=gpu).to(dtype) for shape in ((3, 7, size), (size,)))
    got, wanted = (window_norm(x, weight, eps=1e-6, offset=1.0, backend=name) for name in ("triton", "reference"))
    assert (got - wanted).abs().max() <= TOLERANCES[dtype] * wanted.abs().max()


def decoder_of(name: str, dtype: torch.dtype, layers: int, gpu: torch.device) -> DecoderWeights:
    vocab, size = 5000, SHAPES[name][0]
    generator = torch.Generator(gpu).manual_seed(1)
    embedding, head = (torch.randn(vocab, size, generator=generator, device=gpu).to(dtype) for _ in range(2))
    norm = torch.ones(size, device=gpu, dtype=dtype)
    return DecoderWeights(
        embedding, [layer_of(name, dtype, gpu) for _ in range(layers)], norm, (head / size**0.5, None), eps=1e-5
    )


def window_of(weights: DecoderWeights, width: int, gpu: torch.device) -> dict[str, Any]:
    """What a decoder and a chain of drafts are both given."""
    batch, capacity, dtype = 3, 700, weights.dtype
    generator = torch.Generator(gpu).manual_seed(2)
    angles = torch.rand(capacity, weights.head_dim, generator=generator, device=gpu) * 6
    shape = len(weights.layers), batch, weights.kv_heads, capacity, weights.head_dim
    caches = [torch.randn(shape, generator=generator, device=gpu).to(dtype) for _ in range(2)]
    return {
        "tokens": torch.randint(5000, (batch, width), generator=generator, device=gpu),
        "weights": weights,
        "cos": angles.cos().to(dtype),
        "sin": angles.sin().to(dtype),
        "k_caches": caches[0],
        "v_caches": caches[1],
        "seq_lens": torch.tensor([0, 300, capacity - width - 3], device=gpu),
        "scale": weights.head_dim**-0.5,
    }


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("width", "keep"), [(1, 1), (5, 5), (16, 1), (16, 0)])
def test_a_decoder_equals_the_reference(
    name: str, dtype: torch.dtype, width: int, keep: int, gpu: torch.device
) -> None:
    given = window_of(decoder_of(name, dtype, 2, gpu), width, gpu)
    exact = given | {key: given[key].clone() for key in ("k_caches", "v_caches")}
    wanted = window_decoder(**exact, keep=keep, backend="reference")
    got = window_decoder(**given, keep=keep)
    within = 2 * TOLERANCES[dtype]
    if keep:
        assert (got - wanted).abs().max() <= within * wanted.abs().max()
    for key in ("k_caches", "v_caches"):
        assert (given[key] - exact[key]).abs().max() <= within * exact[key].abs().max()


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("keeps", [False, True])
def test_a_chain_is_replayed_with_fresh_draws(dtype: torch.dtype, keeps: bool, gpu: torch.device) -> None:
    """As it is drawn operation by operation; with induction, and ids of its own."""
    batch, steps, weights = 3, 4, decoder_of("smollm2-135m", dtype, 2, gpu)
    given = window_of(weights, 1, gpu)
    d2t = torch.arange(5000, device=gpu) * 2
    params = SamplingTensors.make(batch, temperature=[0.0, 0.8, 1.3], seed=[1, 2, 3], device=gpu)
    text = torch.randint(9, (batch, 700), device=gpu)
    strengths, epochs = torch.tensor([1.0, 3.0], device=gpu), torch.tensor([1, 1, 1], device=gpu)
    threshold, lse = (torch.zeros(steps, batch, device=gpu).mT for _ in range(2))
    ids, status = (torch.zeros(steps, batch, device=gpu, dtype=kind).mT for kind in (torch.int64, torch.int32))
    logits = torch.zeros(steps, batch, 5000, device=gpu, dtype=dtype).transpose(0, 1) if keeps else None
    out = DraftChain(SampleOutput(ids, RowStats(threshold, lse), status), logits)

    def draw() -> None:
        draft_chain(
            **given, params=params, steps=steps, epochs=epochs, d2t=d2t, text=text, strengths=strengths, out=out
        )

    draw()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        draw()
    seen = set()
    for epoch in (1, 2, 3):
        epochs.fill_(epoch)
        graph.replay()
        again, tokens, starts = {**given}, given["tokens"], given["seq_lens"]
        for step in range(steps):
            again |= {"tokens": tokens, "seq_lens": starts}
            rows = window_decoder(**again, keep=1)[:, 0]
            starts = starts + 1
            text.scatter_(1, starts[:, None] - 1, tokens)
            induce_(rows, text, starts, strengths, d2t=d2t)
            drawn = sample(rows, params, starts, purpose=Purpose.DRAFT, epochs=epochs)
            assert torch.equal(d2t[drawn.tokens], ids[:, step])
            assert torch.equal(drawn.stats.lse, lse[:, step])
            if logits is not None:
                assert torch.equal(rows, logits[:, step])
            tokens = ids[:, step, None]
        seen.add(tuple(ids[1:].flatten().tolist()))
    assert len(seen) == 3


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("rule", ["token", "coupled"])
def test_models_as_one_call_decode_what_they_do_layer_by_layer(
    strategy: str, rule: str, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, found = pair(gpu), []
    for whole in (True, False):
        if not whole:
            monkeypatch.setattr(runner, "_run_as_one", lambda *_: False)
        with DeviceDecoder(*models, strategy=strategy, rule=rule, gamma=3) as decoder:
            assert all(hasattr(model, WHOLE) is whole for model in models)
            found.append([texts(decoder), texts(decoder)])
    assert found[0] == found[1]


def test_angles_are_there_before_another_stream_reads_them(gpu: torch.device) -> None:
    [model, _], stream = pair(gpu), torch.cuda.Stream()
    with PearlDecoder(model, strategy="autoregressive"), torch.inference_mode():
        whole = getattr(model, WHOLE)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second
            made = whole._angles_of(1000)
        found = [angles.clone() for angles in whole._angles_of(1000)]
        torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, made, strict=True))


def test_models_run_it_and_are_left_as_they_were(gpu: torch.device) -> None:
    target, draft = pair(gpu)
    before = [type(module) for model in (target, draft) for module in model.modules()]
    with PearlDecoder(target, draft, compile=False) as decoder:
        for model in (target, draft):
            assert hasattr(model, WHOLE)
            assert sum(isinstance(module, WindowDecoderLayer) for module in model.modules()) == 4
            assert sum(isinstance(module, WindowNorm) for module in model.modules()) == 9
        results = decoder.generate(PROMPTS, SamplingParams(max_tokens=20))
    assert [result.error for result in results] == [None] * len(PROMPTS)
    assert [type(module) for model in (target, draft) for module in model.modules()] == before
    assert not any(hasattr(model, WHOLE) for model in (target, draft))
