"""Philox4x32-10 in torch integer arithmetic: the noise of the reference backend.

A draw is a pure function of (seed, vocab id, position, purpose, epoch), so it does not depend on batch slot,
backend or how the vocabulary is split. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10
_LANES = 4

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four 32-bit words for each counter and key. All tensors int64 in [0, 2**32), broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, but the 64 bits are those of the unsigned product; the mask undoes the sign
        # extension.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> 32 & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def _words(seed: Tensor, block: Tensor, position: Tensor, purpose: Tensor | int, epoch: Tensor | int) -> Words:
    seed, position = seed.long(), position.long() & _WORD
    purpose = torch.as_tensor(purpose, device=seed.device)
    epoch = torch.as_tensor(epoch, device=seed.device) & _WORD
    return philox4x32((block, position, purpose, epoch), (seed & _WORD, seed >> 32 & _WORD))


def to_unit(word: Tensor) -> Tensor:
    """Map 32-bit words to float32 in (0, 1): ((word >> 9) + 0.5) * 2**-23, exact, never 0 and never 1."""
    return ((word >> 9).float() + 0.5) * 2.0**-23


def uniform(seed: Tensor, position: Tensor, purpose: Tensor | int, epoch: Tensor | int) -> Tensor:
    """One float32 in (0, 1) per element of `seed`: the scalar draw, which is that of vocab id 0."""
    return to_unit(_words(seed, torch.zeros_like(seed), position, purpose, epoch)[0])


def uniform_row(seed: Tensor, position: Tensor, purpose: Tensor | int, epoch: Tensor | int, vocab: int) -> Tensor:
    """A float32 in (0, 1) per vocab id. All tensors (batch,); returns (batch, vocab)."""
    block = torch.arange(-(-vocab // _LANES), device=seed.device)  # (blocks,)
    purpose, epoch = (x[:, None] if isinstance(x, Tensor) else x for x in (purpose, epoch))
    words = _words(seed[:, None], block, position[:, None], purpose, epoch)  # four of (batch, blocks)
    return to_unit(torch.stack(words, dim=-1).flatten(1)[:, :vocab])


def gumbel_row(
    seed: Tensor,
    position: Tensor,
    purpose: Tensor | int,
    epoch: Tensor | int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard Gumbel noise, -log(-log(u)) of `uniform_row`, computed in `dtype`. Returns (batch, vocab)."""
    return -(-uniform_row(seed, position, purpose, epoch, vocab).to(dtype).log()).log()
