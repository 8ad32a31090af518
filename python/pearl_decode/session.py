"""A conversation with a decoder, one text after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pearl_decode.inputs import Prompt
from pearl_decode.past import Past
from pearl_decode.result import GenerationResult
from pearl_decode.sampling import SamplingParams
from pearl_decode.stream import TextStream


class Session:
    """Answers prompts of which each may go on from the last one and its answer; what is the same is not read again.

    The caches of the last text are kept, with room for twice as much at most, until the next one begins or `close`.
    Answers are the decoder's own, to the bit: entries are kept only where kernels run the whole target as one call, on
    a CPU, as a token's entries do not depend there on how the text before it was read. With any other target every
    prompt is read from its beginning. The weights must not be changed in place meanwhile.
    """

    def __init__(self, begin: Callable[[Prompt, SamplingParams | None, dict[str, Any], Past], TextStream]) -> None:
        """Made by `PearlDecoder.session`."""
        self._begin = begin
        self._past = Past()

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **plan: Any) -> TextStream:
        """As `PearlDecoder.stream`. `DecodeStats.reused_tokens` says how much of the prompt was not read again."""
        return self._begin(prompt, params, plan, self._past)

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **plan: Any) -> GenerationResult:
        """As `PearlDecoder.generate`, of one prompt, be it text or token ids."""
        with self.stream(prompt, params, **plan) as stream:
            return stream.finish()

    def close(self) -> None:
        """Forget the last text and give its memory back. The session can go on."""
        self._past.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
