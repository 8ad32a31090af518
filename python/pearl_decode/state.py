"""A batch of sequences being decoded: one token buffer and two integers each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from pearl_decode.sampling import SamplingParams
from pearl_kernels import DecodeState, SamplingTensors

Rows = TypeVar("Rows", DecodeState, SamplingTensors)
PLACEHOLDER = -1  # "no draft here": verification draws the target's own token in its place


class Batch:
    """The sequences of one run, and what the host knows of them without asking the device.

    state:     DecodeState on the target's device; `advance_` is its only writer, drafts apart
    params:    SamplingTensors of the same rows
    committed: per row, verified tokens: prompt and emitted
    window:    per row, drafted tokens that wait for the target
    The invariants of a round: the target has cached committed - 1 positions, the draft at most
    committed + window - 1; what their caches hold beyond is stale.
    """

    def __init__(self, state: DecodeState, params: SamplingTensors) -> None:
        self.state = state
        self.params = params
        self.committed: list[int] = []
        self.window: list[int] = []
        self.refresh()

    @classmethod
    def start(
        cls,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        eos_ids: Sequence[Sequence[int]],
        spare: int,
        device: torch.device,
        *,
        capacity: int = 0,
        ends: int = 0,
    ) -> Batch:
        """Lay the prompts down.

        spare:          how far past its end a row may be drafted
        capacity, ends: positions and end-of-sequence ids of a row there must be room for at least
        """
        max_len = [len(prompt) + p.max_tokens for prompt, p in zip(prompts, params, strict=True)]
        tokens = torch.zeros(len(prompts), max(capacity, max(max_len) + spare), dtype=torch.int64, device="cpu")
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt, device="cpu")
        widest = max(1, ends, *(len(ids) for ids in eos_ids))
        padded = torch.tensor([[*ids, *[-1] * (widest - len(ids))] for ids in eos_ids], dtype=torch.int64, device="cpu")
        zeros = torch.zeros(len(prompts), dtype=torch.int32, device=device)
        state = DecodeState(
            tokens=tokens.to(device),
            committed=torch.tensor([len(prompt) for prompt in prompts], device=device),
            window=zeros.clone(),
            max_len=torch.tensor(max_len, device=device),
            eos_ids=padded.to(device),
            finished=zeros.clone(),
            status=zeros.clone(),
        )
        columns = SamplingTensors.make(
            len(prompts),
            temperature=[p.temperature for p in params],
            top_k=[p.top_k for p in params],
            top_p=[p.top_p for p in params],
            min_p=[p.min_p for p in params],
            seed=list(seeds),
            device=device,
        )
        return cls(state, columns)

    @property
    def capacity(self) -> int:
        """Positions a KV cache of this batch must hold."""
        return self.state.tokens.shape[1]

    @property
    def heads(self) -> list[int]:
        """Per row, the position the draft writes next."""
        return [c + w for c, w in zip(self.committed, self.window, strict=True)]

    def refresh(self) -> None:
        """Read both integers back from the device."""
        self.committed = self.state.committed.tolist()
        self.window = self.state.window.tolist()

    def since(self, committed: Sequence[int]) -> list[list[int]]:
        """Per row, the tokens that were committed since there were so many."""
        rows = zip(self.state.tokens, committed, self.committed, strict=True)
        return [tokens[before:now].tolist() for tokens, before, now in rows]

    def gather(self, starts: Sequence[int], width: int) -> torch.Tensor:
        """Tokens (batch, width) from starts[b] on, as a model's input: placeholders become id 0."""
        if min(starts) == max(starts):
            return self.state.tokens[:, starts[0] : starts[0] + width].clamp(min=0)
        return self.state.tokens.gather(1, self._columns(starts, width)).clamp_(min=0)

    def write(self, starts: Sequence[int], drafted: torch.Tensor) -> None:
        """Put drafted ids (batch, width) at positions starts[b] on."""
        width = drafted.shape[1]
        if min(starts) == max(starts):
            self.state.tokens[:, starts[0] : starts[0] + width] = drafted
        else:
            self.state.tokens.scatter_(1, self._columns(starts, width), drafted)

    def _columns(self, starts: Sequence[int], width: int) -> torch.Tensor:
        first = torch.tensor(starts, device=self.state.tokens.device)
        return first[:, None] + torch.arange(width, device=first.device)

    def open_window(self, size: int) -> None:
        """The `size` tokens just written after the committed ones wait for the target."""
        self.state.window.fill_(size)
        self.window = [size] * len(self.window)

    def replace(self, rows: Sequence[int], others: Batch) -> None:
        """Let the rows of another batch, with room for as much, be these rows of this one."""
        put_rows(self.state, rows, others.state)
        put_rows(self.params, rows, others.params)
        self.refresh()

    def pinned(self) -> Batch:
        """The same, of a batch on the host, in memory that a GPU copies from without holding the host up."""
        return self._each(Tensor.pin_memory)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        index = torch.tensor(rows, device=self.state.tokens.device)
        kept = self._each(lambda tensor: tensor.index_select(0, index))
        self.state, self.params = kept.state, kept.params
        self.refresh()

    def _each(self, make: Callable[[Tensor], Any]) -> Batch:
        return Batch(_made(self.state, make), _made(self.params, make))


def put_rows(into: Rows, rows: Sequence[int], source: Rows) -> None:
    """Write the rows of `source`, which may be in pinned memory of the host, over these rows, without waiting."""
    for f in fields(into):
        for row, values in zip(rows, getattr(source, f.name), strict=True):
            getattr(into, f.name)[row].copy_(values, non_blocking=True)


def _made(tensors: Rows, make: Callable[[Tensor], Any]) -> Rows:
    return type(tensors)(**{f.name: make(getattr(tensors, f.name)) for f in fields(tensors)})
