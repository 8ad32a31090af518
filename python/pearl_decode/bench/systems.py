"""What is timed: a name, and a way to turn prompts into tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from pearl_decode.decoder import PearlDecoder
from pearl_decode.sampling import SamplingParams
from pearl_decode.stats import DecodeStats

BASELINE = "autoregressive"


@dataclass(frozen=True)
class Output:
    """token_ids: what each prompt got, without the prompt; stats: one per prompt where the system keeps them."""

    token_ids: list[list[int]]
    stats: list[DecodeStats] = field(default_factory=list)


Decode = Callable[[Sequence[list[int]], int], Output]


@dataclass(frozen=True)
class System:
    """decode: (prompt ids, most tokens for each) -> Output."""

    name: str
    decode: Decode


def own_systems(
    decoder: PearlDecoder, strategies: Sequence[str], temperature: float, seed: int, gammas: dict[str, int | str]
) -> list[System]:
    """One system per strategy of the decoder. gammas: the gamma of a strategy, where it is not the decoder's."""
    return [
        System(name, _own(decoder, name, temperature, seed, {"gamma": gammas[name]} if name in gammas else {}))
        for name in strategies
    ]


def broken(name: str, error: BaseException) -> System:
    """A system that could not be made: it fails with the reason when it is run, like any that fails later."""

    def fail(prompts: Sequence[list[int]], max_tokens: int) -> NoReturn:
        raise error

    return System(name, fail)


def _own(decoder: PearlDecoder, strategy: str, temperature: float, seed: int, plan: dict[str, int | str]) -> Decode:
    def decode(prompts: Sequence[list[int]], max_tokens: int) -> Output:
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        results = decoder.generate(prompts, params, strategy=strategy, **plan)
        for result in results:
            if result.error is not None:
                raise RuntimeError(result.error)
        return Output([result.token_ids for result in results], [result.stats for result in results])

    return decode
