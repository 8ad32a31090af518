"""pearl-decode chat: turns, commands, interrupts, and a context that runs full."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pearl_decode import PearlDecoder, SamplingParams
from pearl_decode.cli.chat import Chat
from pearl_decode.cli.console import CliError
from tests.cli.conftest import CHAT_TEMPLATE, Cli, make_model, make_tokenizer, save


@pytest.fixture(scope="module")
def decoder():
    with PearlDecoder.from_pretrained(make_model(context=256), "first-layers:2", tokenizer=make_tokenizer()) as decoder:
        yield decoder


@pytest.fixture
def chat(cli: Cli, target: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on the tiny pair with these lines on standard input."""

    def run(*lines: str, argv: tuple[str, ...] = ()) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return cli("chat", "--target", target, "--draft", "first-layers:2", "--max-tokens", "12", *argv)

    return run


def spoken(*turns: tuple[str, str], last: str, system: str | None = None) -> list[int]:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": last})
    tokenizer = make_tokenizer()
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_line_is_answered_in_the_light_of_those_before(chat: Any, target: str):
    outcome = chat("one", "", "two")
    params = SamplingParams(max_tokens=12)
    with PearlDecoder.from_pretrained(target, "first-layers:2") as decoder:
        first = decoder.generate([spoken(last="one")], params)[0].text
        second = decoder.generate([spoken(("one", first), last="two")], params)[0].text
    assert outcome.status == 0
    assert outcome.out == f"{first}\n{second}\n"
    assert outcome.err.count("tokens per target forward") == 2


def test_what_was_said_is_not_read_again(target: str):
    with PearlDecoder.from_pretrained(target, "first-layers:2") as decoder:
        chat = Chat(decoder, SamplingParams(max_tokens=12))
        chat.answer("one")
        chat.answer("two")
        said = [spoken(last="one"), spoken(("one", chat.results[0].text), last="two")]
    first, second = (result.stats for result in chat.results)
    assert first.reused_tokens == 0
    before = [*said[0], *chat.results[0].token_ids]
    same = next(n for n, (a, b) in enumerate(zip(before, said[1], strict=False)) if a != b)
    assert second.reused_tokens == same >= len(said[0]) - 1


def test_reset_forgets_and_keeps_the_system_message(decoder: PearlDecoder):
    chat = Chat(decoder, SamplingParams(max_tokens=4), system="be brief")
    chat.answer("one")
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    chat.command("/reset")
    assert chat.messages == [{"role": "system", "content": "be brief"}]


def test_commands_answer_on_stderr_and_quit_ends(chat: Any):
    outcome = chat("/stats", "hi", "/stats", "/quit", "never answered")
    assert outcome.status == 0
    assert outcome.out.count("\n") == chat("hi").out.count("\n")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("[0 answers, 0 tokens")
    assert lines[2].startswith("[1 answers, ")
    assert len(lines) == 3


def test_a_command_that_is_not_known_is_an_error_and_the_conversation_goes_on(chat: Any):
    outcome = chat("/etc/hosts is what?", "hi")
    assert outcome.status == 1
    assert outcome.err.startswith("pearl-decode: error: unknown command /etc/hosts: ")
    assert outcome.out == chat("hi").out


