"""`window_layer` on a GPU, at the sizes of real models, and models that run it."""

from __future__ import annotations

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.layer import WindowDecoderLayer
from pearl_decode.norm import WindowNorm
from pearl_kernels import LayerWeights, Linear, window_layer, window_norm
from pearl_kernels.window_layer.reference import window_layer as reference
from tests.gpu.test_decoding_lanes import PROMPTS, pair

pytestmark = pytest.mark.gpu

# size, inner, heads, kv_heads, head_dim, and whether queries and keys are normed
SHAPES = {
    "llama-8b": (4096, 14336, 32, 8, 128, False),
    "llama-1b": (2048, 8192, 32, 8, 64, False),
    "qwen3-0.6b": (1024, 3072, 16, 8, 128, True),
    "smollm2-135m": (576, 1536, 9, 3, 64, False),
}
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the greatest number


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("width", [1, 5, 16])
def test_equals_the_reference(name: str, dtype: torch.dtype, width: int, gpu: torch.device) -> None:
    size, inner, heads, kv_heads, head_dim, normed = SHAPES[name]
    generator = torch.Generator(gpu).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator, device=gpu)).to(dtype)

    def linear(outputs: int, inputs: int) -> Linear:
        return Linear(draw(outputs, inputs, scale=inputs**-0.5))

    weights = LayerWeights(
        1 + draw(size, scale=0.1), linear(heads * head_dim, size), linear(kv_heads * head_dim, size),
        linear(kv_heads * head_dim, size), linear(size, heads * head_dim), 1 + draw(size, scale=0.1),
        linear(inner, size), linear(inner, size), linear(size, inner), head_dim=head_dim, eps=1e-5,
        q_norm=1 + draw(head_dim, scale=0.1) if normed else None,
        k_norm=1 + draw(head_dim, scale=0.1) if normed else None,
    )  # fmt: skip
    batch, capacity = 3, 700
    angles = torch.rand(batch, width, head_dim, generator=generator, device=gpu) * 6
    caches = [draw(batch, kv_heads, capacity, head_dim) for _ in range(2)]
    rest = (angles.cos().to(dtype), angles.sin().to(dtype))
    starts = torch.tensor([0, 300, capacity - width], device=gpu)
    x, scale = draw(batch, width, size), head_dim**-0.5
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


def test_models_run_it_and_are_left_as_they_were(gpu: torch.device) -> None:
    target, draft = pair(gpu)
    before = [type(module) for model in (target, draft) for module in model.modules()]
    with PearlDecoder(target, draft, compile=False) as decoder:
        for model in (target, draft):
            assert sum(isinstance(module, WindowDecoderLayer) for module in model.modules()) == 4
            assert sum(isinstance(module, WindowNorm) for module in model.modules()) == 9
        results = decoder.generate(PROMPTS, SamplingParams(max_tokens=20))
    assert [result.error for result in results] == [None] * len(PROMPTS)
    assert [type(module) for model in (target, draft) for module in model.modules()] == before
