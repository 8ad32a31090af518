"""The rules themselves are lawful: exact enumeration of every chain, with the uniforms integrated out.

This is about the mathematics in tests/kernels/model.py; the other tests then hold the backends to that model.
"""

from __future__ import annotations

import random

import pytest

from tests.kernels import model
from tests.kernels.model import Conditional, Distribution

EXACT = 1e-12


def random_model(vocab: int, seed: int, *, zeros: bool = False) -> Conditional:
    """A law of the next token that depends on the whole history; with zeros, as a filter would leave it."""

    def conditional(prefix: tuple[int, ...]) -> Distribution:
        rng = random.Random(f"{seed} {prefix}")
        weights = [rng.random() ** 3 for _ in range(vocab)]
        if zeros:
            weights[rng.randrange(vocab)] = 0.0
        total = sum(weights)
        return [w / total for w in weights]

    return conditional


def one_hot(vocab: int, seed: int) -> Conditional:
    def conditional(prefix: tuple[int, ...]) -> Distribution:
        chosen = random.Random(f"{seed} {prefix}").randrange(vocab)
        return [float(v == chosen) for v in range(vocab)]

    return conditional


def distance(law: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    return max(abs(law.get(key, 0.0) - other.get(key, 0.0)) for key in law.keys() | other.keys())


DRAFTS = {
    "random": lambda vocab: random_model(vocab, 2),
    "with zeros": lambda vocab: random_model(vocab, 3, zeros=True),
    "one-hot": lambda vocab: one_hot(vocab, 4),
    "the target": lambda vocab: random_model(vocab, 1),
}


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("vocab", "width"), [(2, 1), (2, 4), (3, 3), (4, 2), (4, 4)])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_emitted_law_is_exactly_the_targets(rule: str, vocab: int, width: int, zeros: bool, draft: str) -> None:
    target = random_model(vocab, 1, zeros=zeros)
    law = model.emitted_law(rule, target, DRAFTS[draft](vocab), vocab, width)
    assert distance(law, model.joint(target, vocab, width)) < EXACT


def test_enumeration_sees_a_rule_that_is_not_lawful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "next_law", lambda target, draft, weight: target)
    target = random_model(3, 1)
    law = model.emitted_law("token", target, random_model(3, 2), 3, 2)
    assert distance(law, model.joint(target, 3, 2)) > 1e-3


@pytest.mark.parametrize("seed", range(8))
def test_block_accepts_no_fewer_than_token(seed: int) -> None:
    target, draft = random_model(3, seed), random_model(3, 100 + seed)
    mean = {
        rule: sum(n * p for n, p in enumerate(model.length_law(rule, target, draft, 3, 4)))
        for rule in ("token", "block")
    }
    assert mean["block"] > mean["token"]


@pytest.mark.parametrize(("draft", "width"), [("one-hot", 4), ("random", 1)])
def test_block_is_token_for_certain_drafts_and_for_one_token(draft: str, width: int) -> None:
    target, proposed = random_model(4, 1), DRAFTS[draft](4)
    laws = [model.length_law(rule, target, proposed, 4, width) for rule in ("token", "block")]
    assert laws[0] == pytest.approx(laws[1], abs=EXACT)
