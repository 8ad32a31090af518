"""A draft on a device of its own: what crosses to the target's, and when; and what the device's loss costs."""

from __future__ import annotations

import math

import pytest
import torch

from pearl_decode import SamplingParams
from pearl_decode.device.draft import Drafted
from pearl_decode.device.shape import shape_of
from pearl_decode.lanes.queue import InlineLane
from tests.runtime.device import DeviceDecoder, Schedule
from tests.runtime.scripted import ScriptedModel, sequence_model
from tests.runtime.test_ends import LINE, PROMPT, VOCAB

APART = ("cpu", "cpu:0")
TEXT = LINE[len(PROMPT) : len(PROMPT) + 40]
ALONE = r"the draft failed, the target goes on alone.*device lost"


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
def test_drafts_are_delivered_while_the_target_has_yet_to_run(llama, near_llama, prompts, strategy):
    schedule = Schedule(0, APART)
    lanes = schedule.lanes
    plan = {"strategy": strategy, "gamma": 3, "rule": "block", "device_lanes": lanes}
    with DeviceDecoder(llama, near_llama, **plan) as decoder:
        requests, _ = decoder.start(prompts[:1], SamplingParams(0.8, max_tokens=20))
        engine = decoder.runner.engine(requests, decoder.plan)
        rounds = engine._start()
        engine._prefill(rounds)
        round = rounds.play(engine._shapes[engine.chooser.choices[0]], 32)
        while lanes[1]._queue:  # the target goes as far as the message that the draft waits for
            (lanes[1] if lanes[1].ready() else lanes[0]).advance()
        assert lanes[0]._queue, "the target's parts of this round are still to run"
        assert torch.equal(round._received.tokens, round._drafts.tokens)
        assert torch.equal(round._received.logits, round._drafts.logits)
        assert round._received.logits.abs().sum() > 0
        rounds.release()


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
    assert (received.logits[:, 3:] == 0).all(), "a column that nobody looks at"
    assert all(tensor.mT.is_contiguous() for tensor in received.stats), "one copy, of all columns"
    assert received.logits[:, :3].transpose(0, 1).is_contiguous(), "one copy"


class LosableLane(InlineLane):
    """Of a device that, once lost, takes nothing any more."""

    lost = False

    def _refuse(self):
        if self.lost:
            raise RuntimeError("device lost")

    def run(self, work):
        self._refuse()
        super().run(work)

    def make(self, build):
        self._refuse()
        return super().make(build)

    def wait(self, event):
        self._refuse()
        super().wait(event)

    def record(self):
        self._refuse()
        return super().record()

    def join(self):
        self._refuse()
        super().join()

    def settle(self):
        self._refuse()
        super().settle()

    def release(self):
        self._refuse()
        super().release()


def _losing(lane, at, lives_there):
    """A model in whose forward number `at` the lane's device is lost."""
    calls, model = iter(range(1000)), sequence_model(LINE, VOCAB)

    def script(positions, ids):
        lane.lost |= next(calls) == at
        if lives_there:
            lane._refuse()
        return model.script(positions, ids)

    return ScriptedModel(VOCAB, script)


@pytest.mark.parametrize("strategy", ["sequential", "pearl"])
@pytest.mark.parametrize("devices", [("cpu", "cpu"), APART], ids=["one device", "two devices"])
@pytest.mark.parametrize("at", [0, 1, 5, 9])
@pytest.mark.parametrize("during", ["target", "draft"])
def test_a_draft_device_that_is_lost_costs_speed_and_no_request(strategy, devices, at, during):
    lane = LosableLane(devices[1])
    models = [_losing(lane, at if name == during else -1, name == "draft") for name in ("target", "draft")]
    plan = {"gamma": 4, "strategy": strategy, "device_lanes": (InlineLane(devices[0]), lane)}
    with DeviceDecoder(*models, **plan) as decoder:
        for _ in range(2):  # the second request finds it lost
            with pytest.warns(RuntimeWarning, match=ALONE):
                [result] = decoder.generate([PROMPT], SamplingParams(max_tokens=40, seed=1))
            assert result.error is None
            assert result.token_ids == TEXT


def test_a_draft_device_that_is_lost_before_a_stream_is_closed_is_a_warning_then():
    lane = LosableLane(APART[1])
    target = sequence_model(LINE, VOCAB)
    with DeviceDecoder(target, target, device_lanes=(InlineLane(APART[0]), lane)) as decoder:
        requests, _ = decoder.start([PROMPT], SamplingParams(max_tokens=40))
        rounds = decoder.runner.engine(requests, decoder.plan).run()
        next(rounds)
        lane.lost = True
        with pytest.warns(RuntimeWarning, match=ALONE):
            rounds.close()
        assert requests[0].result().finish_reason == "cancelled"


class _Lost:
    """A tensor that the device takes along."""

    def to(self, *args, **kwargs):
        raise RuntimeError("device lost")


@pytest.mark.parametrize("part", ["parameters", "map"])
def test_a_draft_device_without_room_for_the_smallest_thing_costs_no_request(part, monkeypatch):
    released, lane = [], InlineLane(APART[1])
    monkeypatch.setattr(lane, "release", lambda: released.append(True))
    target = sequence_model(LINE, VOCAB)
    with DeviceDecoder(target, target, device_lanes=(InlineLane(APART[0]), lane)) as decoder:
        if part == "map":
            decoder.draft.d2t = _Lost()
        else:
            monkeypatch.setattr(lane, "make", lambda work: _Lost().to())
        with pytest.warns(RuntimeWarning, match=ALONE):
            [result] = decoder.generate([PROMPT], SamplingParams(max_tokens=40))
        assert (result.error, result.token_ids) == (None, TEXT)
        assert (result.stats.draft_forwards, released) == (0, [True])
        monkeypatch.undo()
        decoder.draft.d2t = None
        [again] = decoder.generate([PROMPT], SamplingParams(max_tokens=40))
    assert again.token_ids == TEXT
    assert again.stats.accepted_tokens > 0, "the next batch has its draft again"
