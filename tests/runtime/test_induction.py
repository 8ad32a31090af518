"""Drafts with induction: what it adds, through rollbacks and in both runtimes, and that texts keep the target's law."""

from __future__ import annotations

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.cache import WindowCache
from pearl_decode.distill.induction import CHOICES, fit_strengths
from pearl_decode.distill.lessons import Head, Lessons
from pearl_decode.distill.samples import Sample
from pearl_decode.first_layers import first_layers
from pearl_decode.models import CausalModel
from tests.kernels.test_induction import expected_gain
from tests.runtime.device import DeviceDecoder, DynamicDecoder
from tests.runtime.scripted import ScriptedModel, sequence_model, table_model
from tests.runtime.test_device_rounds import PARAMS, answers
from tests.runtime.test_law import LENGTH, ROWS, VOCAB, _exact_law, _p_value, _tables
from tests.runtime.tiny import build

STRENGTHS = torch.tensor([1.0, 3.0, 8.0])
CAPACITY = 40


def with_induction(draft):
    draft.induction = STRENGTHS
    return draft


@pytest.fixture
def draft():
    return with_induction(build("llama", seed=1))


def gained(plain: torch.Tensor, text: list[int]) -> torch.Tensor:
    """Logits (width, vocab) of a text's last tokens, as they are and with what is to be added."""
    logits = plain.clone()
    for row in range(len(logits)):
        gain = expected_gain(text[: len(text) - len(logits) + row + 1], len(STRENGTHS))
        if gain is not None:
            logits[row, gain[1]] += STRENGTHS[gain[0] - 1]
    return logits


@torch.no_grad()
@pytest.mark.parametrize("on_device", [False, True])
def test_windows_gain_what_their_own_row_says_after_rollbacks_and_with_fewer_rows(draft, on_device):
    plain, model, cache = build("llama", seed=1), CausalModel(draft), WindowCache(CAPACITY)
    texts = torch.randint(1, 4, (3, CAPACITY), generator=torch.Generator().manual_seed(0))
    refused = torch.randint(1, 4, (3, CAPACITY), generator=torch.Generator().manual_seed(1))
    rows, lengths = [0, 1, 2], [9, 4, 6]
    model.read(texts[:, :9], 0, cache)

    def window(of: torch.Tensor, width: int) -> torch.Tensor:
        ids = torch.stack([of[row, length : length + width] for row, length in zip(rows, lengths, strict=True)])
        if on_device:
            return model.forward_at(ids, torch.tensor(lengths), cache, CAPACITY, keep=width)
        return model.forward(ids, lengths, cache, keep=width)

    for width in (3, 1, 4):
        window(refused, 5)
        logits = window(texts, width)
        for row, length, got in zip(rows, lengths, logits, strict=True):
            text = texts[row, : length + width]
            wanted = gained(plain(input_ids=text[None]).logits[0, -width:], text.tolist())
            torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)
        lengths = [length + width for length in lengths]
        if width == 3:
            cache.keep([2, 1])
            rows, lengths = [2, 1], [lengths[2], lengths[1]]


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_static_rounds_draft_what_dynamic_ones_do(llama, prompts, strategy):
    draft, params = with_induction(first_layers(llama, 2)), PARAMS
    with DynamicDecoder(llama, draft) as dynamic, DeviceDecoder(llama, draft) as static:
        for gamma, rule in ((1, "token"), (4, "block"), (5, "coupled")):
            plan = {"strategy": strategy, "gamma": gamma, "rule": rule}
            assert answers(static, prompts, params, **plan) == answers(dynamic, prompts, params, **plan)


@pytest.mark.parametrize("d2t", [None, [0, 3, 4, 5, 6, 7]])
@pytest.mark.usefixtures("runtime")
def test_a_text_that_repeats_itself_is_accepted_from_a_draft_that_knows_nothing(d2t):
    """Its third round on: the second one is the first that came before."""
    period = [3, 4, 7, 3, 5]
    target = sequence_model(period * 20, 8)
    accepted = {}
    for name in ("plain", "induction"):
        size = 8 if d2t is None else len(d2t)
        draft = ScriptedModel(size, lambda positions, ids, size=size: torch.zeros(*ids.shape, size))
        if d2t is not None:
            draft.d2t = torch.tensor(d2t)
        if name == "induction":
            draft.induction = STRENGTHS
        with PearlDecoder(target, draft, strategy="sequential", gamma=4) as decoder:
            [result] = decoder.generate([period * 2], SamplingParams(max_tokens=40), rule="token")
        assert result.token_ids == (period * 8)
        accepted[name] = result.stats.rounds
    assert accepted["induction"] == 8
    assert accepted["plain"] > 30


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.usefixtures("runtime")
def test_sampled_texts_have_the_targets_law(strategy, rule):
    target, table = _tables()
    draft = with_induction(table_model(table))
    params = [SamplingParams(temperature=0.8, max_tokens=LENGTH, seed=seed) for seed in range(ROWS)]
    with PearlDecoder(table_model(target), draft, max_batch=ROWS) as decoder:
        results = decoder.generate([[2, 3, 2, 1, 2]] * ROWS, params, strategy=strategy, rule=rule, gamma=3)
    cells = (torch.tensor([result.token_ids for result in results]) * torch.tensor([VOCAB**2, VOCAB, 1])).sum(1)
    counts = torch.bincount(cells, minlength=VOCAB**LENGTH)
    assert _p_value(counts, _exact_law(target, first=2, temperature=0.8)) > 1e-4


@torch.no_grad()
def test_the_strengths_that_are_fitted_are_accepted_most(llama):
    ids = torch.arange(0, 120, 2)
    generator = torch.Generator().manual_seed(3)
    samples = [Sample(torch.randint(0, 9, (30,), generator=generator).tolist(), 5) for _ in range(6)]
    hidden = {}

    def hidden_states(lesson):
        return hidden.setdefault(id(lesson), torch.randn(len(lesson.hidden), 48, generator=generator))

    lessons = Lessons(llama, samples, 64)
    head = Head(llama.lm_head.weight[ids], None)
    strengths = fit_strengths(lessons, hidden_states, head, ids).tolist()

    scores = torch.zeros(9, len(CHOICES))
    for lesson in lessons:
        rows, columns = lesson.learn.nonzero(as_tuple=True)
        for place, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            gain = expected_gain(lesson.inputs[row, : column + 1].tolist(), 8)
            if gain is None or gain[1] % 2:
                continue
            target_probs = llama(input_ids=lesson.inputs[row : row + 1, : column + 1]).logits[0, -1].softmax(-1)
            for choice, strength in enumerate(CHOICES):
                logits = head.weight @ hidden[id(lesson)][place]
                logits[gain[1] // 2] += strength
                scores[gain[0], choice] += torch.minimum(target_probs[ids], logits.softmax(-1)).sum()
                scores[gain[0], choice] += ids[logits.argmax()] == target_probs.argmax()
    best = [CHOICES[choice] for choice in scores[1:].argmax(1).tolist()]
    assert strengths == [max(best[: n + 1]) for n in range(8)]
    assert len(set(strengths)) > 1
