"""The target's own answers, many at once, written to disk as they end."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from reprlib import repr as short

import torch

from pearl_decode.cache import WindowCache
from pearl_decode.distill.prompts import Prompt
from pearl_decode.models import CausalModel
from pearl_decode.padding import read_texts
from pearl_decode.trials import window_attention_tried
from pearl_kernels import SamplingTensors, Status, sample

LOGGER = logging.getLogger(__name__)
TEMPERATURES = (0.0, 0.7, 1.0)
SHARD = 8  # batches whose prompts are sorted by length together
READ_ON_CPU, READ_ON_GPU = 1 << 11, 1 << 15  # tokens of prompts at once, with padding
STAYING = 0.875  # of a batch's rows: where no more go on the others leave it, for which all caches are copied


@dataclass(frozen=True)
class Answer:
    """One answer of the target. round: 0, 1, ...; a prompt's rounds take TEMPERATURES in turn. prompt: its text."""

    key: str
    round: int
    temperature: float
    prompt_ids: list[int]
    answer_ids: list[int]
    prompt: str = ""


@dataclass(frozen=True)
class Job:
    prompt: Prompt
    round: int
    temperature: float
    seed: int


def plan_jobs(prompts: Sequence[Prompt], rounds: int, seed: int) -> list[Job]:
    """Every prompt once a round, in an order of its own; temperatures alternate so that each part of it is a mix."""
    jobs = []
    for number in range(rounds):
        order = list(range(len(prompts)))
        random.Random(f"{seed}-{number}").shuffle(order)
        for index in order:
            prompt = prompts[index]
            temperature = TEMPERATURES[(index + number) % len(TEMPERATURES)]
            jobs.append(Job(prompt, number, temperature, seed_of(seed, number, prompt.key)))
    return jobs


def seed_of(seed: int, number: int, key: str) -> int:
    digest = hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def read_answers(path: Path) -> list[Answer]:
    """What a file of answers holds; a last line that was cut off by a kill is dropped from it.

    Raises ValueError naming the line that is no answer.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return [_answer(path, number, line) for number, line in enumerate(content[:whole].splitlines(), start=1)]


def _answer(path: Path, number: int, line: bytes) -> Answer:
    try:
        return Answer(**json.loads(line))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"resume: {path}:{number} is not an answer, delete the line to have it made again: {error}"
        ) from error


def write_answers(
    target: CausalModel,
    jobs: Sequence[Job],
    path: Path,
    *,
    max_tokens: int,
    batch: int,
    eos_ids: Sequence[int],
    deadline: float | None = None,
    report: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Answer the jobs that the file lacks, append each answer to it as one line, and return all of the file's.

    deadline: time.monotonic() after which no new batch is begun
    An answer depends on its job alone (up to rounding), not on the batch it is in.
    Raises ValueError where the file has answers to another prompt of the same key.
    """
    done = {(answer.key, answer.round): answer for answer in read_answers(path)}
    for job in jobs:
        answer = done.get((job.prompt.key, job.round))
        if answer is None:
            continue
        if answer.prompt != job.prompt.text:
            raise ValueError(
                f"prompts: that of id or line {job.prompt.key} is {short(job.prompt.text)}, but {path} has an answer "
                f"to {short(answer.prompt)}: resume with the prompts of that run, or choose another directory"
            )
        report(answer)
    missing = [job for job in jobs if (job.prompt.key, job.round) not in done]
    with path.open("a", encoding="utf-8") as file, window_attention_tried(target.model), torch.inference_mode():
        for rows in _batches(missing, batch):
            if deadline is not None and time.monotonic() > deadline:
                break
            for answer in _answer_in_parts(target, rows, max_tokens, eos_ids):
                file.write(json.dumps(asdict(answer), separators=(",", ":")) + "\n")
                file.flush()
                done[answer.key, answer.round] = answer
                report(answer)
    return list(done.values())


