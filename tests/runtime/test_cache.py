"""The window cache: rows of their own length, and a rollback that touches nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from pearl_decode.cache import WindowCache
from pearl_decode.first_layers import first_layers
from pearl_decode.models import CausalModel
from tests.runtime.tiny import VOCAB


def _ids(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCAB, (rows, width), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_ragged_windows_give_each_rows_own_logits(target):
    """Rows at different positions, several rounds: the same logits as the whole text at once."""
    model, lengths, width = CausalModel(target), [5, 1, 17], 4
    text = _ids(3, 40)
    cache = WindowCache(40)
    model.forward(text[:, : max(lengths)], [0, 0, 0], cache, keep=1)
    for _ in range(3):
        window = torch.stack([row[n : n + width] for row, n in zip(text, lengths, strict=True)])
        logits = model.forward(window, lengths, cache, keep=width)
        for row, n in enumerate(lengths):
            whole = target(input_ids=text[row : row + 1, : n + width]).logits[0, n:]
            torch.testing.assert_close(logits[row], whole, atol=2e-4, rtol=1e-4)
        lengths = [n + width for n in lengths]


@torch.no_grad()
def test_rollback_leaves_committed_cache_untouched_and_stale_entries_unseen(target):
    model, text = CausalModel(target), _ids(2, 30)
    cache = WindowCache(30)
    model.forward(text[:, :10], [0, 0], cache, keep=1)
    before = [copy.deepcopy(layer.keys[:, :, :10]) for layer in cache.layers]
    model.forward(_ids(2, 8, seed=9), [10, 10], cache, keep=8)  # refused: rolled back by the next start
    logits = model.forward(text[:, 10:13], [10, 10], cache, keep=3)
    whole = target(input_ids=text[:, :13]).logits[:, 10:]
    torch.testing.assert_close(logits, whole, atol=2e-4, rtol=1e-4)
    for layer, keys in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys[:, :, :10], keys)


@torch.no_grad()
def test_kept_rows_go_on_as_if_they_had_been_alone(llama):
    model, text = CausalModel(llama), _ids(4, 20)
    cache = WindowCache(20)
    model.forward(text[:, :9], [0] * 4, cache, keep=1)
    cache.keep([3, 1])
    logits = model.forward(text[[3, 1], 9:11], [9, 9], cache, keep=2)
    torch.testing.assert_close(logits, llama(input_ids=text[[3, 1], :11]).logits[:, 9:], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("capacity", [12, 20, 30])
@torch.no_grad()
def test_a_cache_goes_on_from_another_ones_beginning(target, capacity):
    """In the other's memory where that is large enough, and where it is not."""
    model, text = CausalModel(target), _ids(1, 12)
    past, cache = WindowCache(20), WindowCache(capacity)
    model.forward(torch.cat([text[:, :7], _ids(1, 13, seed=9)], dim=1), [0], past, keep=0)
    place = past.layers[0].keys.data_ptr()
    cache.go_on_from(past, 7)
    assert not past.layers
    assert cache.capacity == max(20, capacity)
    assert (cache.layers[0].keys.data_ptr() == place) is (capacity <= 20)
    logits = model.forward(text[:, 7:], [7], cache, keep=5)
    torch.testing.assert_close(logits, target(input_ids=text).logits[:, 7:], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_first_layers_draft_is_the_target_cut_short_and_shares_its_weights(target):
    draft = first_layers(target, 2)
    names = dict(target.named_parameters())
    assert all(p.data_ptr() == names[name].data_ptr() for name, p in draft.named_parameters())
    assert not any(buffer.is_meta for buffer in draft.buffers())
    full = copy.deepcopy(target)
    stack = getattr(full, "transformer", None)
    if stack is not None:
        stack.h = stack.h[:2]
    else:
        full.model.layers = full.model.layers[:2]
        full.config.num_hidden_layers = 2
    text = _ids(1, 12)
    torch.testing.assert_close(draft(input_ids=text).logits, full(input_ids=text).logits)
