"""The rules on Python floats, one row at a time, straight from the papers: what the references are judged by.

A rule is a list of probabilities to pass, one per drafted token, and a way to read the passes: `token` stops before
the first that fails, `block` stops after the last that passes. Integrating over the uniforms gives exact laws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Distribution = list[float]
Conditional = Callable[[tuple[int, ...]], Distribution]  # of the next token, given the ones before


class Judgement(NamedTuple):
    """Of a drafted chain: probability to pass of each token, and w after each token (w[0] is before the first)."""

    pass_probs: list[float]
    weights: list[float]


def judge_token(target: Sequence[Distribution], draft: Sequence[Distribution], chain: Sequence[int]) -> Judgement:
    passes = [min(1.0, ratio(target[i][x], draft[i][x])) for i, x in enumerate(chain)]
    return Judgement(passes, [1.0] * (len(chain) + 1))


def judge_block(target: Sequence[Distribution], draft: Sequence[Distribution], chain: Sequence[int]) -> Judgement:
    passes, weights = [], [1.0]
    for i, x in enumerate(chain):
        w = min(1.0, weights[-1] * ratio(target[i][x], draft[i][x])) if weights[-1] > 0 else 0.0
        weights.append(w)
        if i + 1 == len(chain):
            passes.append(w)
            continue
        excess = sum(residual(target[i + 1], draft[i + 1], w))
        passes.append(excess / (excess + 1 - w) if excess + 1 - w > 0 else 1.0)
    return Judgement(passes, weights)


JUDGES = {"token": judge_token, "block": judge_block}


def ratio(target_prob: float, draft_prob: float) -> float:
    if target_prob == 0:
        return 0.0
    return target_prob / draft_prob if draft_prob > 0 else math.inf


def residual(target: Distribution, draft: Distribution, weight: float) -> Distribution:
    return [max(weight * t - d, 0.0) for t, d in zip(target, draft, strict=True)]


def num_accepted(rule: str, passed: Sequence[bool]) -> int:
    if rule == "token":
        return next((i for i, ok in enumerate(passed) if not ok), len(passed))
    return max((i + 1 for i, ok in enumerate(passed) if ok), default=0)


def accepted_law(rule: str, pass_probs: Sequence[float]) -> list[float]:
    """Probability of each number of accepted tokens, 0 to all of them, by integrating over every pass and failure."""
    law = [0.0] * (len(pass_probs) + 1)
    for passed in itertools.product((True, False), repeat=len(pass_probs)):
        prob = math.prod(p if ok else 1 - p for p, ok in zip(pass_probs, passed, strict=True))
        law[num_accepted(rule, passed)] += prob
    return law


def next_law(target: Distribution, draft: Distribution, weight: float) -> Distribution:
    """The law of the token after the accepted ones."""
    mass = residual(target, draft, weight)
    total = sum(mass)
    return [m / total for m in mass] if total > 0 else list(target)


def chain_law(draft: Conditional, vocab: int, width: int) -> list[tuple[tuple[int, ...], float]]:
    """Every chain the draft can propose and its probability."""
    chains: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for _ in range(width):
        chains = [((*chain, x), prob * p) for chain, prob in chains for x, p in enumerate(draft(chain)) if prob * p > 0]
    return chains


def rows(model: Conditional, chain: tuple[int, ...], count: int) -> list[Distribution]:
    """The model's distribution at each of the first `count` positions along the chain."""
    return [model(chain[:i]) for i in range(count)]


def length_law(rule: str, target: Conditional, draft: Conditional, vocab: int, width: int) -> list[float]:
    """The law of the number of accepted tokens, over chains and uniforms."""
    law = [0.0] * (width + 1)
    for chain, prob in chain_law(draft, vocab, width):
        judged = JUDGES[rule](rows(target, chain, width), rows(draft, chain, width), chain)
        for n, p in enumerate(accepted_law(rule, judged.pass_probs)):
            law[n] += prob * p
    return law


def emitted_law(
    rule: str, target: Conditional, draft: Conditional, vocab: int, width: int
) -> dict[tuple[int, ...], float]:
    """The joint law of the first `width` tokens, those that one round does not emit being drawn from the target."""
    law: dict[tuple[int, ...], float] = {}
    for chain, prob in chain_law(draft, vocab, width):
        target_rows, draft_rows = rows(target, chain, width), rows(draft, chain, width)
        judged = JUDGES[rule](target_rows, draft_rows, chain)
        for n, p in enumerate(accepted_law(rule, judged.pass_probs)):
            follow = [1.0] if n == width else next_law(target_rows[n], draft_rows[n], judged.weights[n])
            for v, q in enumerate(follow):
                emitted = chain if n == width else (*chain[:n], v)
                _complete(law, emitted, prob * p * q, target, width)
    return law


def _complete(
    law: dict[tuple[int, ...], float], prefix: tuple[int, ...], prob: float, target: Conditional, horizon: int
) -> None:
    if prob == 0:
        return
    if len(prefix) == horizon:
        law[prefix] = law.get(prefix, 0.0) + prob
        return
    for v, p in enumerate(target(prefix)):
        _complete(law, (*prefix, v), prob * p, target, horizon)


def joint(model: Conditional, vocab: int, length: int) -> dict[tuple[int, ...], float]:
    """The law of `length` tokens sampled one after another."""
    return dict(chain_law(model, vocab, length))


def filtered(
    logits: Sequence[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Distribution:
    """Probabilities after temperature, top_k, top_p and min_p, each on what the one before kept; ties are kept."""
    best = max(logits)
    weights = [math.exp((x - best) / temperature) for x in logits]
    if 0 < top_k < len(logits):
        kth = sorted(weights, reverse=True)[top_k - 1]
        weights = [w if w >= kth else 0.0 for w in weights]
    if top_p < 1:
        total = sum(weights)
        weights = [w if sum(o for o in weights if o > w) / total < top_p else 0.0 for w in weights]
    weights = [w if w >= min_p else 0.0 for w in weights]
    total = sum(weights)
    return [w / total for w in weights]
