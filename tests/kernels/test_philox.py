"""Philox4x32-10 against the published answers, and the mapping to (0, 1)."""

from __future__ import annotations

import math

import pytest
import torch

from pearl_kernels import Purpose, philox
from tests.kernels.laws import assert_law

ALL_ONES = 0xFFFFFFFF

# kat_vectors of Random123, philox 4x32, 10 rounds: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3, k0, k1 = (torch.tensor([word]) for word in (*counter, *key))
    assert tuple(int(word) for word in philox.philox4x32((c0, c1, c2, c3), (k0, k1))) == words


def test_a_draw_is_the_word_of_its_vocab_id_position_purpose_and_epoch() -> None:
    seed, position, epoch = -0x123456789ABCDEF, (1 << 33) + 77, (1 << 32) + 5
    row = philox.uniform_row(
        torch.tensor([seed]), torch.tensor([position]), Purpose.RESIDUAL, torch.tensor([epoch]), 11
    )
    key = tuple(torch.tensor([seed >> shift & ALL_ONES]) for shift in (0, 32))
    for vocab_id in range(11):
        counter = tuple(torch.tensor([w]) for w in (vocab_id // 4, 77, 2, 5))
        word = int(philox.philox4x32(counter, key)[vocab_id % 4])  # type: ignore[arg-type]
        assert float(row[0, vocab_id]) == ((word >> 9) + 0.5) * 2.0**-23


def test_the_scalar_draw_is_that_of_vocab_id_0() -> None:
    seed, position = torch.arange(9), torch.arange(9) + 3
    row = philox.uniform_row(seed, position, Purpose.ACCEPT, position, 1)
    assert torch.equal(philox.uniform(seed, position, Purpose.ACCEPT, position), row[:, 0])


def test_the_unit_interval_has_neither_end() -> None:
    ends = philox.to_unit(torch.tensor([0, ALL_ONES]))
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24]
    assert torch.isfinite(-(-ends.log()).log()).all()


def test_draws_are_uniform_up_to_both_ends() -> None:
    u = philox.uniform_row(torch.arange(2000), torch.arange(2000), Purpose.SAMPLE, 0, 500).flatten()
    assert_law(torch.bincount((u * 64).long(), minlength=64), [1 / 64] * 64)
    tail = 2.0**-13  # a million draws should give 122 in each
    for ends in (u < tail, u > 1 - tail):
        assert abs(int(ends.sum()) - len(u) * tail) < 5 * math.sqrt(len(u) * tail)


@pytest.mark.parametrize("word", ["seed_low", "seed_high", "position", "purpose", "epoch"])
def test_every_word_of_counter_and_key_changes_the_noise(word: str) -> None:
    changed = {
        "seed_low": (8, 9, 0, 1),
        "seed_high": (7 + (1 << 32), 9, 0, 1),
        "position": (7, 10, 0, 1),
        "purpose": (7, 9, 1, 1),
        "epoch": (7, 9, 0, 2),
    }[word]
    rows = [
        philox.uniform_row(torch.tensor([seed]), torch.tensor([position]), purpose, torch.tensor([epoch]), 64)
        for seed, position, purpose, epoch in ((7, 9, 0, 1), changed)
    ]
    assert (rows[0] != rows[1]).all()
