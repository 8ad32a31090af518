"""The coupled rule: the text is a function of target, prompt, parameters and seed, and of nothing else."""

from __future__ import annotations

import pytest

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.first_layers import first_layers
from tests.runtime.tiny import build

COUNT = 40
PARAMS = [
    SamplingParams(temperature=0.9, max_tokens=COUNT, seed=1),
    SamplingParams(temperature=1.3, top_p=0.9, max_tokens=COUNT, seed=2),
    SamplingParams(temperature=0.7, top_k=12, max_tokens=COUNT, seed=2**63 + 5),
    SamplingParams(temperature=1.0, min_p=0.02, max_tokens=COUNT, seed=-4),
    SamplingParams(temperature=0.0, max_tokens=COUNT, seed=5),
]


@pytest.fixture(scope="module")
def plain(llama, prompts):
    """Autoregressive sampling, one request at a time."""
    with PearlDecoder(llama, strategy="autoregressive") as decoder:
        return [decoder.generate([prompt], params)[0].token_ids for prompt, params in zip(prompts, PARAMS, strict=True)]


@pytest.mark.parametrize("gamma", [1, 3, 6])
@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("draft", ["near", "first layers", "unrelated"])
def test_coupled_text_equals_autoregressive_text(llama, near_llama, prompts, plain, draft, strategy, gamma):
    drafts = {"near": near_llama, "first layers": first_layers(llama, 2), "unrelated": build("gpt2", seed=8)}
    with PearlDecoder(llama, drafts[draft], rule="coupled", strategy=strategy, gamma=gamma) as decoder:
        assert [r.token_ids for r in decoder.generate(prompts, PARAMS)] == plain
        reverse = decoder.generate(prompts[::-1], PARAMS[::-1])
        assert [r.token_ids for r in reverse] == plain[::-1]
        assert decoder.generate(prompts[2:3], PARAMS[2])[0].token_ids == plain[2]


def test_coupled_good_draft_is_accepted(llama, near_llama, prompts, plain):
    with PearlDecoder(llama, near_llama, rule="coupled", strategy="pearl", gamma=4) as decoder:
        results = decoder.generate(prompts, PARAMS)
    assert sum(r.stats.accepted_tokens for r in results) > 0.4 * sum(r.stats.emitted_tokens for r in results)


@pytest.mark.parametrize("options", [{"reproducible": True}] + [
    {"rule": rule, "strategy": "pearl", "gamma": 4} for rule in ("token", "block", "coupled")
])  # fmt: skip
def test_same_seed_gives_the_same_text_again(llama, near_llama, prompts, options):
    with PearlDecoder(llama, near_llama, **options) as decoder:
        first = decoder.generate(prompts, SamplingParams(temperature=1.0, max_tokens=20))
        again = [SamplingParams(temperature=1.0, max_tokens=20, seed=result.seed) for result in first]
        assert [r.token_ids for r in decoder.generate(prompts, again)] == [r.token_ids for r in first]


def test_reproducible_refuses_a_rule_that_is_not(llama, near_llama):
    with pytest.raises(
        ValueError, match=r"rule must be one of .*'coupled', 'greedy'.* where reproducible, got 'block'"
    ):
        PearlDecoder(llama, near_llama, reproducible=True, rule="block")
