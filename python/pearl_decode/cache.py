"""A transformers cache whose rows have lengths of their own and never move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from pearl_decode.huge_pages import HugePages

Index = tuple[torch.Tensor, torch.Tensor]  # rows (batch, 1) and columns (batch, width) of a layer's entries


class WindowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's preallocated keys and values: (batch, kv_heads, capacity, head_dim)."""

    is_croppable = True
    keys: Any  # tensors; that of keys carries what is to be appended
    values: torch.Tensor

    def __init__(self, cache: WindowCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros, not empty: a masked entry has weight 0, and 0 * NaN would still spoil the sum.
        self.keys, self.values = (
            self.cache.zeros((*states.shape[:2], self.cache.capacity, states.shape[-1]), states)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.cache.appends_later:
            self.keys.new_entries = key_states, value_states
            return self.keys, self.values
        self.cache.write(self.keys, key_states)
        self.cache.write(self.values, value_states)
        view = self.cache.view
        return self.keys[:, :, :view], self.values[:, :, :view]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.view, 0

    def get_seq_length(self) -> int:
        return self.cache.offset

    def get_max_length(self) -> int:
        return self.cache.capacity


def new_entries(keys: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What is still to be appended to a layer's keys and values, (batch, kv_heads, width, head_dim) each; only once."""
    if torch.compiler.is_compiling():
        return None  # a compiled model appends by itself, and no compiler follows what a tensor carries
    found: tuple[torch.Tensor, torch.Tensor] | None = keys.__dict__.pop("new_entries", None)
    return found


def _index_of(positions: torch.Tensor) -> Index:
    return torch.arange(positions.shape[0], device=positions.device)[:, None], positions


def _runs(rows: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Rows that follow one another, and their places among `rows`: an index that no device has to be sent."""
    begin = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield slice(rows[begin], rows[end - 1] + 1), slice(begin, end)
            begin = end


def starts_on(device: torch.device, starts: list[int]) -> torch.Tensor:
    """Starts (batch,) int64 on a device. Equal ones are written there, not copied: the host waits for a copy."""
    if min(starts) == max(starts):
        return torch.full((len(starts),), starts[0], device=device)
    return torch.tensor(starts, device=device)


class WindowCache(Cache):
    """Keys and values at absolute positions: position t of a row always lives at index t.

    Before a forward, `place` says where each row's new entries go. Nothing is ever removed: a rollback is a
    smaller start in the next `place`, and stale entries are masked by causality until they are overwritten.

    capacity: positions each row can hold. Layers are made at their first update, so any attention model fits.
    """

    def __init__(self, capacity: int) -> None:
        self._window_layers: list[WindowLayer] = []
        super().__init__(layers=self._window_layers)  # type: ignore[arg-type]
        self.capacity = capacity
        self.view = 0  # cached positions the next forward looks at
        self.offset = 0  # smallest start among the rows
        self.appends_later = False  # whether attention, not `update`, writes the next forward's entries
        self._index: Index | None = None  # where ragged rows are written
        self._tokens: torch.Tensor | None = None
        self._stack: list[torch.Tensor] = []  # keys and values of all layers, where those are parts of two tensors
        self._pages = HugePages()

    def place(self, starts: list[int], width: int, device: torch.device) -> torch.Tensor | None:
        """Announce a forward of `width` tokens per row, row b's first one at position starts[b].

        Returns the positions (batch, width) int64 when rows start at different ones, else None.
        """
        self.offset, last = min(starts), max(starts)
        self.view = last + width
        assert self.view <= self.capacity, f"cache holds {self.capacity} positions, {self.view} asked"
        self.appends_later, self._index = False, None
        if last == self.offset:
            return None
        positions = starts_on(device, starts)[:, None] + torch.arange(width, device=device)
        self._index = _index_of(positions)
        return positions

    def place_windows(self, starts: list[int], positions: torch.Tensor, *, appends_later: bool) -> None:
        """As `place`, for attention that reads each row's own entries in the whole cache.

        positions:     (batch, width) int64, of each new token
        appends_later: `update` writes nothing, and the attention that gets its keys appends their `new_entries`
        """
        last = max(starts) + positions.shape[1]
        assert last <= self.capacity, f"cache holds {self.capacity} positions, {last} asked"
        self.offset, self.view = min(starts), self.capacity
        self.appends_later, self._index = appends_later, None if appends_later else _index_of(positions)

    def buffers(
        self, layer_idx: int, hidden_states: torch.Tensor, kv_heads: int, head_dim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values, for whoever appends to them in place of `update`. They are made at first.

        hidden_states: (batch, ...), of whose type and on whose device they are
        """
        layer = self._layer(layer_idx)
        if not layer.is_initialized:
            states = hidden_states.new_empty(len(hidden_states), kv_heads, 0, head_dim)
            layer.lazy_initialization(states, states)
        return layer.keys, layer.values

    @property
    def in_parts(self) -> bool:
        """Whether each layer has memory of its own."""
        return bool(self._window_layers) and not self._stack

    def stacked(self, layers: int, batch: int, kv_heads: int, head_dim: int, like: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values of so many layers, (layers, batch, kv_heads, capacity, head_dim) each, of the type of `like`
        and on its device.
        """
        if not self._stack:
            assert not self.in_parts, "layers whose memory may be in use elsewhere"
            self._layer(layers - 1)
            shape = layers, batch, kv_heads, self.capacity, head_dim
            # On a CPU our kernels read them, which look at no entry that was not written.
            on_cpu = like.device.type == "cpu"
            self._stack = [self._pages.empty(shape, like.dtype) if on_cpu else like.new_zeros(shape) for _ in range(2)]
            self._divide_stack()
        return self._stack

    def zeros(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """Where entries are to be, on the device of `like` and of its type."""
        return self._pages.zeros(shape, like.dtype) if like.device.type == "cpu" else like.new_zeros(shape)

    def _divide_stack(self) -> None:
        for layer, keys, values in zip(self._window_layers, *self._stack, strict=True):
            layer.keys, layer.values, layer.is_initialized = keys, values, True

    def left_behind(self) -> bool:
        """Whether a forward did not append all that was to be appended later."""
        return sum(new_entries(layer.keys) is not None for layer in self._window_layers) > 0

    def place_at(self, starts: torch.Tensor, width: int, view: int, *, appends_later: bool = False) -> torch.Tensor:
        """As `place`, with starts (batch,) int64 that only the device knows: nothing is read back.

        view:          cached positions the forward looks at; every start + width is at most that
        appends_later: as in `place_windows`; the forward may then look at all positions
        Returns the positions (batch, width) int64.
        """
        assert view <= self.capacity, f"cache holds {self.capacity} positions, {view} asked"
        positions = starts[:, None] + torch.arange(width, device=starts.device)
        self.offset, self.view = 0, view
        self.appends_later, self._index = appends_later, None if appends_later else _index_of(positions)
        return positions

    def write(self, buffer: torch.Tensor, states: torch.Tensor) -> None:
        """Store states (batch, heads, width, dim) at the announced positions of buffer."""
        if self._index is None:
            buffer[:, :, self.offset : self.view] = states
            return
        if self._index[0].device != buffer.device:  # of a layer on another device, as those after it are
            self._index = self._index[0].to(buffer.device), self._index[1].to(buffer.device)
        rows, columns = self._index
        buffer[rows, :, columns] = states.transpose(1, 2)

    def remember(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Cache tokens (batch, width) int64 themselves at these positions. Returns all, (batch, capacity)."""
        return self.text(tokens).scatter_(1, positions, tokens)

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens that are cached themselves, (batch, capacity) like `tokens` (batch, ...)."""
        if self._tokens is None:
            self._tokens = tokens.new_zeros(len(tokens), self.capacity)
        return self._tokens

    def clear(self, rows: Sequence[int] | None = None) -> None:
        """Make all rows, or these, ready for other sequences: what was left behind may be NaN, which even a weight of 0
        does not hide.
        """
        for layer in self._window_layers:
            for run in [slice(None)] if rows is None else [ours for ours, _ in _runs(rows)]:
                layer.keys[run] = 0
                layer.values[run] = 0

    def release(self) -> None:
        """Give the memory back at once: a cache and its layers know each other, and would wait to be collected."""
        self._window_layers.clear()
        self._stack.clear()
        self._pages = HugePages()
        self._tokens = None

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order, in which none has a place after the one it had."""
        if self._stack:
            assert all(row >= place for place, row in enumerate(rows)), f"rows {rows} would be written over"
            with torch.inference_mode():  # as those who made them work
                for place, row in enumerate(rows):
                    for tensor in self._stack if row != place else ():
                        tensor[:, place] = tensor[:, row]
            self._stack = [tensor[:, : len(rows)] for tensor in self._stack]
            self._divide_stack()
        for layer in () if self._stack else self._window_layers:
            index = torch.tensor(rows, device=layer.keys.device)
            layer.keys = layer.keys.index_select(0, index)
            layer.values = layer.values.index_select(0, index)
        if self._tokens is not None:
            self._tokens = self._tokens[torch.tensor(rows, device=self._tokens.device)]

    def take_over(self, part: WindowCache, rows: Sequence[int], batch: int, length: int | None = None) -> None:
        """Hold the first `length` positions of `part`, or all, as these rows of `batch`. `part` is empty after it."""
        length = part.capacity if length is None else length
        for own, theirs in self._beside(part, batch):
            for ours, its in _runs(rows):
                own[..., ours, :, :length, :] = theirs[..., its, :, :length, :]
        if part._tokens is not None:
            text = self.text(part._tokens.new_empty(batch))
            for ours, its in _runs(rows):
                text[ours, :length] = part._tokens[its, :length]
        part.release()

    def _beside(self, part: WindowCache, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Own keys and values, of `batch` rows and made at first, with those of `part`: of all layers at once where
        both are.
        """
        if part._stack and not self.in_parts:
            layers, _, kv_heads, _, head_dim = part._stack[0].shape
            yield from zip(self.stacked(layers, batch, kv_heads, head_dim, part._stack[0]), part._stack, strict=True)
            return
        for index, theirs in enumerate(part._window_layers):
            own = self._layer(index)
            if not own.is_initialized:
                own.lazy_initialization(*(held[:1].expand(batch, -1, -1, -1) for held in (theirs.keys, theirs.values)))
            yield own.keys, theirs.keys
            yield own.values, theirs.values

    def go_on_from(self, past: WindowCache, length: int) -> None:
        """Hold the first `length` positions of a cache of one row, in its memory where that is large enough. `past` is
        empty after it, and this one must be before.
        """
        if past.capacity < self.capacity:
            self.take_over(past, [0], 1, length)
            return
        self.capacity, self._stack, self._tokens, self._pages = past.capacity, past._stack, past._tokens, past._pages
        self._window_layers += past._window_layers
        for layer in self._window_layers:
            layer.cache = self
        past._stack = []
        past.release()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._layer(layer_idx).update(key_states, value_states, *args, **kwargs)

    def _layer(self, layer_idx: int) -> WindowLayer:
        while len(self._window_layers) <= layer_idx:
            self._window_layers.append(WindowLayer(self))
        return self._window_layers[layer_idx]

    # The base class asks the layers, which do not exist before the first update.
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.offset

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.offset

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.view, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.capacity
