"""Other projects' decoders, on the models that are already loaded.

Each is given what it is documented to take: the same target and draft objects, the same temperature, all the cores,
and a draft length equal to ours beside its own default. A package that is not installed, or that refuses
the pair, is reported by name and costs the others nothing.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from pearl_decode.attention import sdpa_replaced
from pearl_decode.bench.peer_models import with_full_vocabulary
from pearl_decode.bench.systems import Decode, Output, System, broken


@dataclass(frozen=True)
class Pair:
    """What a peer is given. gamma: tokens to draft at a time, where it is not to choose; seed: of torch, if sampled."""

    target: PreTrainedModel
    draft: PreTrainedModel
    eos_ids: list[int]
    gamma: int
    temperature: float
    seed: int

    def full_draft(self) -> Any:
        """The draft as others can use it, with settings that no other system shares."""
        return with_full_vocabulary(self.draft, self.target.config.get_text_config().vocab_size)


def peer_systems(names: Sequence[str], pair: Pair) -> list[System]:
    """The systems of these peers. Raises ValueError for a name that is not one of PEERS."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ValueError(f"peers must be of {', '.join(PEERS)}, got {unknown[0]!r}")
    systems = []
    for name in names:
        for label, make in PEERS[name].items():
            title = f"{name} {label}".format(gamma=pair.gamma)
            try:
                systems.append(System(title, make(pair)))
            except Exception as error:  # whatever a peer does, the others are measured
                systems.append(broken(title, error))
    return systems


def peer_versions(names: Sequence[str]) -> dict[str, str]:
    """The installed version of each, or "not installed"."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _one_at_a_time(pair: Pair, decode: Callable[[torch.Tensor, int], torch.Tensor]) -> Decode:
    """decode: (prompt (1, length) int64, most tokens) -> new ids (count,)."""

    def run(prompts: Sequence[list[int]], max_tokens: int) -> Output:
        if len(prompts) > 1:
            raise RuntimeError("decodes one prompt at a time: measure it without a batch")
        torch.manual_seed(pair.seed)
        return Output([decode(torch.tensor([prompts[0]], device=pair.target.device), max_tokens).tolist()])

    return run


def _transformers(pair: Pair) -> Decode:
    target: Any = pair.target
    options = _generate_options(pair)

    def decode(prompts: Sequence[list[int]], max_tokens: int) -> Output:
        torch.manual_seed(pair.seed)
        width = max(map(len, prompts))
        pads = [width - len(prompt) for prompt in prompts]
        rows = [[0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
        ids = torch.tensor(rows, device=target.device)
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=target.device)
        output = target.generate(ids, attention_mask=mask, max_new_tokens=max_tokens, **options)
        return Output(output[:, width:].tolist())

    return decode


def _transformers_assisted(pair: Pair, **settings: Any) -> Decode:
    target: Any = pair.target
    draft = pair.full_draft()
    for name, value in settings.items():
        setattr(draft.generation_config, name, value)
    options = _generate_options(pair) | {"assistant_model": draft}

    def decode(prompt: torch.Tensor, max_tokens: int) -> torch.Tensor:
        mask = torch.ones_like(prompt)
        output: torch.Tensor = target.generate(prompt, attention_mask=mask, max_new_tokens=max_tokens, **options)
        return output[0, prompt.shape[1] :]

    return _one_at_a_time(pair, decode)


def _generate_options(pair: Pair) -> dict[str, Any]:
    options: dict[str, Any] = {"do_sample": False}
    if pair.temperature > 0:
        options = {"do_sample": True, "temperature": pair.temperature, "top_k": 0, "top_p": 1.0}
    return options | {"eos_token_id": pair.eos_ids or None, "pad_token_id": pair.eos_ids[0] if pair.eos_ids else 0}


def _flashspec(pair: Pair, strategy: str) -> Decode:
    from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
    from flashspec.engine.hf_drafter import HuggingFaceDrafter
    from flashspec.engine.verifier import TargetModel

    logging.getLogger("flashspec").setLevel(logging.ERROR)  # it warns of a single drafter, which is what is asked for
    device, dtype = pair.target.device, pair.target.dtype
    config = FlashSpecConfig(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        drafter_strategy=strategy,
        eos_token_ids=tuple(pair.eos_ids),
        bandit=BanditConfig(n_arms=1),
        sampling=SamplingConfig(gamma=pair.gamma, temperature=pair.temperature, seed=pair.seed),
    )
    drafter = HuggingFaceDrafter("draft", device, dtype, pair.temperature, model=pair.full_draft())
    engine = SpeculativeEngine(config, [drafter], TargetModel("target", device, dtype, model=pair.target))
    return _one_at_a_time(pair, lambda prompt, max_tokens: engine.generate(prompt, max_tokens).output_ids[0])


def _economize(pair: Pair, mode: str) -> Decode:
    from economize.distributed import AsyncSpeculativeDecoder, SSDConfig

    config = SSDConfig(draft_length=pair.gamma, mode=mode, temperature=pair.temperature, seed=pair.seed)
    target, draft = pair.target, pair.full_draft()
    stop = pair.eos_ids or None
    with sdpa_replaced(target), sdpa_replaced(draft):  # it refuses what it does not know the masks of
        decoder = AsyncSpeculativeDecoder(target, draft, config)

    def decode(prompt: torch.Tensor, max_tokens: int) -> Any:
        with sdpa_replaced(target), sdpa_replaced(draft):
            return decoder.generate(prompt, max_tokens, stop).tokens

    return _one_at_a_time(pair, decode)


_CHAIN: dict[str, Any] = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}

PEERS: dict[str, dict[str, Callable[[Pair], Decode]]] = {
    "transformers": {
        "plain": _transformers,
        "assisted": _transformers_assisted,
        "assisted, gamma {gamma}": lambda pair: _transformers_assisted(pair, num_assistant_tokens=pair.gamma, **_CHAIN),
    },
    "flashspec": {
        "auto": lambda pair: _flashspec(pair, "auto"),
        "draft, gamma {gamma}": lambda pair: _flashspec(pair, "bandit"),
    },
    "economize": {
        "async, gamma {gamma}": lambda pair: _economize(pair, "async"),
        "sync, gamma {gamma}": lambda pair: _economize(pair, "sync"),
    },
}
