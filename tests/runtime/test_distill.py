"""Distillation: what is learnt, kept, resumed and refused."""

from __future__ import annotations

import errno
import json
import math
import shutil
import weakref
from dataclasses import astuple
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.distill import distill, lessons
from pearl_decode.distill.answers import Answer, plan_jobs, read_answers, write_answers
from pearl_decode.distill.lessons import Lessons
from pearl_decode.distill.prompts import Prompt, read_prompts, read_text
from pearl_decode.distill.report import Bars, Silent
from pearl_decode.distill.samples import Sample, make_batches, prompt_samples, split, tensors
from pearl_decode.distill.train import Progress, Recipe, Trainer
from pearl_decode.drafts import load_draft, new_draft, own_parameters
from pearl_decode.models import CausalModel
from tests.cli.conftest import make_model, make_tokenizer

SMALL = {"draft_vocab": 200, "answers": 1, "answer_tokens": 12, "batch_tokens": 256, "tokens": 1200}


@pytest.fixture(scope="module")
def target():
    return make_model()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"word {i * i}"}) + "\n" for i in range(24)))
    return path


@pytest.fixture(scope="module")
def made(target, tokenizer, prompts_file, tmp_path_factory):
    """A finished draft's directory and its quality."""
    out = tmp_path_factory.mktemp("made") / "draft"
    return out, distill(target, prompts_file, out, tokenizer=tokenizer, **SMALL)


def test_what_is_learnt_is_better_than_what_it_began_as(target, tokenizer, prompts_file, made, tmp_path):
    _, quality = made
    untrained = distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, **SMALL | {"tokens": 0})
    assert quality.acceptance > untrained.acceptance + 0.02


def test_a_draft_is_gone_on_from_where_it_was(target, tokenizer, prompts_file, made, tmp_path):
    before, quality = made
    rest = {name: SMALL[name] for name in ("answers", "answer_tokens", "batch_tokens")}
    options = rest | {"tokens": 1, "learning_rate": 1e-9, "initial_draft": before}
    same = distill(target, prompts_file, tmp_path / "same", tokenizer=tokenizer, **options)
    assert same.acceptance == pytest.approx(quality.acceptance, abs=0.005)
    stored = load_file(before / "draft.safetensors")
    assert torch.equal(load_file(tmp_path / "same" / "draft.safetensors")["d2t"], stored["d2t"])
    options |= {"tokens": SMALL["tokens"], "learning_rate": 1e-3}
    better = distill(target, prompts_file, tmp_path / "better", tokenizer=tokenizer, **options)
    assert better.acceptance > quality.acceptance
    assert json.loads((tmp_path / "better" / "draft.json").read_text())["training"]["initial_draft"] == before.name


@pytest.mark.parametrize("draft_vocab", [150, 10**6])
def test_a_draft_is_gone_on_from_with_another_vocabulary(target, tokenizer, prompts_file, made, tmp_path, draft_vocab):
    before, options = made[0], {name: SMALL[name] for name in ("answers", "answer_tokens", "batch_tokens")}
    options |= {"tokens": 0, "initial_draft": before, "draft_vocab": draft_vocab}
    distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, **options)
    old, new = load_file(before / "draft.safetensors"), load_file(tmp_path / "draft" / "draft.safetensors")
    assert len(new.pop("d2t", range(target.config.vocab_size))) == min(draft_vocab, target.config.vocab_size)
    assert all(torch.equal(weight, old[name]) for name, weight in new.items() if name != "induction")
    load_draft(tmp_path / "draft", target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 1}, r"initial_draft has layers already: .*, got layers=1"),
        ({"initial_draft": "none"}, r"initial_draft must be the directory of a distilled draft, got 'none'"),
        ({"target": make_model(context=300)}, r"was distilled for .* but the target is"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(target, tokenizer, prompts_file, made, tmp_path, options, message):
    options = {"target": target, "initial_draft": made[0], "answers": 1} | options
    with pytest.raises(ValueError, match=message):
        distill(prompts=prompts_file, out=tmp_path / "draft", tokenizer=tokenizer, **options)
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_vocab": 1}, r"draft_vocab must be an integer > 1, got 1"),
        ({"layers": [0, 3]}, r"layers must be in \[0, 3\) for this target, got \[0, 3\]"),
        ({"learning_rate": math.nan}, r"learning_rate must be a finite number > 0, got nan"),
        ({"learning_rate": math.inf}, r"learning_rate must be a finite number > 0, got inf"),
    ],
)
def test_what_can_never_work_is_refused_before_a_run_begins(
    target, tokenizer, prompts_file, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, **SMALL | options)
    assert not (tmp_path / "draft").exists()


