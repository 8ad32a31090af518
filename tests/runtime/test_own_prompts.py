"""Prompts that the target writes itself: where they begin and end, which are taken, and how a run uses them."""

from __future__ import annotations

import json
from functools import partial

import pytest

from pearl_decode.distill import distill
from pearl_decode.distill.answers import read_answers
from pearl_decode.distill.own import LONGEST, write_prompts
from pearl_decode.models import CausalModel
from tests.cli.conftest import SPECIAL, make_model, make_tokenizer

END, USER, ASSISTANT = range(len(SPECIAL))
SMALL = {"draft_vocab": 200, "answers": 1, "answer_tokens": 12, "batch_tokens": 256, "tokens": 600}


@pytest.fixture(scope="module")
def target():
    return make_model()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def written(target, tokenizer, path, count=48, **options):
    options = {"seed": 0, "batch": 16, "eos_ids": [END]} | options
    return write_prompts(CausalModel(target), tokenizer, count, path, **options)


def test_messages_begin_where_a_users_does_and_those_with_an_end_are_prompts(target, tokenizer, tmp_path):
    prompts = written(target, tokenizer, tmp_path / "prompts.jsonl")
    messages = {answer.key: answer for answer in read_answers(tmp_path / "prompts.jsonl")}
    assert len(messages) == 48
    assert {tuple(message.prompt_ids) for message in messages.values()} == {(USER,)}
    assert {message.temperature for message in messages.values()} == {1.0}
    ended = [key for key, message in messages.items() if message.answer_ids[-1] == END]
    assert 5 < len(ended) < 48, "of random words some have an end among the first ones"
    assert all(len(messages[key].answer_ids) == LONGEST for key in messages.keys() - ended)
    assert 5 < len(prompts) <= len(ended)
    for prompt in prompts:
        text = tokenizer.decode(messages[prompt.key].answer_ids, skip_special_tokens=True).strip()
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        assert prompt.token_ids == chat["input_ids"]
        assert prompt.token_ids[-2:] == [END, ASSISTANT]


def test_a_message_ends_with_what_closes_it_in_the_chat(target, tmp_path):
    """Which need not be a token that ends a text."""
    closing = "{% for message in messages %}<|user|>{{ message['content'] }}<|assistant|>{% endfor %}"
    written(target, make_tokenizer(closing), tmp_path / "prompts.jsonl", eos_ids=[])
    lasts = {
        answer.answer_ids[-1] for answer in read_answers(tmp_path / "prompts.jsonl") if len(answer.answer_ids) < LONGEST
    }
    assert lasts == {ASSISTANT}


def test_equal_messages_and_empty_ones_are_taken_once_and_never(target, tokenizer, tmp_path):
    path, hello = tmp_path / "prompts.jsonl", tokenizer("hello")["input_ids"]
    texts = [hello, [*tokenizer(" ")["input_ids"]], [], hello, tokenizer("world")["input_ids"]]
    lines = [
        {"key": f"own/{i}", "round": 0, "temperature": 1.0, "prompt_ids": [USER], "answer_ids": [*ids, END]}
        for i, ids in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [prompt.key for prompt in written(target, tokenizer, path, count=5)] == ["own/0", "own/4"]


def test_messages_are_the_same_whatever_the_batch_and_after_a_kill(target, tokenizer, tmp_path):
    whole = written(target, tokenizer, tmp_path / "whole.jsonl")
    content = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "part.jsonl").write_bytes(content[: len(content) // 2])
    assert written(target, tokenizer, tmp_path / "part.jsonl", batch=7) == whole
    assert written(target, tokenizer, tmp_path / "other.jsonl", seed=1) != whole


def test_a_draft_is_made_with_no_prompts_but_the_targets(target, tokenizer, tmp_path):
    out = tmp_path / "draft"
    distill(target, None, out, tokenizer=tokenizer, own_prompts=32, **SMALL)
    training = json.loads((out / "draft.json").read_text())["training"]
    assert training["own_prompts"] == 32
    keys = {answer.key for answer in read_answers(out / "work" / "answers.jsonl")}
    assert len(keys) == training["prompts"]
    assert keys < {f"own/{i}" for i in range(32)}


def test_own_prompts_come_beside_those_of_a_file(target, tokenizer, tmp_path):
    given = tmp_path / "prompts.jsonl"
    given.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"word {i}"}) + "\n" for i in range(4)))
    distill(target, given, tmp_path / "draft", tokenizer=tokenizer, own_prompts=16, **SMALL)
    keys = {answer.key for answer in read_answers(tmp_path / "draft" / "work" / "answers.jsonl")}
    assert keys > {f"p{i}" for i in range(4)}
    assert any(key.startswith("own/") for key in keys)


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (None, {"own_prompts": 4}, "own_prompts: the target's tokenizer has no chat template"),
        (
            "{{ messages[0]['content'] | upper }}",
            {"own_prompts": 4},
            "own_prompts: the chat template must show a message as",
        ),
        ("{{ messages[0]['content'] }}", {"own_prompts": 4}, "own_prompts: the chat template must show a message as"),
        (None, {}, "prompts must be a file where there are no own_prompts, got None"),
        (None, {"own_prompts": 0}, "own_prompts must be an integer >= 1, got 0"),
    ],
)
def test_no_way_to_come_by_prompts_is_said(target, tmp_path, template, options, message):
    with pytest.raises(ValueError, match=message):
        distill(target, None, tmp_path / "draft", tokenizer=make_tokenizer(template), **SMALL, **options)


def test_ids_of_own_prompts_are_not_for_others(target, tokenizer, tmp_path):
    given = tmp_path / "prompts.jsonl"
    given.write_text('{"id": "own/1", "prompt": "a"}\n')
    with pytest.raises(ValueError, match=r"prompts: an id that begins with 'own/' .*, got 'own/1'"):
        distill(target, given, tmp_path / "draft", tokenizer=tokenizer, own_prompts=4, **SMALL)


def test_own_prompts_that_time_was_too_short_for_are_written_when_there_is_more(target, tokenizer, tmp_path):
    make = partial(distill, target, None, tmp_path / "draft", tokenizer=tokenizer, own_prompts=16, **SMALL)
    with pytest.raises(ValueError, match=r"got 0: .*; resume with more hours, or give a file too$"):
        make(hours=1e-9)
    make(resume=True, hours=1)
    assert (tmp_path / "draft" / "draft.json").exists()


def test_own_prompts_without_an_end_are_said_to_be_so(target, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("pearl_decode.distill.own.LONGEST", 1)
    with pytest.raises(
        ValueError, match=r"^own_prompts: at least 2 different prompts .*, got 0: what the target wrote has no end"
    ):
        distill(target, None, tmp_path / "draft", tokenizer=tokenizer, own_prompts=2, **SMALL)
    assert not (tmp_path / "draft" / "work" / "answers.jsonl").exists()
