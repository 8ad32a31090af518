"""Make a draft for a target: let the target answer prompts, and train a few of its layers to guess like the whole."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from reprlib import repr as short
from types import UnionType
from typing import Any

import torch
from transformers import PreTrainedModel

from pearl_decode.attention import planless_sdpa
from pearl_decode.checkpoints import default_device, load_model, load_tokenizer
from pearl_decode.distill.answers import Answer, plan_jobs, write_answers
from pearl_decode.distill.card import model_card
from pearl_decode.distill.lessons import CACHE_BYTES, Lessons, check_head
from pearl_decode.distill.losses import LOSSES
from pearl_decode.distill.own import KEYS, LONGEST, write_prompts
from pearl_decode.distill.prompts import Prompt, read_prompts, read_text
from pearl_decode.distill.report import Report, Silent
from pearl_decode.distill.samples import Sample, prompt_samples, split
from pearl_decode.distill.start import Start
from pearl_decode.distill.train import Quality, Recipe, Trainer
from pearl_decode.drafts import DraftConfig, config_hash, save_draft, write_whole
from pearl_decode.memory import free_bytes
from pearl_decode.models import CausalModel

__all__ = ["Quality", "Settings", "distill"]

WORK = "work"  # inside the output directory: answers and checkpoint, of no use once the draft is made
MANY_TOKENS = 1 << 20  # to learn from: compiling a step saves more time than it takes
PASSES = 10  # over the answers, where the number of tokens is not given
HELD_OUT, MOST_HELD_OUT = 0.05, 64  # share of the prompts, and number of them
WRITING, ANSWERING = 0.1, 0.4  # of the hours, at most: for prompts, and for answers
LONGEST_PROMPT = 512
# What a run must have the same once there are answers; all else only once training has begun.
ANSWERED = ("target", "own_prompts", "answers", "answer_tokens", "batch_answers", "seed")


@dataclass(frozen=True)
class Settings:
    """What a run is made of; a resumed run must have the same, before training has begun only what answers depend on.

    layers:        the target's decoder layers the draft began as
    draft_vocab:   ids it can draw
    initial_draft: name of the draft it went on from, None for those layers as they were
    own_prompts:   how many the target wrote itself, None for none
    answers:       how often each prompt is answered, at temperature 0, 0.7 and 1.0 in turn
    answer_tokens: most tokens of an answer
    batch_answers: answers decoded at once; batch_tokens: tokens per training step, with padding
    loss:          "kl", "tv" or "mix", see `pearl_decode.distill.losses`
    text_files:    how many are learnt besides the answers
    """

    layers: tuple[int, ...]
    draft_vocab: int
    initial_draft: str | None
    own_prompts: int | None
    answers: int
    answer_tokens: int
    batch_answers: int
    batch_tokens: int
    learning_rate: float
    loss: str
    learn_prompts: bool
    seed: int
    text_files: int

    def __post_init__(self) -> None:
        counts = ["draft_vocab", "answers", "answer_tokens", "batch_answers", "batch_tokens"]
        for name in counts if self.own_prompts is None else [*counts, "own_prompts"]:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a finite number > 0, got {self.learning_rate!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {sorted(LOSSES)}, got {self.loss!r}")


@planless_sdpa()  # prompts and batches have many shapes
def distill(
    target: str | os.PathLike[str] | PreTrainedModel,
    prompts: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    own_prompts: int | None = None,
    tokenizer: Any | None = None,
    layers: int | Sequence[int] | None = None,
    draft_vocab: int | None = None,
    initial_draft: str | os.PathLike[str] | None = None,
    tokens: int | None = None,
    hours: float | None = None,
    resume: bool = False,
    text: Sequence[str | os.PathLike[str]] = (),
    answers: int = 3,
    answer_tokens: int = 256,
    batch_answers: int | None = None,
    batch_tokens: int | None = None,
    learning_rate: float = 2e-3,
    loss: str = "mix",
    learn_prompts: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    command: str = "",
    report: Report | None = None,
) -> Quality:
    """Distill a draft for `target` into the directory `out`, which PearlDecoder.from_pretrained then takes as a draft.

    target:  as PearlDecoder.from_pretrained's; a loaded model needs its tokenizer
    prompts: file of {"prompt": TEXT, "id": KEY} lines; None where the target writes them all. About one in
             twenty is held out to measure on
    own_prompts: how many the target writes itself, as the user of its chat; some have no end, and are left out
    layers:  how many of the target's decoder layers the draft has, which are its first, or which ones; None is 2
    draft_vocab: ids it can draw, those the target finds likeliest in its answers; None is 16384
    initial_draft: a draft of this target to go on from, with its layers, and its ids unless draft_vocab is given
    tokens:  tokens to learn from, over all passes; None is ten passes, with 0 only the draft's `induction` is fitted
    hours:   until training ends, at most; fitting the induction and measuring on all that is held out come after
    resume:  go on with what `out` holds, see `Settings`; without it, `out` must not hold a run
    learn_prompts: learn from the words of the prompts as well, which costs no decoding
    text:    plain text files to learn from besides the answers
    batch_answers, batch_tokens: None is what suits the device: of tokens 32768 on a GPU and 512 on a CPU, where time
             is for few steps of more, from which a draft learns less
    dtype:   that the target answers in; None is the checkpoint's on a GPU, on a CPU bfloat16 if it multiplies in that,
             else float32
    command: what the model card says made it
    Returns the quality on the held-out prompts, which the induction was fitted to.
    Raises ValueError naming what is wrong with an argument or a file, OSError with the remedy when out of disk.
    """
    begin = time.monotonic()
    if tokens is not None and tokens < 0:
        raise ValueError(f"tokens must be an integer >= 0, got {tokens!r}")
    if hours is not None and not hours > 0:
        raise ValueError(f"hours must be > 0, got {hours!r}")
    report = report or Silent()
    name = os.fspath(target) if isinstance(target, (str, os.PathLike)) else str(target.config.name_or_path)
    if tokenizer is None:
        if not isinstance(target, (str, os.PathLike)):
            raise ValueError("tokenizer must be given for a target that is already loaded")
        tokenizer = load_tokenizer("target", target)
    if prompts is None and own_prompts is None:
        raise ValueError("prompts must be a file where there are no own_prompts, got None")
    given = [] if prompts is None else read_prompts(prompts, tokenizer, LONGEST_PROMPT)
    taken = [prompt.key for prompt in given if prompt.key.startswith(KEYS)]
    if taken and own_prompts is not None:
        raise ValueError(f"prompts: an id that begins with {KEYS!r} is of a prompt the target wrote, got {taken[0]!r}")
    if own_prompts is None and (different := len({prompt.text for prompt in given})) < 2:
        raise ValueError(f"prompts: at least 2 different ones are needed, one of them to measure on, got {different}")
    pieces = [Sample(ids, 1) for ids in read_text(text, tokenizer, 2 * answer_tokens)]
    if dtype is None and default_device().type == "cpu":
        dtype = torch.bfloat16 if _multiplies_bfloat16() else torch.float32
    model = load_model("target", target, dtype)
    if model.device.type == "cpu" and model.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"target: on a CPU it must be bfloat16 or float32 to distill from, got {model.dtype}")
    model.requires_grad_(False)
    check_head(model)
    on_gpu = model.device.type == "cuda"
    start = Start.make(model, layers, draft_vocab, initial_draft)
    settings = Settings(
        layers=start.layers,
        draft_vocab=start.draft_vocab,
        initial_draft=None if initial_draft is None else Path(initial_draft).name,
        own_prompts=own_prompts,
        answers=answers,
        answer_tokens=answer_tokens,
        batch_answers=batch_answers or (512 if on_gpu else 64),
        batch_tokens=batch_tokens or (32768 if on_gpu else 512),
        learning_rate=learning_rate,
        loss=loss,
        learn_prompts=learn_prompts,
        seed=seed,
        text_files=len(text),
    )
    ends = CausalModel(model, "target").eos_ids()
    if start.new_ids and settings.draft_vocab <= len(ends):
        raise ValueError(f"draft_vocab must be an integer > {len(ends)}, got {settings.draft_vocab}")
    work = Path(out) / WORK
    checkpoint = work / "checkpoint.pt"
    begun = resume and checkpoint.exists()
    try:
        _open_run(work, settings, config_hash(model), resume, begun)
        limit_s = None if hours is None else 3600 * hours
        # Once training has begun, its data stays as it is, or the place in it would mean another.
        end = begin if begun else None if limit_s is None else begin + limit_s
        asked, replies = _answers(model, tokenizer, given, settings, work, end, report)
        samples, aside = split(replies, HELD_OUT, MOST_HELD_OUT)
        if tokens == 0:
            aside += samples  # nothing is learnt, so all is as good as held out
        samples += pieces + (prompt_samples(asked, aside) if settings.learn_prompts else [])
        learnt = sum(sample.learnt for sample in samples)
        free = free_bytes(model.device)
        # Half of what is free for what the target said, the rest for training.
        room = (CACHE_BYTES if free is None else free // 2) // (len(samples) + len(aside))
        train, held_out = (Lessons(model, part, settings.batch_tokens, room * len(part)) for part in (samples, aside))
        draft = start.draft_with(model, _ids(train, start, ends, work / "ids.json", begun, report))
        to_learn = PASSES * learnt if tokens is None else tokens
        recipe = Recipe(to_learn, learning_rate, loss, seed, compile=to_learn >= MANY_TOKENS)
        trainer = Trainer(model, draft, train, held_out, recipe)
        if begun:
            trainer.load(checkpoint)
        left_s = None if limit_s is None else max(0.0, limit_s - (time.monotonic() - begin))
        with report.training(recipe.tokens) as update:
            quality = trainer.run(checkpoint, left_s, update)
        made = {
            **asdict(settings),
            "prompts": len({reply.key for reply in replies}),
            "answers_written": len(replies),
            "answer_tokens_written": sum(len(reply.answer_ids) for reply in replies),
            "tokens_to_learn": learnt,
            "tokens_seen": trainer.tokens,
            "steps": trainer.step,
            "training_s": round(trainer.elapsed_s, 1),
            "induction": [round(strength, 1) for strength in trainer.draft.induction.tolist()],
            "held_out_answers": len(aside),
            "held_out_acceptance": round(quality.acceptance, 4),
            "held_out_greedy_agreement": round(quality.agreement, 4),
            "device": _device_name(model.device),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "torch": torch.__version__,
            "command": command,
        }
        d2t = getattr(draft, "d2t", None)
        known = train.vocab if d2t is None else len(d2t)
        config = DraftConfig(name, config_hash(model), list(settings.layers), known, train.vocab, made)
        save_draft(Path(out), draft, config)
        write_whole(Path(out) / "README.md", model_card(config).encode())
    except OSError as error:
        raise _explained(error, Path(out)) from error
    return quality


def _answers(
    model: PreTrainedModel,
    tokenizer: Any,
    given: list[Prompt],
    settings: Settings,
    work: Path,
    end: float | None,
    report: Report,
) -> tuple[list[Prompt], list[Answer]]:
    """All prompts, those given and the target's own, and the answers to them. end: of the run, by time.monotonic()."""
    target = CausalModel(model, "target")
    eos_ids = sorted({*target.eos_ids(), *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])})

    def deadline(share: float) -> float | None:
        now = time.monotonic()
        return None if end is None else now + share * (end - now)

    asked = given
    if settings.own_prompts:
        with report.writing(settings.own_prompts) as update:
            asked = given + write_prompts(
                target,
                tokenizer,
                settings.own_prompts,
                work / "prompts.jsonl",
                seed=settings.seed,
                batch=settings.batch_answers,
                eos_ids=eos_ids,
                deadline=deadline(WRITING),
                report=update,
            )
        if (different := len({prompt.text for prompt in asked})) < 2:
            remedy = "give a file too" if end is None else "resume with more hours, or give a file too"
            raise ValueError(
                f"own_prompts: at least 2 different prompts are needed, one of them to measure on, got {different}: "
                f"what the target wrote has no end within {LONGEST} tokens, no text, or is the same; {remedy}"
            )
    jobs = plan_jobs(asked, settings.answers, settings.seed)
    with report.answering(len(jobs)) as update:
        return asked, write_answers(
            target,
            jobs,
            work / "answers.jsonl",
            max_tokens=settings.answer_tokens,
            batch=settings.batch_answers,
            eos_ids=eos_ids,
            deadline=deadline(ANSWERING),
            report=update,
        )


