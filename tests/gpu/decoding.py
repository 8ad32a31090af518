"""A decoder on a device, as small as can be: rounds of PEARL on two tables of logits, with nothing the host reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import pearl_kernels
from pearl_kernels import AdvanceOutput, DecodeState, Purpose, SamplingTensors
from tests.gpu.elsewhere import moved
from tests.kernels.cases import mixed_params, peaked_logits


@dataclass(frozen=True, eq=False)
class Decoder:
    """The next token's logits depend on the last token alone."""

    target: Tensor  # (vocab, vocab)
    draft: Tensor  # (vocab, vocab)
    params: SamplingTensors
    state: DecodeState
    gamma: int
    rule: str
    backend: str

    def round(self) -> AdvanceOutput:
        """Draft gamma tokens behind each window, then verify the windows. Finished rows draft, to no effect."""
        state = self.state
        columns = torch.arange(self.gamma, device=state.tokens.device)
        last_column = state.tokens.shape[1] - 1
        at = (state.committed + state.window).clamp(max=last_column - self.gamma)
        token = state.tokens.gather(1, at[:, None] - 1).squeeze(1)
        drafted = []
        for i in range(self.gamma):
            out = pearl_kernels.sample(
                self.draft[token], self.params, at + i, purpose=self._purpose, epochs=self._epochs, backend=self.backend
            )
            token = out.tokens
            drafted.append(token)
        state.tokens.scatter_(1, at[:, None] + columns, torch.stack(drafted, 1))
        before = state.tokens.gather(1, (state.committed[:, None] - 1 + columns).clamp(max=last_column))
        return pearl_kernels.advance_(
            state, self.target[before], self.params, draft_logits=self.draft[before], rule=self.rule,
            next_window=self.gamma - 1, backend=self.backend,
        )  # fmt: skip

    @property
    def _purpose(self) -> Purpose:
        return Purpose.SAMPLE if self.rule == "coupled" else Purpose.DRAFT

    @property
    def _epochs(self) -> Tensor | None:
        return None if self.rule == "coupled" else self.state.committed


def new_decoder(
    device: torch.device, backend: str, rule: str, *, rows: int = 64, vocab: int = 300, length: int = 60
) -> Decoder:
    """Sequences of one token, each with parameters and an end of its own."""
    generator = torch.Generator().manual_seed(0)
    target = peaked_logits((vocab, vocab), generator)
    state = DecodeState(
        tokens=torch.zeros(rows, length + 20, dtype=torch.int64),
        committed=torch.ones(rows, dtype=torch.int64),
        window=torch.zeros(rows, dtype=torch.int32),
        max_len=torch.randint(10, length, (rows,), generator=generator),
        eos_ids=torch.tensor([[1, -1]]).repeat(rows, 1),
        finished=torch.zeros(rows, dtype=torch.int32),
        status=torch.zeros(rows, dtype=torch.int32),
    )
    return moved(
        Decoder(
            target=target,
            draft=target + 0.7 * torch.randn(vocab, vocab, generator=generator),
            params=mixed_params(rows),
            state=state,
            gamma=4,
            rule=rule,
            backend=backend,
        ),
        device,
    )
