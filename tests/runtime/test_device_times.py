"""What is known of when static rounds ran, on lanes that others may be using too."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

import pytest
import torch

from pearl_decode import SamplingParams
from pearl_decode.auto import Choice
from pearl_decode.device.flight import Flight
from pearl_decode.device.shape import shape_of
from pearl_decode.lanes import times as lane_times
from pearl_decode.lanes.queue import InlineLane
from tests.runtime.device import DeviceDecoder


def _lane(*durations: float) -> InlineLane:
    lane, start = InlineLane(), 5.0
    for duration in durations:
        lane.times.add(start, start + duration)
        start += duration + 1.0
    return lane


@pytest.mark.parametrize(
    ("strategy", "target", "draft", "wanted"),
    [
        ("autoregressive", (0.010, 0.001), (), (1, 0.011, 0.011, [])),
        ("sequential", (0.012, 0.001), (0.008,), (5, 0.021, 0.013, [0.002] * 4)),
        ("pearl", (0.010, 0.002, 0.001), (0.008,), (4, 0.013, 0.010, [0.002] * 4)),
        ("pearl", (0.010, 0.002, 0.001), (0.040,), (4, 0.043, 0.010, [0.010] * 4)),
    ],
)
def test_a_round_takes_its_longer_lane_and_what_comes_after(strategy, target, draft, wanted):
    lanes = _lane(1.0, *target), _lane(*draft)
    spans = (1, 1 + len(target)), (0, len(draft))
    shape = shape_of(strategy, 4)
    flight = Flight(Choice(strategy, 4), "", shape, [], [0], spans, spans, host_s=0.0, warm=True)
    timing = flight.timing(lanes)
    assert (timing.width, timing.round_s, timing.target_s) == pytest.approx(wanted[:3])
    assert timing.steps_s == pytest.approx(wanted[3])
    assert replace(flight, host_s=1.0).timing(lanes).round_s == 1.0
    assert replace(flight, warm=False).timing(lanes) is None
    assert flight.busy_s(lanes) == pytest.approx((sum(target), sum(draft)))
    lanes = _lane(1.0, *target[:-1]), lanes[1]
    assert flight.timing(lanes) is None, "a part has not ended"


def test_a_lane_remembers_the_latest_pieces_by_their_numbers(monkeypatch):
    monkeypatch.setattr(lane_times, "REMEMBERED", 4)
    times = lane_times.Times()
    for number in range(30):
        times.add(number, number + 0.5)
        assert times.count == number + 1
        assert times.between(number - 2, number + 2) is None, "not ended yet"
        if number >= 3:
            assert times.between(number - 3, number) == [(n, n + 0.5) for n in range(number - 3, number)]
    assert times.between(0, 2) is None
    assert len(times._intervals) < 8


class _SecondLane(InlineLane):
    """On which every piece of work takes a second."""

    def finish(self, work):
        with torch.inference_mode():
            work()
        self.times.add(0.0, 1.0)


def test_streams_that_take_turns_on_a_lane_are_timed_apart(llama, near_llama, prompts):
    params = SamplingParams(max_tokens=16)

    def times(count):
        lanes = _SecondLane(), _SecondLane()
        with DeviceDecoder(llama, near_llama, strategy="pearl", gamma=3, device_lanes=lanes) as decoder:
            streams = [decoder.start(prompts[:1], params) for _ in range(count)]
            for _ in zip_longest(*(rounds for _, rounds in streams)):
                pass
        return [(stats.target_busy_s, stats.draft_busy_s) for (request,), _ in streams for stats in [request.stats]]

    [alone] = times(1)
    assert min(alone) > 1.0
    assert times(2) == [alone, alone]
