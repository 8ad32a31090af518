"""Time `window_attention` beside masked SDPA, FlexAttention, flash-attn and reading what is attended to once.

    python bench/bench_attention.py [--device cuda] [--json FILE] [--plot FILE.png]

A case is BATCHxHEADSxKV_HEADSxHEAD_DIMxLENGTHxDTYPE. Rows have from 3/4 of LENGTH entries to LENGTH - 32, in a cache of
LENGTH. "transformers" is what its sdpa attention does with such a batch: a boolean mask over the whole cache, keys and
values repeated for the heads that share them. The new entries are in the cache already, for all contenders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from harness import (
    DTYPES,
    FLOOR,
    REFERENCE,
    TRANSFORMERS,
    Contender,
    Row,
    arguments,
    compare,
    num_inputs,
    read_once,
    time_us,
)
from report import measure
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import pearl_kernels

CASES = {
    "cpu": "1x9x3x64x2048xfloat32,4x9x3x64x2048xfloat32,1x32x8x128x4096xbfloat16",
    "cuda": "1x32x8x128x4096xbfloat16,8x32x8x128x4096xbfloat16,1x32x8x128x32768xbfloat16,8x32x8x128x32768xbfloat16,"
    "4x16x8x256x8192xbfloat16,1x9x3x64x8192xfloat32",
}
WIDTHS = (1, 5, 9, 17)
BACKENDS = {"cpu": ("cpu",), "cuda": ("triton", "flash")}
FLEX = "flex_attention"
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of all outputs' norm


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's arguments: q (batch, width, heads, head_dim), caches (batch, kv_heads, capacity, head_dim)."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    seq_lens: Tensor

    @property
    def group(self) -> int:
        return self.q.shape[2] // self.k_cache.shape[1]

    @property
    def needed_bytes(self) -> int:
        entries = int((self.seq_lens + self.q.shape[1]).sum())
        return 2 * entries * self.k_cache[0, :, 0].numel() * self.k_cache.itemsize

    def attend(self, backend: str) -> Callable[[], Tensor]:
        scale = self.q.shape[-1] ** -0.5
        return lambda: pearl_kernels.window_attention(
            self.q, self.k_cache, self.v_cache, None, None, self.seq_lens, scale=scale, backend=backend
        )

    def masked_sdpa(self) -> Callable[[], Tensor]:
        width, capacity, device = self.q.shape[1], self.k_cache.shape[2], self.q.device
        position = self.seq_lens[:, None] + torch.arange(width, device=device)
        mask = (torch.arange(capacity, device=device) <= position[..., None])[:, None]  # (batch, 1, width, capacity)
        module = torch.nn.Module()
        module.num_key_value_groups = self.group  # type: ignore[assignment]
        queries = self.q.transpose(1, 2)
        return lambda: sdpa_attention_forward(module, queries, self.k_cache, self.v_cache, mask)[0]

    def flex(self) -> Callable[[], Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return key <= self.seq_lens[row] + query

        batch, width, capacity = *self.q.shape[:2], self.k_cache.shape[2]
        blocks = create_block_mask(seen, batch, None, width, capacity, device=self.q.device)
        compiled = torch.compile(flex_attention, dynamic=False)
        queries = self.q.transpose(1, 2)
        return lambda: compiled(
            queries, self.k_cache, self.v_cache, block_mask=blocks, enable_gqa=self.group > 1
        ).transpose(1, 2)


def layers_of(case: str, width: int, device: str) -> list[Layer]:
    *sizes, dtype = case.split("x")
    batch, heads, kv_heads, dim, capacity = map(int, sizes)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(DTYPES[dtype])

    lengths = torch.linspace(capacity - 32, capacity * 3 // 4, batch, device=device).long()
    cache = batch, kv_heads, capacity, dim
    count = num_inputs(2 * batch * kv_heads * capacity * dim * DTYPES[dtype].itemsize, device)
    return [Layer(normal(batch, width, heads, dim), normal(*cache), normal(*cache), lengths) for _ in range(count)]


def contenders_of(layers: list[Layer], device: str) -> list[Contender]:
    """All but the floor, each once it gave the reference's answer for the first input."""
    states = pearl_kernels.backends()
    names = [name for name in BACKENDS[device] if name == "cpu" or states[name].available]
    if layers[0].q.dtype is torch.float32:
        names = [name for name in names if name != "flash"]
    found = [Contender(name, [layer.attend(name) for layer in layers]) for name in (*names, REFERENCE)]
    found.append(Contender(TRANSFORMERS, [layer.masked_sdpa() for layer in layers]))
    if device == "cuda":
        torch.compiler.reset()
        found.append(Contender(FLEX, [layer.flex() for layer in layers]))
    wanted, tolerance = layers[0].attend(REFERENCE)(), TOLERANCE[layers[0].q.dtype]
    for contender in found:
        got = contender.calls[0]()
        assert isinstance(got, Tensor)
        error = float((got - wanted).float().norm() / wanted.float().norm())
        assert error <= tolerance, f"{contender.name}: relative error {error:.2g}, at most {tolerance} was expected"
    return found


def bench_width(case: str, width: int, repeats: int, device: str) -> list[Row]:
    layers = layers_of(case, width, device)
    needed, contenders = layers[0].needed_bytes, contenders_of(layers, device)
    if device == "cpu":
        caches = [[x[:, :, : needed * x.shape[2] // (2 * x.nbytes)] for x in (y.k_cache, y.v_cache)] for y in layers]
        heads = [[head for cache in pair for row in cache for head in row] for pair in caches]
        times = time_us([Contender(FLOOR, [read_once(each) for each in heads]), *contenders], repeats)
    else:
        import gpu

        floor = gpu.read_once(needed, len(layers), layers[0].q.device)
        times = gpu.time_us([floor, *contenders], repeats, graphs=(FLOOR, *BACKENDS["cuda"]))
    return compare(case, f"width {width}", times, needed)


def main() -> None:
    parsed = arguments(__doc__ or "", CASES)
    cases = parsed.cases.split(",")
    works = [partial(bench_width, case, width, parsed.repeats, parsed.device) for case in cases for width in WIDTHS]
    device = None
    if parsed.device == "cuda":
        import gpu

        flash = pearl_kernels.backends()["flash"].reason
        device = gpu.describe(torch.device("cuda"), {"flash-attn": gpu.installed("flash-attn") or flash})
    measure("window_attention", works, parsed, device)


if __name__ == "__main__":
    main()
