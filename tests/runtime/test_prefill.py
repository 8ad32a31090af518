"""Reading the prompts of a batch: little of it is padding, and who is beside a text makes no difference."""

from __future__ import annotations

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.cache import WindowCache
from pearl_decode.lanes import CpuLane
from pearl_decode.lanes.cpu import available_cores
from pearl_decode.lanes.prefill import prefill
from pearl_decode.models import MOST_ROWS, CausalModel
from pearl_decode.state import Batch
from tests.runtime.test_at_once import draft_of
from tests.runtime.test_layer import WHOLE, load

PARAMS = SamplingParams(max_tokens=12)
LENGTHS = (MOST_ROWS + 2, 3, 1, 5, MOST_ROWS - 40, 30, 31)
# Tokens but for the last: one by one where they are long, the short ones together with little padding.
SHAPES = [(1, MOST_ROWS + 1), (3, 4), (1, MOST_ROWS - 41), (2, 30)]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def model(tmp_path):
    return load(WHOLE["llama"], tmp_path)


@pytest.fixture
def lane():
    lane = CpuLane("target", available_cores()[:1])
    yield lane
    lane.close()


@pytest.fixture
def shapes(monkeypatch):
    """(rows, width) of what was read of prompts."""
    found = []
    run = CausalModel.read

    def noted(self, input_ids, start, cache):
        found.append(tuple(input_ids.shape))
        return run(self, input_ids, start, cache)

    monkeypatch.setattr(CausalModel, "read", noted)
    return found


def texts(lengths=LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(96, (length,), generator=generator).tolist() for length in lengths]


def read(model, lane, prompts, start: int = 0) -> WindowCache:
    """What is cached of prompts of which `start` tokens were read before."""
    causal, count = CausalModel(model), len(prompts)
    batch = Batch.start(prompts, [PARAMS] * count, [0] * count, [[]] * count, 3, torch.device("cpu"))
    cache = WindowCache(batch.capacity)

    def work() -> None:
        if start:
            causal.forward(batch.gather([0] * count, start), [0] * count, cache, keep=0)
        prefill(causal, lane, cache, batch, start)

    lane.run(work).result()
    return cache


def test_prompts_are_read_with_little_padding_and_to_the_same_bits(model, lane, shapes):
    PearlDecoder(model).close()  # packs the weights
    prompts = texts()
    together = read(model, lane, prompts)
    assert shapes == SHAPES
    for row, prompt in enumerate(prompts):
        length = len(prompt) - 1
        for ours, alone in zip(together.layers, read(model, lane, [prompt]).layers, strict=False):
            assert torch.equal(ours.keys[row, :, :length], alone.keys[0, :, :length])
            assert torch.equal(ours.values[row, :, :length], alone.values[0, :, :length])


def test_what_was_read_is_gone_on_with(model, lane):
    """As by a draft that drafted for these texts before."""
    PearlDecoder(model).close()
    prompts = texts((MOST_ROWS, 9, 90))
    for ours, wanted in zip(read(model, lane, prompts, 4).layers, read(model, lane, prompts).layers, strict=True):
        for row, prompt in enumerate(prompts):
            length = len(prompt) - 1
            assert torch.equal(ours.keys[row, :, :length], wanted.keys[row, :, :length])


def test_texts_of_one_part_are_read_where_they_stay(model, lane, monkeypatch, shapes):
    monkeypatch.setattr(WindowCache, "take_over", lambda *_: pytest.fail("copied"))
    read(model, lane, texts((5, 9, 2)))
    read(model, lane, texts((3 * MOST_ROWS,)))
    assert shapes == [(3, 8), (1, 3 * MOST_ROWS - 1)]


@pytest.mark.parametrize("strategy", ["pearl", "sequential", "auto"])
def test_answers_are_those_of_each_prompt_by_itself(strategy, model):
    prompts = texts()
    with PearlDecoder(model, draft_of(model, reduced=True), strategy=strategy, rule="coupled") as decoder:
        params = [
            SamplingParams(max_tokens=4 + 3 * (row % 4), temperature=0.8, seed=row) for row in range(len(prompts))
        ]
        together = decoder.generate(prompts, params)
        alone = [decoder.generate([prompt], p)[0] for prompt, p in zip(prompts, params, strict=True)]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]


def test_any_model_reads_them_so(target, prompts, greedy_reference, shapes):
    long = [prompts[0] * 9, *prompts, prompts[2] * 4]
    with PearlDecoder(target, target, strategy="pearl", gamma=3) as decoder:
        results = decoder.generate(long, PARAMS)
    assert len(shapes) > 2
    assert [r.token_ids for r in results] == [greedy_reference(target, prompt, 12) for prompt in long]
