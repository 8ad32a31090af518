"""What a run counted and timed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class DecodeStats:
    """Counts of one request, and times from when its prompt was read (seconds; prompt processing apart).

    reused_tokens:     tokens of the prompt that were not read, as a session's last text began with them
    rounds:            verifications the request took part in
    target_forwards:   target forwards of those rounds (one each); prompt processing is not counted
    draft_forwards:    draft forwards of those rounds
    emitted_tokens:    tokens returned: verified, up to the end of the text
    accepted_tokens:   drafted tokens among them
    judged_tokens:     drafted tokens the target judged, one by one until the first it refused
    accepted_lengths:  histogram: entry n counts the rounds in which n drafted tokens were accepted
    choices:           with strategy or gamma "auto", the rounds of each choice, such as {"pearl 4": 20}
    reason:            why the last of them was made, in a line
    target_busy_s, draft_busy_s: time each lane computed while decoding; *_idle_s: the rest of decode_s
    """

    strategy: str
    gamma: int | str
    rule: str
    reused_tokens: int = 0
    rounds: int = 0
    target_forwards: int = 0
    draft_forwards: int = 0
    emitted_tokens: int = 0
    accepted_tokens: int = 0
    judged_tokens: int = 0
    accepted_lengths: list[int] = field(default_factory=list)
    choices: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    target_busy_s: float = 0.0
    target_idle_s: float = 0.0
    draft_busy_s: float = 0.0
    draft_idle_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.emitted_tokens / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def tokens_per_target_forward(self) -> float:
        return self.emitted_tokens / self.target_forwards if self.target_forwards else 0.0

    @property
    def acceptance(self) -> float | None:
        """Share of the judged tokens that were accepted; None where there were none."""
        return self.accepted_tokens / self.judged_tokens if self.judged_tokens else None

    def count_round(self, num_emitted: int, num_accepted: int, num_judged: int, draft_forwards: int) -> None:
        self.rounds += 1
        self.target_forwards += 1
        self.draft_forwards += draft_forwards
        self.emitted_tokens += num_emitted
        self.accepted_tokens += num_accepted
        self.judged_tokens += num_judged
        self.accepted_lengths.extend([0] * (num_accepted + 1 - len(self.accepted_lengths)))
        self.accepted_lengths[num_accepted] += 1

    def count_choice(self, choice: object, reason: str) -> None:
        """Of the round just counted: what was chosen for it, and why."""
        self.choices[str(choice)] = self.choices.get(str(choice), 0) + 1
        self.reason = reason

    def count_time(self, decode_s: float, target_s: float, draft_s: float) -> None:
        """So far: in all, and of it what each lane computed."""
        self.decode_s = decode_s
        self.target_busy_s, self.target_idle_s = target_s, decode_s - target_s
        self.draft_busy_s, self.draft_idle_s = draft_s, decode_s - draft_s

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_target_forward": self.tokens_per_target_forward,
            "acceptance": self.acceptance,
        }
