"""transformers' own hook: model.generate(..., custom_generate=pearl_decode.generate, draft_model=draft)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from pearl_decode.decoder import PearlDecoder
from pearl_decode.sampling import SamplingParams

# What generate itself makes of the generation config, and the field that says so in both.
KNOWN_PROCESSORS: dict[type, str] = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}
KNOWN_CRITERIA: dict[type, str] = {MaxLengthCriteria: "max_length", EosTokenCriteria: "eos_token_id"}
# What generate gives the model beside tokens: what we go by, and what changes no logits.
KNOWN_INPUTS = {
    "attention_mask", "position_ids", "cache", "past_key_values", "cache_position", "use_cache", "logits_to_keep",
}  # fmt: skip


def generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft_model: PreTrainedModel | None = None,
    gamma: int | str = "auto",
    strategy: str = "auto",
    rule: str | None = None,
    compile: bool | None = False,
    streamer: Any | None = None,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """Decode for `model.generate`, with its generation config: lengths, end tokens, temperature, top_k, top_p, min_p.

        model.generate(**inputs, custom_generate=pearl_decode.generate, draft_model=draft, do_sample=True)

    input_ids: (batch, length) int64, left-padded as attention_mask says
    compile:   as PearlDecoder's; here not unless it is asked for, as one call would hardly gain what compiling takes
    Seeds come from torch's generator, and the rule is "coupled" if none is given, so that torch.manual_seed makes the
    text reproducible.
    Returns what generate returns: (batch, length + new) int64 ids, prompts included, padded at the end; or a
    GenerateDecoderOnlyOutput with them where the config asks for a dict.
    Raises ValueError for what this decoder would otherwise ignore: logits processors and stopping criteria that
    are not the config's, position_ids that are not attention_mask's, inputs_embeds, images and all else that models
    take beside tokens, beams, contrastive search, DoLa, scores, a missing draft_model.
    """
    if draft_model is None:
        raise ValueError("draft_model: expected the draft, a causal model of transformers, got None")
    _refuse_modes(generation_config, model_kwargs)
    _refuse_unknown(logits_processor, stopping_criteria, generation_config)
    if streamer is None:
        streamer = _callers_streamer()
    if streamer is not None and input_ids.shape[0] > 1:
        raise ValueError(f"streamer: expected a batch of 1, got {input_ids.shape[0]}")
    prompts = _prompts(input_ids, model_kwargs.get("attention_mask"), model_kwargs.get("position_ids"))
    params = [_params(generation_config, input_ids.shape[1]) for _ in prompts]
    with (
        _modes_kept(model, draft_model),
        PearlDecoder(
            model, draft_model, gamma=gamma, strategy=strategy, rule=rule, reproducible=rule is None, compile=compile
        ) as decoder,
    ):
        requests, rounds = decoder.start(prompts, params)
        for updates in rounds:
            for update in updates:
                if streamer is not None and update.token_ids:
                    streamer.put(torch.tensor(update.token_ids))
    if streamer is not None:
        streamer.end()
    for row, request in enumerate(requests):
        if request.error is not None:
            raise RuntimeError(f"row {row}: {request.error}")
    sequences: Any = _with_answers(input_ids, [request.token_ids for request in requests], generation_config)
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences


@contextmanager
def _modes_kept(*models: Any) -> Iterator[None]:
    """A decoder puts its models in evaluation mode; after this they are in the modes that their modules were in."""
    given = [model for model in models if isinstance(model, torch.nn.Module)]
    training = [module for model in given for module in model.modules() if module.training]
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _refuse_modes(config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    embeddings = model_kwargs.get("inputs_embeds")
    if embeddings is not None:
        raise ValueError(f"inputs_embeds: expected None, the prompts as input_ids, got {tuple(embeddings.shape)}")
    for name, value in model_kwargs.items():
        if name not in KNOWN_INPUTS and (isinstance(value, torch.Tensor) or value):  # of no images there are {}
            raise ValueError(f"{name}: expected None, as models are given tokens alone, got {type(value).__name__}")
    for name, off in (("num_beams", 1), ("penalty_alpha", 0), ("dola_layers", None)):
        value = getattr(config, name, None)
        if value not in (None, off):
            raise ValueError(f"{name} must be {off}, got {value!r}")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise ValueError(f"{name}: this decoder returns token ids only, got True")


def _refuse_unknown(processors: LogitsProcessorList, criteria: StoppingCriteriaList, config: GenerationConfig) -> None:
    """Refuse what is not as the config says: generate puts its caller's own beside, or in place of, what it made."""
    for name, items, known in (
        ("logits_processor", processors, KNOWN_PROCESSORS),
        ("stopping_criteria", criteria, KNOWN_CRITERIA),
    ):
        foreign = [type(item).__name__ for item in items if type(item) not in known]
        if foreign:
            raise ValueError(f"{name}: expected only {sorted(kind.__name__ for kind in known)}, got {foreign}")
        for item in items:
            kind, field = type(item).__name__, known[type(item)]
            expected, got = getattr(config, field), getattr(item, field)
            if field == "eos_token_id":
                expected, got = sorted(_ids(expected)), sorted(_ids(got))
            if got != expected:
                raise ValueError(f"{name}: expected {kind} with the config's {field}={expected}, got {got}")
        kinds = [type(item).__name__ for item in items]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"{name}: expected one of each, got {kinds}")
    if processors and not config.do_sample:
        raise ValueError(f"logits_processor: expected none with do_sample=False, got {len(processors)}")