def _ids(
    train: Lessons, start: Start, ends: Sequence[int], path: Path, begun: bool, report: Report
) -> torch.Tensor | None:
    """The ids to draw, if they are to be chosen: training that has begun goes on with the same."""
    if not start.new_ids:
        return None
    if begun:
        chosen = _read_json(path, list | None)
        return None if chosen is None else torch.tensor(chosen)
    with report.choosing() as update:
        ids = train.likely_ids(start.draft_vocab, ends, update)
    write_whole(path, json.dumps(None if ids is None else ids.tolist()).encode())
    return ids


def _open_run(work: Path, settings: Settings, target_hash: str, resume: bool, begun: bool) -> None:
    """Begin a run, or see that the one that is there can go on with these settings, and write them down.

    begun: whether it trains already. Raises ValueError naming what differs.
    """
    record = work / "run.json"
    now = json.loads(json.dumps({"target": target_hash, **asdict(settings)}))
    if record.exists():
        if not resume:
            raise ValueError(f"out: {work.parent} already holds a run; resume it, or choose another directory")
        before = _read_json(record, dict)
        for key in now if begun else ANSWERED:
            if before.get(key) != now[key]:
                raise ValueError(f"resume: the run in {work.parent} has {key}={before.get(key)!r}, got {now[key]!r}")
    work.mkdir(parents=True, exist_ok=True)
    write_whole(record, (json.dumps(now, indent=2) + "\n").encode())


def _read_json(path: Path, kind: type | UnionType) -> Any:
    """What a file of a run says. Raises ValueError naming a file that is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"resume: {path} is damaged, choose another directory: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"resume: {path} is damaged, choose another directory: got {short(value)}")
    return value


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it: without them torch's products are slower than in float32."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _explained(error: OSError, out: Path) -> OSError:
    if error.errno == errno.ENOSPC:
        message = f"out of disk at {out}: free some space and go on with resume; what was written is kept"
        return OSError(errno.ENOSPC, message)
    return error


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
