"""Mistakes and failures: one clear line on stderr, an exit status, and no traceback."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from pearl_decode.cli import main
from pearl_decode.cli.console import table
from pearl_decode.request import Request
from tests.cli.conftest import Cli, make_model, make_tokenizer, save


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if "error" in line]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temperature", "-1"), "temperature must be a finite number >= 0, got -1.0"),
        (("--temperature", "nan"), "temperature must be a finite number >= 0, got nan"),
        (("--temperature", "hot"), "invalid float value: 'hot'"),
        (("--top-p", "0"), "top_p must be in (0, 1], got 0.0"),
        (("--top-p", "1.5"), "top_p must be in (0, 1], got 1.5"),
        (("--top-k", "-3"), "top_k must be an integer >= 0 (0 is off), got -3"),
        (("--min-p", "2"), "min_p must be in [0, 1], got 2.0"),
        (("--max-tokens", "0"), "max_tokens must be an integer >= 1, got 0"),
        (("--gamma", "0"), "argument --gamma: must be an integer >= 1, got 0"),
        (("--gamma", "two"), "argument --gamma: expected an integer >= 1 or auto, got 'two'"),
        (("--rule", "majority"), "invalid choice: 'majority'"),
        (("--strategy", "tree"), "invalid choice: 'tree'"),
        (("--dtype", "int8"), "invalid choice: 'int8'"),
        (("--stop", ""), "stop must hold non-empty strings, got ''"),
        (("--draft", "none", "--strategy", "pearl"), "strategy pearl needs a draft"),
        (
            ("--draft", "./no/such/draft"),
            "draft: expected a model directory or a hub id, but there is no './no/such/draft'",
        ),
        (("--target", "./nowhere"), "target: expected a model directory or a hub id, but there is no './nowhere'"),
        (("--target-device", "cuda:99"), "--target-device must be one of ['cpu'"),
        (("--draft-device", "npu?"), "got 'npu?'"),
        (("another prompt", "--compare"), "--compare measures one prompt, got 2"),
        (("--batch", "x.jsonl"), "--batch reads its prompts from the file"),
        (("--top-k", "99999999999"), "top_k must be at most 2147483647, got 99999999999"),
        (("--temperature", "1e308"), "temperature must be a number that float32 holds, got 1e+308"),
        (("half \udcff",), "prompt: expected text that is UTF-8, got '\\udcff' at character 5"),
        (("half \udcff", "--raw"), "prompt: expected text that is UTF-8, got '\\udcff' at character 5"),
        (("--max-tokens", "600"), "must fit the target's context of 512 tokens"),
    ],
)
def test_bad_argument_is_named_and_exits_2(generate: Cli, arguments, message: str):
    outcome = generate("a prompt", *arguments)
    assert outcome.status == 2
    assert outcome.out == ""
    assert message in one_line(outcome.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--batch", "~nobody.here/x"),
        ("generate", "--target", "~nobody.here/x", "hi"),
        ("generate", "--draft", "~nobody.here/x", "hi"),
        ("bench", "--draft", "first-layers:1", "--prompts", "~nobody.here/x"),
        ("distill", "--own-prompts", "4", "--out", "unused", "--initial-draft", "~nobody.here/x"),
    ],
)
def test_path_below_the_home_of_nobody_is_one_line(cli: Cli, target: str, arguments: tuple[str, ...]):
    outcome = cli(arguments[0], "--target", target, *arguments[1:])
    assert outcome.status == 2
    assert "~nobody.here/x" in one_line(outcome.err)


def test_target_without_a_draft_says_what_to_give(cli: Cli, target: str):
    outcome = cli("generate", "--target", target, "--strategy", "sequential", "a prompt")
    assert outcome.status == 2
    assert "give --draft a path, a hub id or first-layers:N" in one_line(outcome.err)


def test_no_command_exits_2(cli: Cli):
    assert cli().status == 2


def test_empty_standard_input_exits_2(generate: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    outcome = generate()
    assert outcome.status == 2
    assert "standard input is empty" in one_line(outcome.err)


def test_terminal_without_a_prompt_exits_2(generate: Cli, monkeypatch: pytest.MonkeyPatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    outcome = generate()
    assert outcome.status == 2
    assert "no prompt: give one as an argument" in one_line(outcome.err)


@pytest.mark.parametrize(
    ("redirection", "arguments", "status", "message"),
    [
        ("<&-", ("generate",), 2, "standard input is empty"),
        (">&-", ("doctor",), 0, ""),
        (">/dev/full", ("doctor",), 1, "No space left on device"),
    ],
)
def test_streams_that_are_closed_or_full_are_no_traceback(redirection, arguments, status: int, message: str):
    shell = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    command = (sys.executable, "-m", "pearl_decode", *arguments)
    done = subprocess.run([*shell, *command], input=b"", capture_output=True, timeout=120, check=False)
    assert done.returncode == status
    assert (message in one_line(done.stderr.decode())) if message else done.stderr == b""


@pytest.mark.parametrize("draft", ["first-layers:9", "first-layers:x", "someone/model"])
def test_draft_that_does_not_load_exits_1(generate: Cli, draft: str):
    outcome = generate("a prompt", "--draft", draft)
    assert outcome.status == 1
    assert "draft: " in one_line(outcome.err)


REFUSING = "{{ raise_exception('no ' + messages[0]['role'] + ' messages') }}"


@pytest.mark.parametrize("command", [("generate",), ("generate", "--json"), ("generate", "--compare"), ("bench",)])
def test_prompt_that_the_chat_template_refuses_is_one_line(cli: Cli, tmp_path, command: tuple[str, ...]):
    refusing = save(tmp_path / "refusing", make_model(), make_tokenizer(REFUSING))
    outcome = cli(
        *command, "--target", refusing, "--draft", "first-layers:1", *(["hi"] if "bench" not in command else [])
    )
    assert outcome.status == 1
    assert one_line(outcome.err).endswith("refuses the messages: no user messages; --raw leaves the template out")


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA out of memory"), KeyError("head_dim")])
def test_model_that_fails_to_load_is_one_line(generate: Cli, monkeypatch: pytest.MonkeyPatch, failure: Exception):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", Mock(side_effect=failure))
    outcome = generate("a prompt")
    assert outcome.status == 1
    assert str(failure) in one_line(outcome.err)


def test_gamma_that_no_text_is_as_long_as_is_named(generate: Cli):
    outcome = generate("a prompt", "--gamma", "1000000")
    assert outcome.status == 1
    assert "gamma must be below the target's context of 512 tokens, got 1000000" in one_line(outcome.err)


def test_folder_without_a_model_exits_1(generate: Cli, tmp_path):
    outcome = generate("a prompt", "--target", str(tmp_path))
    assert outcome.status == 1
    assert str(tmp_path) in one_line(outcome.err)


def test_other_tokenizer_of_the_draft_exits_1(generate: Cli, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["surplus"])
    outcome = generate("a prompt", "--draft", save(tmp_path / "draft", make_model(), tokenizer))
    assert outcome.status == 1
    assert "the first differing id is 259" in one_line(outcome.err)


def test_target_without_a_tokenizer_exits_1(generate: Cli, tmp_path):
    make_model().save_pretrained(tmp_path)
    outcome = generate("a prompt", "--target", str(tmp_path))
    assert outcome.status == 1
    assert f"target: expected a tokenizer beside the model, there is none in {str(tmp_path)!r}" in outcome.err


def run_apart(*arguments: str | bytes, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """In a process of its own, whose streams have an encoding."""
    command = [sys.executable, "-m", "pearl_decode", *arguments]
    environment = os.environ | {"PYTHONUTF8": "1"} | variables
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=120, check=False)


def test_standard_input_that_is_not_utf8_exits_2(target: str):
    done = run_apart("generate", "--target", target, "--strategy", "autoregressive", stdin=b"ab\xff\n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert "prompt: expected text that is UTF-8, got '\\udcff' at character 2" in one_line(done.stderr.decode())


def test_message_that_is_not_utf8_does_not_end_a_chat(target: str):
    arguments = ("chat", "--target", target, "--draft", "none", "--max-tokens", "8")
    done = run_apart(*arguments, stdin=b"ab\xff\nab\n")
    assert done.returncode == 1
    assert "prompt: expected text that is UTF-8, got '\\udcff'" in one_line(done.stderr.decode())
    assert done.stdout == run_apart(*arguments, stdin=b"ab\n").stdout != b""


def test_characters_that_the_output_lacks_cost_nothing_else(target: str):
    arguments = ("generate", "--target", target, "--strategy", "autoregressive", "--max-tokens", "60", "a prompt")
    whole = run_apart(*arguments).stdout.decode()
    plain, escaped = (
        run_apart(*arguments, *form, PYTHONUTF8="0", PYTHONIOENCODING="ascii").stdout for form in ((), ("--json",))
    )
    assert not whole.isascii()
    assert plain == whole.encode("ascii", "replace")
    assert json.loads(escaped)["text"] + "\n" == whole


@pytest.mark.parametrize("arguments", [(), ("--no-stream",), ("--json",)])
def test_target_with_nan_weights_exits_1(cli: Cli, tmp_path, arguments):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    broken = save(tmp_path / "broken", model)
    outcome = cli("generate", "--target", broken, "--draft", "first-layers:1", "a prompt", *arguments)
    assert outcome.status == 1
    assert "NaN or infinite logits" in one_line(outcome.err.replace("finish_reason", "").replace(", error, seed", ""))


@pytest.mark.filterwarnings("default")
def test_draft_that_fails_midway_is_one_warning_and_the_text_is_complete(
    generate: Cli, monkeypatch: pytest.MonkeyPatch
):
    expected = generate("a prompt").out

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("device lost")

    monkeypatch.setattr("pearl_decode.at_once.runs_rounds", lambda: False)
    monkeypatch.setattr("pearl_decode.window_model.draft_chain", fail)
    outcome = generate("a prompt")
    assert (outcome.status, outcome.out) == (0, expected)
    warning, summary = outcome.err.splitlines()
    assert warning.startswith("pearl-decode: warning: the draft failed, the target goes on alone: ")
    assert "24 tokens" in summary


def start(*arguments: str) -> subprocess.Popen[bytes]:
    # A group of its own: the signal must reach this process and not pytest. A shell's background jobs, and all they
    # start, ignore it unless told otherwise.
    command = [sys.executable, "-m", "pearl_decode", "generate", *arguments]
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, handler)


def read_until(process: subprocess.Popen[bytes], count: int) -> bytes:
    """The first `count` bytes of its standard output."""
    guard = threading.Timer(120, process.kill)
    guard.start()
    received = b""
    while len(received) < count and (piece := os.read(process.stdout.fileno(), 4096)):
        received += piece
    guard.cancel()
    return received


def test_ctrl_c_ends_a_stream_and_keeps_its_text(slow_target: str):
    process = start("--target", slow_target, "--draft", "first-layers:2", "--ignore-eos", "--max-tokens", "50000", "hi")
    received = read_until(process, 20)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(received) >= 20
    assert (received + rest).endswith(b"\n")
    assert b"cancelled" in err
    assert err.endswith(b"pearl-decode: interrupted\n")
    assert b"Traceback" not in err


@pytest.mark.parametrize(("form", "answers"), [("--json", 2), ("--no-stream", 1)])
def test_ctrl_c_in_answers_that_are_printed_whole_prints_what_there_is(
    slow_target: str, form: str, answers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The interrupt comes once 20 tokens are there."""
    push = Request.push

    def interrupt(self: Request, *arguments: object) -> object:
        if len(self.token_ids) > 20:
            raise KeyboardInterrupt
        return push(self, *arguments)

    monkeypatch.setattr(Request, "push", interrupt)
    model = ("--target", slow_target, "--strategy", "autoregressive", "--ignore-eos", "--max-tokens", "50000")
    status = main(["generate", *model, form, *("hi", "you")[:answers]])
    out, err = capsys.readouterr()
    assert status == 130
    assert out.count('"finish_reason": "cancelled"' if form == "--json" else "\n") == answers
    assert len(out) > 20 * answers
    assert err.endswith("pearl-decode: interrupted\n")


def test_ctrl_c_in_a_batch_prints_what_there_is(slow_target: str, tmp_path):
    batch = tmp_path / "prompts.jsonl"
    batch.write_text('{"prompt": "a", "max_tokens": 3}\n{"prompt": "b", "max_tokens": 50000}\n')
    process = start("--target", slow_target, "--draft", "first-layers:2", "--ignore-eos", "--batch", str(batch))
    first = read_until(process, 20)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + rest).count(b"\n") == 2
    assert b'"finish_reason": "cancelled"' in rest
    assert b"Traceback" not in err


def test_a_reader_that_leaves_a_table_ends_the_command_as_any_text(monkeypatch: pytest.MonkeyPatch):
    class Left(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("pearl_decode.cli.doctor.run", lambda args: table(("strategy",), [("pearl",)]))
    monkeypatch.setattr(sys, "stdout", Left())
    assert main(["doctor"]) == 141


def test_a_reader_that_leaves_ends_the_command_quietly(slow_target: str):
    process = start("--target", slow_target, "--draft", "first-layers:2", "--ignore-eos", "--max-tokens", "50000", "hi")
    read_until(process, 20)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert b"Traceback" not in err
