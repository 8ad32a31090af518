"""A draft on a device of its own: what crosses to the target's, and when."""

from __future__ import annotations

import math

import pytest
import torch

from pearl_decode import SamplingParams
from pearl_decode.device.draft import Drafted
from pearl_decode.device.shape import shape_of
from tests.runtime.device import DeviceDecoder, Schedule

APART = ("cpu", "cpu:0")


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_drafts_are_delivered_while_the_target_has_yet_to_run(llama, near_llama, prompts, strategy):
    schedule = Schedule(0, APART)
    lanes = schedule.lanes
    plan = {"strategy": strategy, "gamma": 3, "rule": "block", "device_lanes": lanes}
    with DeviceDecoder(llama, near_llama, **plan) as decoder:
        requests, _ = decoder.start(prompts[:1], SamplingParams(0.8, max_tokens=20))
        engine = decoder.runner.engine(requests, decoder.plan)
        _, rounds = engine._start()
        engine._prefill(rounds)
        round = rounds.play(engine._shapes[engine.chooser.choices[0]], 32)
        while lanes[1]._queue:  # the target goes as far as the message that the draft waits for
            (lanes[1] if lanes[1].ready() else lanes[0]).advance()
        assert lanes[0]._queue, "the target's parts of this round are still to run"
        assert torch.equal(round._received.tokens, round._drafts.tokens)
        assert torch.equal(round._received.logits, round._drafts.logits)
        assert round._received.logits.abs().sum() > 0
        rounds.settle()


def test_what_crosses_are_the_drafted_columns_in_the_drafts_own_type():
    shape, logits = shape_of("sequential", 3), torch.zeros(2, 5, dtype=torch.bfloat16)
    sent, received = (Drafted.empty(2, shape, logits, torch.device("cpu")) for _ in range(2))
    for tensor in (sent.logits, *sent.stats):
        tensor[:, :3], tensor[:, 3:] = 1.0, math.nan
    sent.tokens.fill_(7)
    received.copy_(sent)
    assert (received.tokens == 7).all()
    assert received.logits.dtype is torch.bfloat16
    for tensor in (received.logits, *received.stats):
        assert (tensor[:, :3] == 1).all()
        assert (tensor[:, 3:] == 0).all(), "a column that nobody looks at"
    assert received.logits[:, :3].transpose(0, 1).is_contiguous(), "one copy"
