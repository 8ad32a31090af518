"""The training loop: one step per batch, the same steps in the same order however often it is interrupted."""

from __future__ import annotations

import io
import math
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pearl_decode.distill.compiling import compiled
from pearl_decode.distill.induction import fit_strengths, induced
from pearl_decode.distill.lessons import Head, Lesson, Lessons, hidden_states
from pearl_decode.distill.losses import LOSSES, mean_loss, sum_of
from pearl_decode.drafts import own_parameters, write_whole

WARM_UP = 0.03  # share of the run
FINAL_RATE = 0.05  # of the learning rate, at the end
EVERY_S = 60.0  # between measurements, and between checkpoints
GLANCE = 1 << 12  # held-out tokens that are measured on while training, which waits for it
NEWS_S = 0.2  # between reports: for the loss the device is waited for


@dataclass(frozen=True)
class Progress:
    """Where training is. done: share of the run; acceptance, agreement: on some held-out prompts, see `Quality`."""

    step: int
    tokens: int
    done: float
    loss: float
    tokens_per_s: float
    acceptance: float
    agreement: float


@dataclass(frozen=True)
class Quality:
    """On held-out answers, given the answer so far, per token.

    acceptance: mean of sum_v min(target_prob, draft_prob): what verification accepts at temperature 1
    agreement:  how often the two likeliest tokens are the same: what it accepts when greedy
    """

    acceptance: float
    agreement: float


@dataclass(frozen=True)
class Recipe:
    """How to train. tokens: to learn from, over all passes; compile: a step, which takes a while at first."""

    tokens: int
    learning_rate: float
    loss: str
    seed: int
    compile: bool


