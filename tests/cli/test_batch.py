"""--batch: a file of prompts, one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import CHAT_TEMPLATE, Cli, make_model, make_tokenizer, save


@pytest.fixture
def batch_file(tmp_path: Path):
    def write(*lines: object) -> str:
        path = tmp_path / "prompts.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return str(path)

    return write


def test_every_line_is_answered_in_order_as_if_alone(generate: Cli, batch_file):
    prompts = [f"{'tale ' * n}{n}" for n in range(1, 12)]  # more than are decoded at once
    outcome = generate("--batch", batch_file(*({"prompt": prompt} for prompt in prompts)))
    answers = outcome.json_lines()
    assert outcome.status == 0
    assert [answer["line"] for answer in answers] == list(range(1, 12))
    assert [answer["prompt"] for answer in answers] == prompts
    assert answers[4]["token_ids"] == generate("--json", prompts[4]).json()["token_ids"]


def test_a_line_may_set_its_own_sampling(generate: Cli, batch_file):
    path = batch_file(
        {"prompt": "a", "max_tokens": 2, "ignore_eos": True}, {"prompt": "a", "temperature": 1, "seed": 5}
    )
    short, sampled = generate("--batch", path).json_lines()
    assert len(short["token_ids"]) == 2
    assert sampled["seed"] == 5


def test_broken_line_is_an_error_with_its_number_and_stops_no_other(generate: Cli, batch_file):
    path = batch_file({"prompt": "first"}, '{"prompt": "second"', "", {"prompt": "third"})
    outcome = generate("--batch", path)
    first, second, third = outcome.json_lines()
    assert outcome.status == 1
    assert [answer["line"] for answer in (first, second, third)] == [1, 2, 4]
    assert first["error"] is None
    assert third["error"] is None
    assert set(second) == set(first)
    assert second["finish_reason"] == "error"
    assert second["error"].startswith(f"{path}:2: not valid JSON: ")
    assert f"pearl-decode: error: {path}:2: not valid JSON" in outcome.err
    assert "[3 lines, 2 answered, 1 failed]" in outcome.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", 'expected an object with a string "prompt"'),
        ({"text": "a"}, 'expected an object with a string "prompt"'),
        ({"prompt": 3}, 'expected an object with a string "prompt"'),
        ({"prompt": "a", "temprature": 1}, "unknown field 'temprature'"),
        ({"prompt": "a", "temperature": "hot"}, "temperature must be a finite number >= 0, got 'hot'"),
        ({"prompt": "a", "stop": 5}, "stop must be a string or a list of strings, got 5"),
        ({"prompt": "a", "stop_token_ids": 5}, "stop_token_ids must be a list of token ids, got 5"),
        ({"prompt": "a", "ignore_eos": "yes"}, "ignore_eos must be true or false, got 'yes'"),
        ({"prompt": "a", "max_tokens": 600}, "must fit the target's context"),
        ({"prompt": "\ud83d cut"}, "prompt: expected text that is UTF-8, got '\\ud83d' at character 0"),
        ({"prompt": "a", "top_k": 2**40}, "top_k must be at most 2147483647"),
        ({"prompt": "a", "temperature": 1e308}, "temperature must be a number that float32 holds"),
        ('{"prompt": "a", "temperature": 1' + 400 * "0" + "}", "temperature must be a finite number"),
        ({"prompt": "a", "stop_token_ids": [2**70]}, "stop_token_ids must be at most"),
        ({"prompt": "a", "stop": {"b": 1}}, "stop must be a string or a list of strings, got {'b': 1}"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
    ],
)
def test_bad_line_says_what_was_expected(generate: Cli, batch_file, line: object, message: str):
    outcome = generate("--batch", batch_file(line, {"prompt": "good"}))
    bad, good = outcome.json_lines()
    assert outcome.status == 1
    assert message in bad["error"]
    assert good["error"] is None


def test_line_that_is_not_utf8_is_an_error(generate: Cli, tmp_path: Path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n{"prompt": "tea"}\n')
    bad, good = generate("--batch", str(path)).json_lines()
    assert bad["error"].endswith("latin.jsonl:1: not UTF-8 text")
    assert good["error"] is None


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), ("\n \n", "has no lines")])
def test_file_without_lines_exits_2(generate: Cli, tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    outcome = generate("--batch", str(path))
    assert outcome.status == 2
    assert message in outcome.err


def test_null_is_no_stop(generate: Cli, batch_file):
    first, again = generate("--batch", batch_file({"prompt": "a", "stop": None}, {"prompt": "a"})).json_lines()
    assert first["token_ids"] == again["token_ids"] != []


@pytest.mark.parametrize("raw", [(), ("--raw",)])
def test_line_with_half_a_character_stops_no_other(generate: Cli, batch_file, raw):
    path = batch_file({"prompt": "good"}, {"prompt": "\ud83d"}, {"prompt": "good"})
    first, bad, last = generate(*raw, "--batch", path).json_lines()
    assert first["text"] == last["text"] != ""
    assert bad["error"].startswith(f"{path}:2: prompt: expected text that is UTF-8")


def test_line_that_the_chat_template_refuses_stops_no_other(generate: Cli, batch_file, tmp_path: Path):
    template = "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('not that') }}{% endif %}" + CHAT_TEMPLATE
    picky = save(tmp_path / "picky", make_model(), make_tokenizer(template))
    outcome = generate("--target", picky, "--batch", batch_file({"prompt": "a"}, {"prompt": "bad"}, {"prompt": "a"}))
    first, bad, last = outcome.json_lines()
    assert outcome.status == 1
    assert first["text"] == last["text"] != ""
    assert bad["error"].endswith("refuses the messages: not that; --raw leaves the template out")
