"""Runs of whole decoding, and which of their rounds count."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.attention import planless_sdpa
from pearl_decode.bench.peer_models import with_full_vocabulary
from pearl_decode.stats import DecodeStats

WARM_ROUNDS = 2  # of each run: the first runs call by call on a GPU, in the second graphs are captured
FEWEST_ROUNDS = 4


@dataclass(frozen=True)
class Mark:
    """The end of a round: seconds and tokens of all rows since the run began.

    host_s: processor time of the thread that drives the rounds
    """

    at_s: float
    host_s: float
    tokens: int
    target_busy_s: float = 0.0
    draft_busy_s: float = 0.0
    draft_forwards: int = 0


@dataclass(frozen=True)
class Run:
    """The counted rounds of one run: all but the first WARM_ROUNDS, while no row had ended.

    No round is then cut short by the end of a text, and none has fewer rows than another.

    seconds, host_s, target_busy_s, draft_busy_s: of the counted rounds together; tokens: verified in them
    texts:     all tokens of each row, counted or not; stats: of each row, whole; empty for a peer
    prefill_s: until the first round, where that is known
    """

    rounds: int
    tokens: int
    seconds: float
    host_s: float
    target_busy_s: float
    draft_busy_s: float
    draft_forwards: int
    texts: list[list[int]]
    peak_bytes: int
    prefill_s: float = 0.0
    stats: list[DecodeStats] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def round_s(self) -> float:
        return self.seconds / self.rounds

    @property
    def window_s(self) -> float:
        """Of the target, busy in a round."""
        return self.target_busy_s / self.rounds

    @property
    def step_s(self) -> float | None:
        """Of one draft forward; None where there was none."""
        return self.draft_busy_s / self.draft_forwards if self.draft_forwards else None

    @property
    def acceptance(self) -> float | None:
        judged = sum(each.judged_tokens for each in self.stats)
        return sum(each.accepted_tokens for each in self.stats) / judged if judged else None


def run_own(decoder: PearlDecoder, prompts: Sequence[list[int]], tokens: int, strategy: str, gamma: int | str) -> Run:
    """Decode so many tokens greedily. Raises RuntimeError if a request fails or too few rounds would count."""
    _reset_peak(decoder.target.device)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    requests, rounds = decoder.start(prompts, params, strategy=strategy, gamma=gamma)
    stats = requests[0].stats
    marks: list[Mark] = []
    emitted = counted = 0
    for updates in rounds:
        emitted += sum(len(update.token_ids) for update in updates)
        busy = stats.target_busy_s, stats.draft_busy_s, stats.draft_forwards
        marks.append(Mark(time.perf_counter(), time.thread_time(), emitted, *busy))
        counted += all(request.finish_reason is None for request in requests)
    for request in requests:
        if request.error is not None:
            raise RuntimeError(request.error)
    return _run(
        marks[:counted],
        [request.token_ids for request in requests],
        _peak(decoder.target.device),
        stats.prefill_s,
        [request.stats for request in requests],
    )


@planless_sdpa()  # it has a new shape at every forward
def run_assisted(target: PreTrainedModel, draft: PreTrainedModel, prompt: list[int], tokens: int, gamma: int) -> Run:
    """transformers' assisted generation with the same draft, always gamma tokens drafted, of one prompt.

    Raises RuntimeError if too few rounds would count.
    """
    peer: Any = target
    assistant: Any = with_full_vocabulary(draft, target.config.vocab_size)
    assistant.generation_config.num_assistant_tokens = gamma
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    _reset_peak(target.device)
    clock = _Clock()
    ids = torch.tensor([prompt], device=target.device)
    output: Tensor = peer.generate(
        ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, max_new_tokens=tokens, do_sample=False,
        pad_token_id=0, streamer=clock,
    )  # fmt: skip
    return _run(clock.marks[:-1], [output[0, len(prompt) :].tolist()], _peak(target.device))


class _Clock(BaseStreamer):
    """Marks the end of each of transformers' rounds."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._prompted = False

    def put(self, value: Tensor) -> None:
        if not self._prompted:  # it begins with the prompt
            self._prompted = True
            return
        tokens = (self.marks[-1].tokens if self.marks else 0) + value.numel()
        self.marks.append(Mark(time.perf_counter(), time.thread_time(), tokens))

    def end(self) -> None:
        pass


def _run(
    marks: Sequence[Mark],
    texts: list[list[int]],
    peak_bytes: int,
    prefill_s: float = 0.0,
    stats: Sequence[DecodeStats] = (),
) -> Run:
    rounds = len(marks) - WARM_ROUNDS
    if rounds < FEWEST_ROUNDS:
        wanted = WARM_ROUNDS + FEWEST_ROUNDS
        raise RuntimeError(f"a run needs {wanted} rounds before a text ends, got {len(marks)}: ask for more tokens")
    first, last = marks[WARM_ROUNDS - 1], marks[-1]
    return Run(
        rounds,
        last.tokens - first.tokens,
        last.at_s - first.at_s,
        last.host_s - first.host_s,
        last.target_busy_s - first.target_busy_s,
        last.draft_busy_s - first.draft_busy_s,
        last.draft_forwards - first.draft_forwards,
        texts,
        peak_bytes,
        prefill_s,
        list(stats),
    )


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Most memory in use at once: of the GPU since the run began; without one, of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