def _batches(jobs: Sequence[Job], batch: int) -> Iterable[Sequence[Job]]:
    """Batches of prompts of similar length, each part of the whole a fair sample of it."""
    for start in range(0, len(jobs), batch * SHARD):
        shard = sorted(jobs[start : start + batch * SHARD], key=lambda job: len(job.prompt.token_ids))
        parts = [shard[begin : begin + batch] for begin in range(0, len(shard), batch)]
        random.Random(start).shuffle(parts)
        yield from parts


def _answer_in_parts(
    target: CausalModel, jobs: Sequence[Job], max_tokens: int, eos_ids: Sequence[int]
) -> Iterable[Answer]:
    """As `answer_batch`; where memory ends, what has no answer yet is answered in two halves."""
    answered = set()
    try:
        for answer in answer_batch(target, jobs, max_tokens, eos_ids):
            answered.add((answer.key, answer.round))
            yield answer
        return
    except torch.OutOfMemoryError:
        if len(jobs) < 2:
            raise
    left = [job for job in jobs if (job.prompt.key, job.round) not in answered]
    half = len(left) // 2
    LOGGER.warning("%d answers at once do not fit into memory: %d are left, in two halves", len(jobs), len(left))
    for part in filter(None, (left[:half], left[half:])):
        yield from _answer_in_parts(target, part, max_tokens, eos_ids)


def answer_batch(target: CausalModel, jobs: Sequence[Job], max_tokens: int, eos_ids: Sequence[int]) -> Iterable[Answer]:
    """Decode one batch; rows that have ended leave it, several at once.

    Raises ValueError where the target's logits are nothing to draw from.
    """
    device, ends, rows = target.device, set(eos_ids), list(jobs)
    cache = _read(target, [job.prompt.token_ids[:-1] for job in rows], max_tokens + 1)
    inputs = torch.tensor([job.prompt.token_ids[-1:] for job in rows], device=device)
    texts: list[list[int]] = [[] for _ in rows]
    going = list(range(len(rows)))
    params = _params(rows, device)
    for count in range(max_tokens):
        starts = [len(job.prompt.token_ids) - 1 + count for job in rows]
        logits = target.forward(inputs, starts, cache, keep=1)[:, 0]
        drawn = sample(logits, params, torch.tensor(starts, device=device) + 1)
        tokens, status = drawn.tokens.tolist(), drawn.status.tolist()
        keep = []
        for row in going:
            if status[row]:
                key, problem = rows[row].prompt.key, Status(status[row])
                raise ValueError(f"target: after {count} tokens of an answer to {key!r} its logits are {problem!r}")
            texts[row].append(tokens[row])
            if tokens[row] in ends or len(texts[row]) == max_tokens:
                job = rows[row]
                yield Answer(
                    job.prompt.key, job.round, job.temperature, job.prompt.token_ids, texts[row], job.prompt.text
                )
            else:
                keep.append(row)
        going = keep
        if not going:
            return
        inputs = drawn.tokens[:, None]
        if len(going) <= STAYING * len(rows):
            cache.keep(going)
            rows, texts = [rows[row] for row in going], [texts[row] for row in going]
            inputs, params = inputs[torch.tensor(going, device=device)], _params(rows, device)
            going = list(range(len(rows)))


def _read(target: CausalModel, texts: Sequence[list[int]], room: int) -> WindowCache:
    """A cache of these texts, with room for so many tokens after each.

    A few are read at once, which pads them less and holds less in memory than reading all.
    """
    lengths, count = list(map(len, texts)), len(texts)
    cache = WindowCache(max(lengths) + room)
    padded = torch.tensor([ids + [0] * (max(lengths) - len(ids)) for ids in texts], device=target.device)
    size = READ_ON_GPU if target.device.type == "cuda" else READ_ON_CPU
    read_texts(target, cache, padded, lengths, range(count), count, size)
    return cache


def _params(jobs: Sequence[Job], device: torch.device) -> SamplingTensors:
    return SamplingTensors.make(
        len(jobs), temperature=[job.temperature for job in jobs], seed=[job.seed for job in jobs], device=device
    )