class Trainer:
    """Trains a draft in place. Its checkpoint holds weights, optimizer state and the place in the data."""

    def __init__(self, target: Any, draft: Any, train: Lessons, held_out: Lessons, recipe: Recipe) -> None:
        if not train:
            raise ValueError("prompts: no answer left to learn from after some were held out")
        self.draft, self.recipe = draft, recipe
        self.device: torch.device = target.device
        d2t = getattr(draft, "d2t", None)
        self._ids = torch.arange(train.vocab, device=self.device) if d2t is None else d2t
        self._head = Head.of(draft)
        self._losses, self._trained = sum_of(LOSSES[recipe.loss]), draft.base_model
        if recipe.compile:
            self._losses = compiled("the loss", self._losses, fullgraph=True)
            self._trained = compiled("the draft", draft.base_model, fullgraph=False)
        self._halves = self.device.type == "cuda" or target.dtype is torch.bfloat16
        self._train, self._held_out = train, held_out
        draft.requires_grad_(False)
        # Weights live in float32: a step is smaller than bfloat16 can add.
        self._own = own_parameters(draft)
        for weight in self._own.values():
            weight.data = weight.data.float()
            weight.requires_grad_(True)
        decayed = [weight for weight in self._own.values() if weight.ndim > 1]
        plain = [weight for weight in self._own.values() if weight.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        # Fused, a step reads and writes all it knows of a weight once.
        fused = self.device.type in ("cpu", "cuda")
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=fused)
        self.step = self.tokens = 0
        self.elapsed_s = 0.0

    def run(
        self,
        checkpoint: Path,
        limit_s: float | None,
        report: Callable[[Progress], None],
        every_s: float = EVERY_S,
    ) -> Quality:
        """Train to the end, fit the draft's induction, and measure.

        limit_s: of the training; the learning rate falls with whichever end is nearer
        Writes a checkpoint every `every_s` seconds, at the end, and when interrupted. Raises ValueError where weights
        grow beyond all numbers, and leaves no checkpoint then.
        """
        begin = last = time.monotonic()
        first_tokens, quality, news = self.tokens, self.measure(GLANCE), -math.inf
        try:
            while (done := self._done(time.monotonic() - begin, limit_s)) < 1:
                loss = self._one_step(done)
                now = time.monotonic()
                if now - news > NEWS_S and not self._is_sound():
                    break
                if now - last > every_s:
                    last = now
                    self.save(checkpoint)
                    quality = self.measure(GLANCE)
                if now - news > NEWS_S:
                    speed = (self.tokens - first_tokens) / max(now - begin, 1e-9)
                    by_now = quality.acceptance, quality.agreement
                    report(Progress(self.step, self.tokens, done, float(loss), speed, *by_now))
                    news = time.monotonic()
        finally:
            self.elapsed_s += time.monotonic() - begin
            if sound := self._is_sound():
                self.save(checkpoint)
            else:
                checkpoint.unlink(missing_ok=True)
        if not sound:
            raise ValueError(
                f"learning_rate: after {self.step} steps the weights are no numbers any more, "
                f"resume with less than {self.recipe.learning_rate}: what was answered is kept"
            )
        self.draft.eval()
        # What a draft has learnt by heart needs no help: on that the strengths would come out too low.
        self.draft.induction = fit_strengths(self._held_out, self._hidden_states, self._head, self._ids)
        return self.measure()

    def _is_sound(self) -> bool:
        return all(bool(weight.isfinite().all()) for weight in self._own.values())

    def _done(self, elapsed_s: float, limit_s: float | None) -> float:
        by_tokens = self.tokens / self.recipe.tokens if self.recipe.tokens else 1.0
        by_time = 0.0 if limit_s is None else elapsed_s / max(limit_s, 1e-9)
        return max(by_tokens, by_time)

    def _one_step(self, done: float) -> torch.Tensor:
        """One batch; the loss, on the device."""
        rate = self.recipe.learning_rate * min(1.0, (done + 1e-3) / WARM_UP)
        rate *= FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        lesson = self._train[self._batch_index()]
        self.draft.train()
        loss = mean_loss(self._losses, self._hidden_states(lesson), self._head, lesson)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._own.values()), 1.0)
        self._optimizer.step()
        self.step += 1
        self.tokens += len(lesson.hidden)
        return loss.detach()

    def _batch_index(self) -> int:
        """The order is a function of seed and pass, so that a step number says all about the place in the data."""
        number, place = divmod(self.step, len(self._train))
        order = list(range(len(self._train)))
        random.Random(f"{self.recipe.seed}-{number}").shuffle(order)
        return order[place]

    @torch.no_grad()
    def measure(self, enough: float = math.inf) -> Quality:
        """The draft on the held-out prompts, or as many of them, always the same, as have `enough` tokens."""
        self.draft.eval()
        strengths = getattr(self.draft, "induction", None)
        positions, accepted, agreed = 0, 0.0, 0.0
        for index in random.Random(0).sample(range(len(self._held_out)), len(self._held_out)):
            if positions >= enough:
                break
            lesson = self._held_out[index]
            hidden = self._hidden_states(lesson)
            for rows in self._head.parts(len(hidden)):
                logits = self._head.logits(hidden[rows])
                if strengths is not None:
                    induced(logits, lesson, rows, strengths, self._ids)
                accepted += float(torch.minimum(lesson.probs(self._head, rows), logits.softmax(-1)).sum())
                agreed += float((lesson.best[rows] == self._ids[logits.argmax(-1)]).sum())
            positions += len(lesson.hidden)
        return Quality(accepted / max(positions, 1), agreed / max(positions, 1))

    def save(self, path: Path) -> None:
        """Raises OSError: out of disk leaves the checkpoint before."""
        buffer = io.BytesIO()
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "elapsed_s": self.elapsed_s,
            "weights": {name: weight.detach().cpu() for name, weight in self._own.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(state, buffer)
        write_whole(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises ValueError if it is not one of this draft."""
        try:
            # Each tensor goes where the optimizer wants it.
            state = torch.load(path, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for name, weight in self._own.items():
                    weight.copy_(state["weights"][name])
            self._optimizer.load_state_dict(state["optimizer"])
        except Exception as error:
            # Without torch's own words, which advise to trust the file.
            raise ValueError(
                f"resume: {path} is not a checkpoint of this draft, delete it to train from the beginning"
            ) from error
        self.step, self.tokens, self.elapsed_s = state["step"], state["tokens"], state["elapsed_s"]

    def _hidden_states(self, lesson: Lesson) -> torch.Tensor:
        """What the draft's head reads."""
        halves: AbstractContextManager[Any] = nullcontext()
        if self._halves:
            halves = torch.autocast(self.device.type, torch.bfloat16)
        with halves:
            # What is not trained is run too seldom to be compiled for that.
            base_model = self._trained if self.draft.training else self.draft.base_model
            return hidden_states(base_model, lesson.inputs, lesson.learn)