def _callers_streamer() -> Any | None:
    """The streamer given to `model.generate`.

    transformers (5.24) keeps it to itself on the custom_generate path: it is only to be found in the frame of generate,
    which has called us, or a function around us.
    """
    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame.f_locals.get("streamer") if frame is not None else None


def _prompts(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> list[list[int]]:
    """Each row without its padding; its positions are ours to count, so others than the mask gives are refused."""
    kept = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if position_ids is not None:
        expected = kept.cumsum(1) - 1
        # Models with several positions to a token have them in front: (planes, batch, length).
        fits = position_ids.shape[-2:] in (expected.shape, expected[:1].shape)
        if not fits or ((position_ids != expected) & kept).any():
            raise ValueError(f"position_ids: expected those that attention_mask gives, {expected}, got {position_ids}")
    return [row[mask].tolist() for row, mask in zip(input_ids, kept, strict=True)]


def _params(config: GenerationConfig, length: int) -> SamplingParams:
    sampled = bool(config.do_sample)
    return SamplingParams(
        temperature=_or(config.temperature, 1.0) if sampled else 0.0,
        top_k=_or(config.top_k, 0) if sampled else 0,
        top_p=_or(config.top_p, 1.0) if sampled else 1.0,
        min_p=_or(config.min_p, 0.0) if sampled else 0.0,
        seed=int(torch.randint(2**63 - 1, ())),
        max_tokens=config.max_length - length,
        stop_token_ids=tuple(token for token in _ids(config.eos_token_id) if token >= 0),  # -1 is how some say none
        ignore_eos=True,  # the config's end tokens are the ones that count
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _ids(value: Any) -> list[int]:
    """Token ids in any form that a generation config has them: none, one, several, a tensor."""
    return [] if value is None else torch.as_tensor(value).flatten().tolist()


def _with_answers(prompts: torch.Tensor, answers: list[list[int]], config: GenerationConfig) -> torch.Tensor:
    pad = (*_ids(config.pad_token_id), *_ids(config.eos_token_id), 0)[0]  # generate pads with the first end token too
    widest = max(len(answer) for answer in answers)
    rows = [answer + [pad] * (widest - len(answer)) for answer in answers]
    return torch.cat([prompts, torch.tensor(rows, dtype=prompts.dtype, device=prompts.device)], dim=1)
