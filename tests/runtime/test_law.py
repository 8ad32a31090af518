"""Sampled text has the target's law, whatever the draft, strategy and rule."""

from __future__ import annotations

import math

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_kernels import Purpose, sample
from tests.runtime.scripted import scripted_pair, table_model, tokens_per_round
from tests.runtime.tiny import build

VOCAB, ROWS, LENGTH = 5, 20_000, 3


def _tables() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    target = 1.2 * torch.randn(4, VOCAB, VOCAB, generator=generator)
    return target, target + 1.0 * torch.randn(4, VOCAB, VOCAB, generator=generator)


def _exact_law(table: torch.Tensor, first: int, temperature: float) -> torch.Tensor:
    """Probabilities (VOCAB ** LENGTH) of the texts of LENGTH tokens that follow the prompt [first]."""
    law, last = torch.ones(1, dtype=torch.float64), torch.tensor([first])
    for position in range(LENGTH):
        step = torch.softmax(table[position % table.shape[0], last].double() / temperature, dim=-1)
        law = (law[:, None] * step).flatten()
        last = torch.arange(VOCAB).repeat(len(last))
    return law


def _p_value(counts: torch.Tensor, law: torch.Tensor) -> float:
    """Chi-square of counts against law, cells of small expectation pooled."""
    expected = law * counts.sum()
    small = expected < 8
    counts = torch.cat([counts[~small], counts[small].sum()[None]]).double()
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    expected = expected.clamp(min=1e-9)
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2), statistic.float() / 2))


def _text_counts(table: torch.Tensor, draft_table: torch.Tensor, temperature: float, **plan) -> torch.Tensor:
    params = [SamplingParams(temperature=temperature, max_tokens=LENGTH, seed=seed) for seed in range(ROWS)]
    with PearlDecoder(table_model(table), table_model(draft_table), max_batch=ROWS) as decoder:
        results = decoder.generate([[2]] * ROWS, params, **plan)
    ids = torch.tensor([result.token_ids for result in results])
    cells = (ids * torch.tensor([VOCAB**2, VOCAB, 1])).sum(1)
    return torch.bincount(cells, minlength=VOCAB**LENGTH)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
@pytest.mark.parametrize("strategy", ["autoregressive", "sequential", "pearl"])
def test_joint_law_of_three_tokens_is_the_targets(strategy, rule):
    target, draft = _tables()
    for gamma in (1, 2, 3) if strategy != "autoregressive" else (1,):
        counts = _text_counts(target, draft, 0.8, strategy=strategy, rule=rule, gamma=gamma)
        assert _p_value(counts, _exact_law(target, first=2, temperature=0.8)) > 1e-4, f"gamma={gamma}"


def test_the_law_of_another_temperature_is_found_out():
    """The check has power."""
    target, draft = _tables()
    counts = _text_counts(target, draft, 0.8, strategy="sequential", rule="token", gamma=2)
    assert _p_value(counts, _exact_law(target, first=2, temperature=0.88)) < 1e-4


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("gamma", [1, 2, 4, 8])
def test_mean_tokens_per_round_follow_the_formula(acceptance, gamma):
    rows, count = 64, 256
    target, draft = scripted_pair(acceptance, rows)
    with PearlDecoder(target, draft, max_batch=rows, strategy="pearl", gamma=gamma) as decoder:
        results = decoder.generate([[2 * row] for row in range(rows)], SamplingParams(max_tokens=count))
    rounds = sum(result.stats.rounds for result in results)
    # A request's last round is cut short; half a round on average is put back.
    measured = rows * count / (rounds - 0.5 * rows)
    assert math.isclose(measured, tokens_per_round(acceptance, gamma), rel_tol=0.03)


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_a_position_is_drafted_again_with_noise_of_its_own(strategy, runtime, llama, monkeypatch):
    """Else what was refused there would be drafted again, and again be refused."""
    noise = []

    def drawn(logits, params, positions, *, purpose, epochs):
        assert purpose is Purpose.DRAFT
        noise.extend(zip(positions.tolist(), epochs.tolist(), strict=True))
        return sample(logits, params, positions, purpose=purpose, epochs=epochs)

    for module in ("pearl_decode.lanes.draft", "pearl_decode.device.draft"):
        monkeypatch.setattr(f"{module}.sample", drawn)
    with PearlDecoder(llama, build("qwen3"), strategy=strategy, gamma=4, rule="token") as decoder:
        decoder.generate([[5, 6, 7]], SamplingParams(max_tokens=60, temperature=1.0, seed=2))
    assert len(set(noise)) == len(noise)
    assert len({position for position, _ in noise}) < len(noise), "something was refused"
