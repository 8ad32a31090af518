"""pearl-decode chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pearl_decode.cli import options, pair
from pearl_decode.cli.console import FAILED, CliError, note
from pearl_decode.inputs import check_text

if TYPE_CHECKING:
    from pearl_decode.decoder import PearlDecoder
    from pearl_decode.result import GenerationResult
    from pearl_decode.sampling import SamplingParams

DESCRIPTION = """Talk with a pair of models. Without a terminal, every line of standard input is a message.
Ctrl-C stops an answer, not the program; at the prompt, Ctrl-C or Ctrl-D ends it."""
HELP = "/reset forgets the conversation, /stats sums it up, /quit ends it; Ctrl-C stops an answer"


def add_command(commands: Any) -> None:
    parser = commands.add_parser("chat", help="talk with a pair of models", description=DESCRIPTION)
    pair.add_pair(parser)
    decoding = parser.add_argument_group("decoding")
    options.add_decoding(decoding)
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    sampling.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep this much mass (default: 1, all)")
    sampling.add_argument("--seed", type=int, help="the same seed gives the same conversation")
    sampling.add_argument("--max-tokens", type=options.positive, default=256, metavar="N", help="of an answer")
    sampling.add_argument("--system", metavar="TEXT", help="a system message that stands before the conversation")
    parser.set_defaults(run=run, stop=[], top_k=0, min_p=0.0, ignore_eos=False, compare=False)


def run(args: argparse.Namespace) -> int:
    from pearl_decode.cli.generate import load

    options.settle_draft(args)
    options.settle_rule(args)
    params = options.sampling_params(args)
    with load(args) as decoder:
        return converse(Chat(decoder, params, args.system))


def converse(chat: Chat) -> int:
    """Answer messages until the input ends, /quit, or Ctrl-C at the prompt.

    Returns 0, or without a terminal, where nobody sees the errors, 1 if any message was not answered.
    """
    interactive = sys.stdin.isatty()
    status = 0
    if interactive:
        note(f"[{HELP}]")
    while True:
        try:
            message = _next_message(interactive)
        except (EOFError, KeyboardInterrupt):
            if interactive:
                print(flush=True)
            return status
        if message == "/quit":
            return status
        if message:
            try:
                if message.startswith("/"):
                    note(f"[{chat.command(message)}]")
                else:
                    chat.answer(message)
            except (CliError, ValueError, RuntimeError) as error:
                note(f"pearl-decode: error: {options.bare(error)}")
                status = 0 if interactive else FAILED


def _next_message(interactive: bool) -> str:
    if interactive:
        return input("> ").strip()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


class Chat:
    """A conversation. messages: what was said so far, oldest first, as chat templates take it."""

    def __init__(self, decoder: PearlDecoder, params: SamplingParams, system: str | None = None) -> None:
        self.decoder = decoder
        self.session = decoder.session()
        self.params = params
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._opening)
        self.results: list[GenerationResult] = []

    def command(self, message: str) -> str:
        """Do what a /command says. Returns what to tell of it. Raises CliError for one that is not known."""
        if message == "/reset":
            self.messages = list(self._opening)
            return "the conversation starts anew"
        if message == "/stats":
            return self.totals()
        raise CliError(f"unknown command {message.split()[0]}: {HELP}")

    def totals(self) -> str:
        stats = [result.stats for result in self.results]
        tokens, forwards = sum(s.emitted_tokens for s in stats), sum(s.target_forwards for s in stats)
        decode_s = sum(s.decode_s for s in stats)
        return (
            f"{len(stats)} answers, {tokens} tokens, {tokens / decode_s if decode_s else 0:.1f} tokens/s, "
            f"{tokens / forwards if forwards else 0:.2f} tokens per target forward, "
            f"{sum(s.accepted_tokens for s in stats)} of them drafted"
        )

    def answer(self, message: str) -> None:
        """Print the answer as it comes and keep both in the conversation; Ctrl-C keeps what there is.

        A message that cannot be answered is not kept. Raises CliError or ValueError saying why.
        """
        from pearl_decode.cli.answers import summary
        from pearl_decode.cli.status_line import StatusLine

        ids = self._fit(message)
        interrupted = False
        with self.session.stream(ids, self.params) as stream, StatusLine() as status:
            try:
                for piece in stream:
                    print(piece, end="", flush=True)
                    status.show(live(stream.result))
            except KeyboardInterrupt:
                interrupted = True
        print(flush=True)
        result = stream.result
        if result.error is not None:
            raise CliError(result.error)
        self.messages += [{"role": "user", "content": message}, {"role": "assistant", "content": result.text}]
        self.results.append(result)
        note(summary(result))
        if interrupted:
            note("[stopped; what there is stays in the conversation]")

    def _fit(self, message: str) -> list[int]:
        """The conversation with this message as ids; the oldest turns are dropped until it fits the context."""
        context = self.decoder.target.context
        dropped = 0
        while True:
            ids = self._encode([*self.messages, {"role": "user", "content": message}])
            if context is None or len(ids) + self.params.max_tokens <= context:
                break
            if len(self.messages) == len(self._opening):
                raise CliError(
                    f"the message and an answer must fit the context of {context} tokens, "
                    f"got {len(ids)} + {self.params.max_tokens}; shorten it or lower --max-tokens"
                )
            del self.messages[len(self._opening) : len(self._opening) + 2]
            dropped += 1
        if dropped:
            note(f"[dropped the oldest {dropped} of the turns, to fit the context of {context} tokens]")
        return ids

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        from pearl_decode.text import templated

        tokenizer: Any = self.decoder.tokenizer
        if not tokenizer.chat_template:
            text = "\n".join(message["content"] for message in messages) + "\n"
        else:
            text = templated(tokenizer, messages)
        check_text(text)
        ids: list[int] = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
        return ids


def live(result: GenerationResult) -> str:
    stats = result.stats
    return f"{stats.emitted_tokens} tokens, {stats.tokens_per_target_forward:.2f} tokens per target forward"
