"""From token ids to text, piece by piece."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to


class Detokenizer:
    """Decodes a growing list of ids so that the pieces join to the text of the whole.

    A few ids of context are decoded again with each new one, because a token's text can depend on the token before
    it; text that ends in an unfinished character waits for the next token.
    """

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # ids from here on are decoded again
        self._read = 0  # ids before here are already in the text

    def push(self, token: int) -> str:
        """Text that this token completes, possibly none."""
        if self._tokenizer is None:
            return ""
        self._ids.append(token)
        return self._take(final=False)

    def flush(self) -> str:
        """What still waited, at the end."""
        return self._take(final=True) if self._tokenizer is not None else ""

    def _take(self, final: bool) -> str:
        before = self._decode(self._ids[self._context : self._read])
        after = self._decode(self._ids[self._context :])
        if len(after) <= len(before) or (after.endswith(REPLACEMENT) and not final):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        assert self._tokenizer is not None
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """Passes text on until a stop string appears, and holds back what may be the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Text that is certain to come before any stop string."""
        if not self._stop:
            return piece
        self._held += piece
        hits = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if hits:
            self.found = True
            ready, self._held = self._held[: min(hits)[1]], ""  # of the one that is complete first
            return ready
        keep = max(self._overlap(stop) for stop in self._stop)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        ready, self._held = self._held, ""
        return ready

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """The ids of a prompt: as one user message where the tokenizer has a chat template, as it is where not.

    Raises ValueError as `templated` does.
    """
    if tokenizer.chat_template:
        text = templated(tokenizer, [{"role": "user", "content": text}])
    ids: list[int] = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return ids


def templated(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The text of a conversation that the model answers next.

    Raises ValueError for messages that the chat template refuses: some take no system message.
    """
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the messages: {error}") from error
    return text
