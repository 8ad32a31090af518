"""Whole rounds on a device decode what the reference decodes."""

from __future__ import annotations

import pytest
import torch

from pearl_kernels import Finished
from tests.gpu.decoding import Decoder, new_decoder

pytestmark = pytest.mark.gpu


def tokens_decoded(decoder: Decoder) -> list[list[int]]:
    for _ in range(60):
        decoder.round()
    state = decoder.state
    assert not (state.finished == Finished.RUNNING).any()
    assert not state.status.any()
    return [row[:n] for row, n in zip(state.tokens.tolist(), state.committed.tolist(), strict=True)]


@pytest.mark.parametrize("rule", ["greedy", "token", "block", "coupled"])
def test_rounds_decode_what_the_reference_decodes(rule: str, backend: str, device: torch.device) -> None:
    got = tokens_decoded(new_decoder(device, backend, rule))
    wanted = tokens_decoded(new_decoder(torch.device("cpu"), "reference", rule))
    assert sum(a != b for a, b in zip(got, wanted, strict=True)) <= 1  # a draw within rounding of a boundary
    assert max(map(len, got)) > 20