def test_a_head_that_does_more_than_a_product_is_refused_before_a_run_begins(prompts_file, tokenizer, tmp_path):
    target = make_model()
    head = target.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: logits / 8)
    with pytest.raises(ValueError, match=r"target: the logits of LlamaForCausalLM are not its head times"):
        distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, **SMALL)
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize("lines", [1, 2])
def test_one_prompt_is_refused_before_a_run_begins(target, tokenizer, tmp_path, lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' * lines)
    with pytest.raises(
        ValueError, match=r"prompts: at least 2 different ones are needed, one of them to measure on, got 1"
    ):
        distill(target, path, tmp_path / "draft", tokenizer=tokenizer, **SMALL)
    assert not (tmp_path / "draft").exists()


def test_what_only_training_uses_may_change_before_it_begins(target, tokenizer, prompts_file, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    out = tmp_path / "draft"
    with monkeypatch.context() as patch:
        patch.setattr("pearl_decode.distill.Trainer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill(target, prompts_file, out, tokenizer=tokenizer, **SMALL)
    others = {"draft_vocab": 150, "learning_rate": 2e-3, "batch_tokens": 128, "loss": "kl"}
    resume = partial(distill, target, prompts_file, out, tokenizer=tokenizer, resume=True)
    with pytest.raises(ValueError, match=r"has answer_tokens=12, got 13"):
        resume(**SMALL | others | {"answer_tokens": 13})
    resume(**SMALL | others)
    training = json.loads((out / "draft.json").read_text())["training"]
    assert training | others == training
    assert len(load_file(out / "draft.safetensors")["d2t"]) == 150
    with pytest.raises(ValueError, match=r"has draft_vocab=150, got 200"):
        resume(**SMALL | others | {"draft_vocab": 200})


def test_a_run_that_learns_too_fast_can_begin_to_learn_again(target, tokenizer, prompts_file, made, tmp_path):
    resume = partial(distill, target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, resume=True, **SMALL)
    with pytest.raises(ValueError, match=r"learning_rate: after \d+ steps the weights are no numbers .* than 1e\+30"):
        resume(learning_rate=1e30)
    assert resume().acceptance == pytest.approx(made[1].acceptance, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, None])
def test_a_cpu_distills_in_16_or_32_bits(tokenizer, prompts_file, made, tmp_path, dtype):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    quality = distill(str(tmp_path / "target"), prompts_file, tmp_path / "draft", dtype=dtype, **SMALL)
    assert quality.acceptance == pytest.approx(made[1].acceptance, abs=0.1)


def test_a_type_that_a_cpu_cannot_learn_in_is_named(tokenizer, prompts_file, tmp_path):
    with pytest.raises(ValueError, match=r"target: on a CPU it must be bfloat16 or float32 .*, got torch\.float16"):
        distill(make_model().half(), prompts_file, tmp_path / "draft", tokenizer=tokenizer, **SMALL)


def test_a_saved_draft_is_what_was_trained_and_decodes_losslessly(target, made):
    out, _ = made
    draft = load_draft(out, target)
    stored = load_file(out / "draft.safetensors")
    assert stored.keys() == {*own_parameters(draft), "d2t", "induction"}
    for name, weight in own_parameters(draft).items():
        assert torch.equal(weight, stored[name].float())
    assert draft.get_input_embeddings().weight.data_ptr() == target.get_input_embeddings().weight.data_ptr()
    assert len(draft.d2t) == SMALL["draft_vocab"]
    assert bool((draft.d2t.diff() > 0).all())
    with PearlDecoder.from_pretrained(target, out, gamma=3) as decoder:
        for rule, temperature in (("token", 0.0), ("coupled", 1.0)):
            params = SamplingParams(max_tokens=24, temperature=temperature, seed=1)
            results = decoder.generate([[5, 6, 7], [9]], params, rule=rule)
            alone = decoder.generate([[5, 6, 7], [9]], params, strategy="autoregressive")
            assert [r.token_ids for r in results] == [r.token_ids for r in alone]


def test_the_full_vocabulary_shares_the_targets_head(target):
    draft = new_draft(target, [0, 2], None)
    assert draft.get_output_embeddings().weight.data_ptr() == target.get_output_embeddings().weight.data_ptr()
    assert torch.equal(draft.model.layers[1].mlp.up_proj.weight, target.model.layers[2].mlp.up_proj.weight)
    assert draft.model.layers[1].mlp.up_proj.weight.data_ptr() != target.model.layers[2].mlp.up_proj.weight.data_ptr()


def test_another_target_is_refused_and_both_are_named(made):
    out, _ = made
    with pytest.raises(ValueError, match=r"was distilled for .* but the target is .* make it one with") as error:
        PearlDecoder.from_pretrained(make_model(context=300), out)
    assert str(out) in str(error.value)


def test_a_killed_run_resumes_to_the_same_weights(target, tokenizer, prompts_file, made, tmp_path, monkeypatch):
    from pearl_decode.distill.train import Trainer

    out, whole = tmp_path / "draft", made[0]
    step = Trainer._one_step

    def dying(self, done):
        if self.step == 4:
            raise KeyboardInterrupt
        return step(self, done)

    monkeypatch.setattr(Trainer, "_one_step", dying)
    with pytest.raises(KeyboardInterrupt):
        distill(target, prompts_file, out, tokenizer=tokenizer, **SMALL)
    assert not (out / "draft.json").exists()
    monkeypatch.setattr(Trainer, "_one_step", step)
    with pytest.raises(ValueError, match="already holds a run; resume it"):
        distill(target, prompts_file, out, tokenizer=tokenizer, **SMALL)
    with pytest.raises(ValueError, match="has seed=0, got 1"):
        distill(target, prompts_file, out, tokenizer=tokenizer, resume=True, seed=1, **SMALL)
    distill(target, prompts_file, out, tokenizer=tokenizer, resume=True, **SMALL)
    expected, got = load_file(whole / "draft.safetensors"), load_file(out / "draft.safetensors")
    assert expected.keys() == got.keys()
    for name in expected:
        assert torch.equal(expected[name], got[name]), name


def test_logits_of_a_lesson_are_never_there_all_at_once(target, monkeypatch):
    monkeypatch.setattr(lessons, "ON_CPU", 8 * lessons.Head.of(target).weight.shape[0])
    logits, made = lessons.Head.logits, []

    def watched(self, hidden):
        assert not [part for part in made if part() is not None]
        found = logits(self, hidden)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(lessons.Head, "logits", watched)
    kept = Lessons(target, [Sample(list(range(3, 40)), 1)], 64)
    assert kept[0] is kept[0]
    assert len(made) == 5


@pytest.fixture
def trainer(target):
    part = Lessons(target, [Sample(list(range(3, 20)), 4)], 256)
    return Trainer(target, new_draft(target, [0, 1], None), part, part, Recipe(64, 1e-3, "mix", 0, compile=False))


def test_a_compiled_step_learns_the_same(target, monkeypatch):
    """And measures without compiling for that. No code is made, which would take a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    part, steps = Lessons(target, [Sample(list(range(3, 20 + i)), 4) for i in range(6)], 40), []
    for compile in (False, True):
        draft = new_draft(target, [0], None)
        trainer = Trainer(target, draft, part, part, Recipe(64, 1e-3, "mix", 0, compile=compile))
        losses = [float(trainer._one_step(0.5)) for _ in range(4)]
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        steps.append([*losses, *astuple(trainer.measure())])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
        assert (compiled > 0) == compile
    assert steps[1] == pytest.approx(steps[0], rel=1e-3)


def test_a_loss_is_read_only_where_it_is_shown(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("pearl_decode.distill.train.NEWS_S", 1e9)
    assert isinstance(trainer._one_step(0.5), torch.Tensor)
    news = []
    trainer.run(tmp_path / "checkpoint.pt", None, news.append)
    assert trainer.step == 5
    assert [type(progress.loss) for progress in news] == [float]


@pytest.mark.parametrize(("free", "room"), [(96 << 30, 48 << 30), (1 << 30, 1 << 29), (None, 4 << 30)])
def test_half_of_the_free_memory_remembers_what_the_target_said(
    target, tokenizer, prompts_file, tmp_path, monkeypatch, free, room
):
    given, begin = [], Lessons.__init__

    def watched(self, target, samples, size, cache_bytes):
        given.append(cache_bytes)
        begin(self, target, samples, size, cache_bytes)

    monkeypatch.setattr("pearl_decode.distill.free_bytes", lambda device: free)
    monkeypatch.setattr(Lessons, "__init__", watched)
    distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, **SMALL | {"tokens": 1})
    assert given[0] > given[1]
    assert sum(given) == pytest.approx(room, abs=100)


def test_training_waits_for_a_few_held_out_tokens_and_ends_with_all(target, tmp_path, monkeypatch):
    train, held_out = (Lessons(target, [Sample(list(range(3, 20)), 4)] * count, 17) for count in (1, 9))
    trainer = Trainer(target, new_draft(target, [0], None), train, held_out, Recipe(26, 1e-3, "mix", 0, compile=False))
    monkeypatch.setattr("pearl_decode.distill.train.GLANCE", 20)
    monkeypatch.setattr("pearl_decode.distill.train.fit_strengths", lambda *_: None)
    read, events = Trainer._hidden_states, []

    def counted(self, lesson):
        events.append((self.step, self.draft.training))
        return read(self, lesson)

    monkeypatch.setattr(Trainer, "_hidden_states", counted)
    trainer.run(tmp_path / "checkpoint.pt", None, lambda progress: None, every_s=-1.0)
    measured = [sum(event == (step, False) for event in events) for step in range(3)]
    assert measured == [2, 2, 2 + 9]


def test_induction_is_fitted_to_what_was_not_learnt(target, tmp_path, monkeypatch):
    train, held_out = (Lessons(target, [Sample(list(range(3, last)), 4)], 256) for last in (20, 30))
    draft, fitted = new_draft(target, [0, 1], None), []
    monkeypatch.setattr("pearl_decode.distill.train.fit_strengths", lambda lessons, *_: fitted.append(lessons))
    Trainer(target, draft, train, held_out, Recipe(64, 1e-3, "mix", 0, compile=False)).run(
        tmp_path / "checkpoint.pt", None, lambda progress: None
    )
    assert fitted == [held_out]


def test_nothing_learnt_leaves_weights_as_they_are_and_all_answers_to_measure_on(
    target, tokenizer, prompts_file, made, tmp_path
):
    before, options = made[0], {name: SMALL[name] for name in ("answers", "answer_tokens", "batch_tokens")}
    options |= {"tokens": 0, "initial_draft": before}
    distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, **options)
    stored, again = (load_file(directory / "draft.safetensors") for directory in (before, tmp_path / "draft"))
    assert stored.keys() == again.keys()
    assert all(torch.equal(weight, again[name]) for name, weight in stored.items() if name != "induction")
    training = json.loads((tmp_path / "draft" / "draft.json").read_text())["training"]
    assert training["tokens_seen"] == 0
    assert training["held_out_answers"] == training["answers_written"]


def test_a_resumed_optimizer_counts_on_the_host(trainer, tmp_path):
    trainer._one_step(0.5)
    trainer.save(tmp_path / "checkpoint.pt")
    trainer.device = torch.device("meta")  # any other than the host
    trainer.load(tmp_path / "checkpoint.pt")
    assert {state["step"].device.type for state in trainer._optimizer.state.values()} == {"cpu"}


def test_a_cpu_takes_small_batches_and_a_fused_optimizer(target, tokenizer, prompts_file, trainer, tmp_path):
    """Which were measured to learn most in a time."""
    options = {name: value for name, value in SMALL.items() if name != "batch_tokens"} | {"tokens": 1}
    distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, **options)
    training = json.loads((tmp_path / "draft" / "draft.json").read_text())["training"]
    assert (training["batch_tokens"], training["learning_rate"]) == (512, 2e-3)
    assert all(group["fused"] for group in trainer._optimizer.param_groups)


def test_attention_does_without_cudnns_while_it_distills(target, prompts_file, tokenizer, tmp_path):
    class Watching(Silent):
        def answering(self, total):
            enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
            return super().answering(total)

    enabled: list[bool] = []
    distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, report=Watching(), **SMALL)
    assert enabled == [False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_vocabulary_is_what_the_target_finds_likely_and_the_ends(target):
    samples = [Sample([5, 9, 7, 3, 8], 2), Sample([4, 6, 2], 1)]
    lessons = Lessons(target, samples, 64)
    with torch.no_grad():
        read = [(sample, target(torch.tensor([sample.token_ids])).logits[0].softmax(-1)) for sample in samples]
    sums = sum(probs[sample.start - 1 : -1].sum(0) for sample, probs in read)
    dearest = int(sums.argmin())
    likeliest = [i for i in sums.argsort(descending=True).tolist() if i != dearest][:19]
    told = []
    assert lessons.likely_ids(20, [dearest], told.append).tolist() == sorted([*likeliest, dearest])
    assert told[-1] == 1.0
    assert lessons.likely_ids(lessons.vocab, []) is None


def test_text_and_prompts_are_learnt_besides_the_answers(target, tokenizer, prompts_file, made, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a word of text, and another. " * 20)
    options = SMALL | {"tokens": 1}
    learnt = {}
    for name, more in {"answers": {}, "text": {"text": [text]}, "prompts": {"learn_prompts": True}}.items():
        distill(target, prompts_file, tmp_path / name, tokenizer=tokenizer, **options, **more)
        learnt[name] = json.loads((tmp_path / name / "draft.json").read_text())["training"]["tokens_to_learn"]
    pieces = read_text([text], tokenizer, 2 * SMALL["answer_tokens"])
    assert [token for piece in pieces for token in piece] == tokenizer(text.read_text(), add_special_tokens=False)[
        "input_ids"
    ]
    assert learnt["text"] == learnt["answers"] + sum(len(piece) - 1 for piece in pieces)
    assert learnt["prompts"] > learnt["answers"]
    with pytest.raises(ValueError, match=r"resume: the run in .* has text_files=1, got 0"):
        distill(target, prompts_file, tmp_path / "text", tokenizer=tokenizer, resume=True, **options)


def test_prompts_are_learnt_past_what_they_share_and_never_those_held_out():
    prompts = [Prompt("a", [1, 2, 3, 4]), Prompt("b", [1, 2, 5]), Prompt("c", [1, 2, 6, 7])]
    held_out = [Sample([1, 2, 5, 9, 9], 3)]
    assert prompt_samples(prompts, held_out) == [Sample([1, 2, 3, 4], 2), Sample([1, 2, 6, 7], 2)]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xff"])
def test_a_text_file_without_text_is_named(tokenizer, tmp_path, content):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^text: .*text\.txt"):
        read_text([path], tokenizer, 10)


def test_batches_learn_each_token_once_and_no_padding():
    samples = [Sample(list(range(n)), n // 2) for n in (4, 9, 2, 7, 5)]
    batches = make_batches(samples, 16)
    learnt = sum(int(tensors(batch, torch.device("cpu"))[1].sum()) for batch in batches)
    assert learnt == sum(sample.learnt for sample in samples)
    assert all(len(batch) * max(len(s.token_ids) for s in batch) <= 16 for batch in batches)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\nnot json\n', r"p.jsonl:2: not JSON"),
        ('{"prompt": "a"}\n\n{"prompt": ""}\n', r"p.jsonl:3: expected an object with a non-empty string"),
        ('["a"]\n', r"p.jsonl:1: expected an object"),
        ('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n', r"p.jsonl:2: the id '1' was used before"),
        ('{"prompt": "b \\ud83d"}\n', r"p.jsonl:1: prompt: expected text that is UTF-8, got '\\ud83d'"),
        ('{"prompt": "a", "id": "\\ud83d"}\n', r"p.jsonl:1: id: expected text that is UTF-8, got '\\ud83d'"),
        ('{"prompt": "a"}\n' + "[" * 200_000 + "\n", r"p.jsonl:2: not JSON that can be read"),
        ('{"prompt": "a", "id": ' + "1" * 6000 + "}\n", r"p.jsonl:1: not JSON that can be read"),
        ("\n", "the file is empty"),
    ],
)
def test_bad_prompt_files_name_the_line(tokenizer, tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(path, tokenizer, 100)


def test_prompts_may_hold_separators_of_lines(tokenizer, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85c"}\r\n\n{"prompt": "d", "id": null}', encoding="utf-8", newline="")
    assert [prompt.key for prompt in read_prompts(path, tokenizer, 100)] == ["1", "3"]


def test_a_file_may_begin_with_the_mark_that_some_editors_write(tokenizer, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [prompt.text for prompt in read_prompts(path, tokenizer, 100)] == ["a", "b"]
    path.write_bytes(b"\xef\xbb\xbfa word of text")
    assert read_text([path], tokenizer, 100) == [tokenizer("a word of text")["input_ids"]]


def test_one_prompt_leaves_none_to_measure_on(target, tmp_path):
    answers = write_answers(
        CausalModel(target),
        plan_jobs([Prompt("a", [3])], 1, 0),
        tmp_path / "a.jsonl",
        max_tokens=3,
        batch=1,
        eos_ids=[0],
    )
    with pytest.raises(ValueError, match=r"answers: those to 2 different prompts are needed, .*, got 1"):
        split(answers, 0.05, 64)


def test_a_prompt_held_out_among_many_is_held_out_among_fewer():
    answers = [Answer(str(i), 0, 0.0, [i], [i], f"prompt {i}") for i in range(2000)]
    counts = range(2, 2001, 111)
    aside = [{sample.token_ids[0] for sample in split(answers[:count], 0.05, 64)[1]} for count in counts]
    for index, count in enumerate(counts):
        assert all(more & set(range(count)) <= aside[index] for more in aside[index:])
    assert [len(aside[0]), len(aside[-1])] == [1, 64]


def test_another_prompt_with_the_key_of_one_that_is_answered_is_refused(target, tokenizer, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "draft"
    texts = [f"word {i}" for i in range(4)]
    write = lambda: prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))  # noqa: E731
    write()
    distill(target, prompts, out, tokenizer=tokenizer, **SMALL)
    texts[1] = "another"
    write()
    with pytest.raises(
        ValueError,
        match=r"prompts: that of id or line 2 is 'another', but .*answers\.jsonl has an answer to 'word 1': ",
    ):
        distill(target, prompts, out, tokenizer=tokenizer, resume=True, **SMALL)


def test_a_full_disk_says_what_to_do_and_keeps_the_run(target, tokenizer, prompts_file, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pearl_decode.distill.train.write_whole", full)
    with pytest.raises(OSError, match=r"out of disk at .* go on with resume"):
        distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, **SMALL)
    assert len(read_answers(tmp_path / "draft" / "work" / "answers.jsonl")) == 24


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", r"resume: \S*run\.json is damaged"),
        ("run.json", "[]", r"resume: \S*run\.json is damaged.*got \[\]"),
        ("ids.json", "1", r"resume: \S*ids\.json is damaged"),
        ("answers.jsonl", '{"key": "p1"}\n', r"resume: \S*answers\.jsonl:1 is not an answer"),
        ("answers.jsonl", "\n[]\n", r"resume: \S*answers\.jsonl:1 is not an answer"),
        ("checkpoint.pt", "PK", r"resume: \S*checkpoint\.pt is not a checkpoint of this draft, delete it to train .*"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(target, tokenizer, prompts_file, made, tmp_path, name, content, message):
    shutil.copytree(made[0], tmp_path / "draft")
    (tmp_path / "draft" / "work" / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        distill(target, prompts_file, tmp_path / "draft", tokenizer=tokenizer, resume=True, **SMALL)
    assert "weights_only" not in str(error.value)


def test_plain_lines_say_how_long_it_takes(capsys, monkeypatch):
    """Of what a resumed run goes on with, not of what it has."""
    with Bars(every_s=0.0).training(1000) as update:
        for now, tokens in ((10.0, 100), (10.5, 400), (130.5, 600)):
            monkeypatch.setattr("pearl_decode.distill.report.time.monotonic", lambda now=now: now)
            update(Progress(1, tokens, tokens / 1000, 2.0, 50.0, 0.4, 0.5))
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith("100 of 1000 tokens, 50 tokens/s")
    assert second.endswith("400 of 1000 tokens, 50 tokens/s")
    assert third.endswith("600 of 1000 tokens, 50 tokens/s, about 4 minutes left")
