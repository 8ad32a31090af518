"""Checks that no token of the vocabulary is left out, usable on any backend."""

from __future__ import annotations

import torch

import pearl_kernels
from pearl_kernels import SamplingTensors

# Sizes of real models, and odd ones: last tiles of every length.
VOCABULARIES = [1, 2, 7, 32, 1000, 32000, 49152, 128256, 151936, 262144]


def last_tokens(vocab: int) -> range:
    return range(max(0, vocab - 3), vocab)


def check_last_token_is_drawn(vocab: int, backend: str, dtype: torch.dtype = torch.float32) -> None:
    """Rows whose mass is on one of the last tokens: drawn with and without filters, greedily too."""
    ids = list(last_tokens(vocab))
    logits = torch.zeros(len(ids), vocab, dtype=dtype)
    logits[range(len(ids)), ids] = 60.0
    for params in ({}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}):
        every = SamplingTensors.make(len(ids), **params)
        out = pearl_kernels.sample(logits, every, torch.zeros(len(ids), dtype=torch.int64), backend=backend)
        assert out.tokens.tolist() == ids, f"{params}: {out.tokens.tolist()} for {ids}"
        lse = 0.0 if params.get("temperature") == 0.0 else 60.0
        assert out.stats.lse.tolist() == [lse] * len(ids), f"{params}: lse {out.stats.lse.tolist()}"


def check_last_token_is_residual(rule: str, vocab: int, backend: str) -> None:
    """Token 0 is drafted, all that the target prefers to the draft is one of the last tokens."""
    ids = [i for i in last_tokens(vocab) if i > 0]
    target = torch.zeros(len(ids), 1, vocab)
    draft = target.clone()
    target[range(len(ids)), 0, ids] = 60.0
    draft[:, 0, 0] = 60.0
    out = pearl_kernels.verify(
        target, torch.zeros(len(ids), 1, dtype=torch.int64), torch.ones(len(ids), dtype=torch.int32),
        SamplingTensors.make(len(ids)), torch.zeros(len(ids), dtype=torch.int64), draft_logits=draft, rule=rule,
        backend=backend,
    )  # fmt: skip
    assert out.num_accepted.tolist() == [0] * len(ids)
    assert out.next_token.tolist() == ids, f"{out.next_token.tolist()} for {ids}"