def test_the_oldest_turns_leave_when_the_context_is_full(decoder: PearlDecoder, capsys: pytest.CaptureFixture[str]):
    chat = Chat(decoder, SamplingParams(max_tokens=20), system="be brief")
    for number in range(4):
        chat.answer(f"{number}" * 60)
    err = capsys.readouterr().err
    assert "[dropped the oldest 1 of the turns, to fit the context of 256 tokens]" in err
    roles = [message["role"] for message in chat.messages]
    assert roles == ["system"] + ["user", "assistant"] * (len(roles) // 2)
    assert chat.messages[1]["content"] != "0" * 60
    assert chat.messages[-2]["content"] == "3" * 60


def test_a_message_that_cannot_fit_is_refused_and_not_kept(decoder: PearlDecoder):
    chat = Chat(decoder, SamplingParams(max_tokens=20))
    with pytest.raises(CliError, match="must fit the context of 256 tokens"):
        chat.answer("x" * 300)
    assert chat.messages == []


def test_an_error_is_one_line_and_the_conversation_goes_on(chat: Any):
    outcome = chat("x" * 600, "hi")
    assert outcome.status == 1
    assert outcome.err.startswith("pearl-decode: error: the message and an answer must fit the context of 512 tokens")
    assert outcome.out == chat("hi").out


def test_a_message_that_the_chat_template_refuses_is_one_line_and_the_conversation_goes_on(chat: Any, tmp_path: Path):
    template = "{% if 'bad' in messages[-1]['content'] %}{{ raise_exception('not that') }}{% endif %}" + CHAT_TEMPLATE
    picky = save(tmp_path / "picky", make_model(), make_tokenizer(template))
    outcome = chat("bad", "hi", argv=("--target", picky))
    assert "pearl-decode: error: the tokenizer's chat template refuses the messages: not that\n" in outcome.err
    assert outcome.out == chat("hi").out


class Interrupting(io.StringIO):
    """Standard output that gets Ctrl-C after some pieces."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def write(self, text: str) -> int:
        self.left -= bool(text)
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(
    decoder: PearlDecoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    chat = Chat(decoder, SamplingParams(max_tokens=150, ignore_eos=True))
    whole = decoder.generate([spoken(last="hi")], SamplingParams(max_tokens=150, ignore_eos=True))[0].text
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(sys, "stdout", Interrupting(after=5))
        chat.answer("hi")
    finally:
        signal.signal(signal.SIGINT, handler)
    kept = chat.messages[-1]["content"]
    assert chat.messages[-1]["role"] == "assistant"
    assert 0 < len(kept) < len(whole)
    assert whole.startswith(kept)
    assert chat.results[0].finish_reason == "cancelled"
    assert "[stopped; what there is stays in the conversation]" in capsys.readouterr().err
    monkeypatch.undo()
    chat.answer("go on")
    assert len(chat.messages) == 4


def test_ctrl_c_at_the_prompt_ends_the_program(chat: Any, monkeypatch: pytest.MonkeyPatch, cli: Cli, target: str):
    class Interrupted(io.StringIO):
        def readline(self, size: int = -1, /) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    outcome = cli("chat", "--target", target, "--draft", "none")
    assert (outcome.status, outcome.out) == (0, "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_that_cannot_move_its_cursor_is_not_asked_to(monkeypatch: pytest.MonkeyPatch):
    from pearl_decode.cli.status_line import StatusLine

    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    with StatusLine() as line:
        line.show("3 tokens")
    assert sys.stderr.getvalue() == ""


def test_a_terminal_shows_the_count_in_its_last_row(monkeypatch: pytest.MonkeyPatch):
    from pearl_decode.cli.status_line import StatusLine

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    with StatusLine() as line:
        line.show("3 tokens")
    written = sys.stderr.getvalue()
    assert "\x1b[24;1H" in written
    assert "3 tokens" in written
    assert "\x1b[1;23r" in written
    assert written.endswith("\x1b[r\x1b[24;1H\x1b[2K\x1b8")  # the whole screen scrolls again


def test_a_strategy_that_drafts_needs_a_draft(chat: Any):
    outcome = chat("hi", argv=("--draft", "none", "--strategy", "pearl"))
    assert (outcome.status, outcome.out) == (2, "")
    assert "strategy pearl needs a draft" in outcome.err


@pytest.mark.parametrize("strategy", ["lookup", "autoregressive"])
def test_a_draft_that_is_not_used_is_not_loaded(chat: Any, monkeypatch: pytest.MonkeyPatch, strategy: str):
    monkeypatch.setattr("pearl_decode.loading.first_layers", None)
    outcome = chat("hi", argv=("--strategy", strategy))
    assert (outcome.status, outcome.err.count("\n")) == (0, 1)


def test_sampling_out_of_range_is_one_line(chat: Any):
    outcome = chat("hi", argv=("--top-p", "2"))
    assert outcome.status == 2
    assert outcome.err == "pearl-decode: error: top_p must be in (0, 1], got 2.0\n"
