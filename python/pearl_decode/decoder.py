"""The decoder: a target, a draft, and requests."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from transformers import PreTrainedModel

from pearl_decode.costs import Costs
from pearl_decode.device.runner import DeviceRunner
from pearl_decode.engine import Plan, Update
from pearl_decode.inputs import Prompt, check_text, one_params, params_of_each, prompt_list, token_ids
from pearl_decode.lanes import CpuLane
from pearl_decode.loading import check_loaded, load_pair
from pearl_decode.memory import NoRoomError
from pearl_decode.models import CausalModel
from pearl_decode.past import Past
from pearl_decode.request import Request
from pearl_decode.result import GenerationResult
from pearl_decode.runner import CpuRunner, Runner, check_devices
from pearl_decode.sampling import SamplingParams
from pearl_decode.session import Session
from pearl_decode.stats import DecodeStats
from pearl_decode.stream import TextStream
from pearl_decode.waiting import Waiting

LOGGER = logging.getLogger(__name__)
DEFAULT_RULE = "block"
REPRODUCIBLE_RULES = ("coupled", "greedy")


class PearlDecoder:
    """Decodes with a target model and a draft that guesses for it; the output is the target's own.

    target, draft: causal models of transformers; draft None leaves "autoregressive", "lookup", and "auto" of the two
    tokenizer:     the target's; None where prompts are token ids and no text is wanted
    gamma:         tokens drafted per round, fewer than the target's context, or "auto": on a GPU one of a few, that
                   make the target's window 4 or 8 rows wide, or 2, 4, 8 or 16 where nothing is compiled
    strategy:      "pearl", "sequential", "lookup", "autoregressive", or "auto": before each round the one that should
                   be the fastest, by the time rounds took and by what was accepted
    rule:          "token", "block", "coupled" or "greedy"; requests of temperature 0 are greedy under each. None is
                   DEFAULT_RULE, or "coupled" where reproducible
    reproducible:  whether a sampled text must be the same for the same seed, whatever the draft, the strategy and the
                   other requests: that takes the rule "coupled"
    max_batch:     requests decoded at once; each of the others takes the place of one that has ended
    compile:       on a GPU, whether torch fuses the models' small kernels, which takes minutes the first time: up to
                   one for each number of rows, tokens per forward and length (in steps of 512) that comes up, and
                   torch keeps the result on disk. None: where a model is neither spread over several GPUs nor made of
                   layers that all run as `pearl_kernels.window_layer`, in fewer kernels than torch would leave
    lanes:         target and draft lane to use whatever the strategy; None shares the cores out as it needs

    A target on a GPU is decoded by captured rounds on streams of its own, any other by threads that have cores each. On
    a GPU weights that are multiplied together are moved next to each other, once: CUDA graphs that somebody captured of
    a model before that read where they were.
    Close it, or use it as a context manager, to end its threads.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel | None = None,
        tokenizer: Any | None = None,
        *,
        gamma: int | str = "auto",
        strategy: str = "auto",
        rule: str | None = None,
        reproducible: bool = False,
        max_batch: int = 8,
        compile: bool | None = None,
        lanes: tuple[CpuLane, CpuLane] | None = None,
    ) -> None:
        if not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1:
            raise ValueError(f"max_batch must be an integer >= 1, got {max_batch!r}")
        pair = isinstance(lanes, (tuple, list)) and len(lanes) == 2 and all(isinstance(lane, CpuLane) for lane in lanes)
        if lanes is not None and not pair:
            raise ValueError(f"lanes must be None or two of CpuLane, got {lanes!r}")
        if not isinstance(reproducible, bool):
            raise ValueError(f"reproducible must be True or False, got {reproducible!r}")
        if compile is not None and not isinstance(compile, bool):
            raise ValueError(f"compile must be True, False or None, got {compile!r}")
        if tokenizer is not None and not callable(tokenizer):
            raise ValueError(f"tokenizer must be a loaded tokenizer or None, got {tokenizer!r}")
        check_loaded("target", target)
        if draft is not None:
            check_loaded("draft", draft)
        self.target = CausalModel(target, "target")
        self.draft = CausalModel(draft, "draft") if draft is not None else None
        self.tokenizer = tokenizer
        self.reproducible = reproducible
        check_devices(self.target, self.draft)
        self.plan = self._checked(Plan(strategy, gamma, rule or ("coupled" if reproducible else DEFAULT_RULE)))
        self.costs = Costs()
        self.runner: Runner = CpuRunner(self.target, self.draft, self.costs, lanes)
        static = lanes is None and has_static_rounds(self.target)
        if compile and not static:
            raise ValueError(
                f"compile must be None or False for a target on {self.target.device}, whose rounds are of any shape, "
                "got True"
            )
        if static:
            self.runner = DeviceRunner(self.target, self.draft, compile=compile, costs=self.costs)
        self.max_batch = max_batch

    @classmethod
    def from_pretrained(
        cls,
        target: str | os.PathLike[str] | PreTrainedModel,
        draft: str | os.PathLike[str] | PreTrainedModel | None = None,
        *,
        tokenizer: Any | None = None,
        dtype: torch.dtype | None = None,
        target_device: torch.device | str | None = None,
        draft_device: torch.device | str | None = None,
        device_map: Any | None = None,
        **options: Any,
    ) -> PearlDecoder:
        """Load a pair. Each may be a hub id, a path, "smollm2-135m" (the built-in target) or a loaded model; the draft
        also a directory that `pearl-decode distill` made, "smollm2-135m-draft" (the one made for the built-in target),
        or "first-layers:N", the target's own first N layers.

        tokenizer:     a hub id, a path or a loaded one; None: the target's own, and a directory of weights without one
                       is taken with a warning, for token ids
        dtype:         of both models; None is what the checkpoint says, but on a CPU they compute in float32, and a
                       draft that is loaded here has its matrices rounded to 8 bits
        target_device: such as "cpu" or "cuda:1"; None: the GPU if there is one; "auto" spreads the target over all
                       GPUs. A loaded model stays where it is
        draft_device:  None: the target's. A GPU of its own lets both models work at full speed
        device_map:    as transformers', for the target, instead of target_device
        options:       as the constructor's
        Raises ValueError if a model cannot be loaded, the two tokenizers differ, the draft is another target's, or the
        devices are not there or of different kinds.
        """
        pair = load_pair(
            target,
            draft,
            tokenizer,
            dtype,
            target_device=target_device,
            draft_device=draft_device,
            device_map=device_map,
        )
        return cls(pair.target, pair.draft, pair.tokenizer, **options)

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = None, **plan: Any) -> GenerationResult: ...
    @overload
    def generate(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **plan: Any,
    ) -> list[GenerationResult]: ...
    def generate(
        self,
        prompts: str | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **plan: Any,
    ) -> GenerationResult | list[GenerationResult]:
        """Answer one prompt, or a list of them, each a string or a sequence of token ids; a list is any iterable.

        params: for all of them, or one each
        plan:   strategy, gamma, rule, where they should differ from the decoder's
        Returns one result for a string, a list for a list, in its order. In a list, a bad prompt becomes a result with
        finish_reason "error" and the others go on; a single bad prompt raises ValueError, as do bad params.
        """
        if isinstance(prompts, str):
            with self.stream(prompts, one_params(params), **plan) as stream:
                return stream.finish()
        requests, rounds = self.start(prompts, params, **plan)
        for _ in rounds:
            pass
        return [request.result() for request in requests]

    def start(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **plan: Any,
    ) -> tuple[list[Request], Iterator[list[Update]]]:
        """As `generate` of a list, at the caller's pace: the requests, and the rounds that answer them.

        A bad prompt's request has its error at once and is in no round.
        """
        chosen = self._plan(plan)
        prompts = prompt_list(prompts)
        each = params_of_each(params, len(prompts))
        requests = [self._try_request(prompt, p, chosen) for prompt, p in zip(prompts, each, strict=True)]
        return requests, self._rounds(Waiting(request for request in requests if request.error is None), chosen)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **plan: Any) -> TextStream:
        """Answer one prompt piece by piece. Raises ValueError for a bad prompt, before anything runs."""
        return self._stream(prompt, params, plan)

    def session(self) -> Session:
        """For a conversation: of a prompt that goes on from the last one and its answer only what is new is read."""
        return Session(self._stream)

    def close(self) -> None:
        """End the lane threads, the given ones too."""
        self.runner.close()

    def __enter__(self) -> PearlDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self, prompt: Prompt, params: SamplingParams | None, plan: dict[str, Any], past: Past | None = None
    ) -> TextStream:
        chosen = self._plan(plan)
        request = self._request(prompt, one_params(params), chosen)
        return TextStream(request, self._rounds(Waiting([request]), chosen, past))

    def _rounds(self, waiting: Waiting, plan: Plan, past: Past | None = None) -> Generator[list[Update], None, None]:
        """Those of all these requests, some at a time: half as many where there is no memory for a batch, and one for
        which there is none by itself ends with an error.
        """
        most = self.max_batch
        while batch := waiting.take(most):
            most = self.max_batch
            try:
                yield from self.runner.engine(batch, plan, past, waiting).run()
            except NoRoomError as error:
                if len(batch) == 1:
                    batch[0].fail(str(error))
                    continue
                most = len(batch) // 2
                waiting.put_back(batch)
                LOGGER.warning("%s; at most %d at once, this time", error, most)

    def _plan(self, changes: dict[str, Any]) -> Plan:
        unknown = changes.keys() - {"strategy", "gamma", "rule"}
        if unknown:
            raise ValueError(f"expected strategy, gamma or rule, got {sorted(unknown)}")
        values: dict[str, Any] = {"strategy": self.plan.strategy, "gamma": self.plan.gamma, "rule": self.plan.rule}
        return self._checked(Plan(**(values | {name: value for name, value in changes.items() if value is not None})))

    def _checked(self, plan: Plan) -> Plan:
        if self.draft is None and plan.drafts:
            raise ValueError(f"strategy {plan.strategy!r} needs a draft model, got draft=None")
        context = self.target.context
        if isinstance(plan.gamma, int) and context is not None and plan.gamma >= context:
            raise ValueError(f"gamma must be below the target's context of {context} tokens, got {plan.gamma}")
        if self.reproducible and plan.rule not in REPRODUCIBLE_RULES:
            raise ValueError(f"rule must be one of {list(REPRODUCIBLE_RULES)} where reproducible, got {plan.rule!r}")
        return plan

    def _request(self, prompt: Prompt, params: SamplingParams, plan: Plan) -> Request:
        if params.stop and self.tokenizer is None:
            raise ValueError(f"stop: a decoder without a tokenizer has no text to find it in, got {params.stop!r}")
        request = self._new_request(self._encode(prompt), params, plan)
        self._check_prompt(request)
        return request

    def _try_request(self, prompt: Prompt, params: SamplingParams, plan: Plan) -> Request:
        try:
            return self._request(prompt, params, plan)
        except ValueError as error:
            request = self._new_request([], params, plan)
            request.fail(str(error))
            return request

    def _new_request(self, prompt_ids: list[int], params: SamplingParams, plan: Plan) -> Request:
        eos_ids = set(self.target.eos_ids())
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            eos_ids.add(self.tokenizer.eos_token_id)
        stats = DecodeStats(plan.strategy, plan.gamma, plan.rule)
        return Request(prompt_ids, params, sorted(eos_ids), self.tokenizer, stats)

    def _encode(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return token_ids(prompt)
        if self.tokenizer is None:
            raise ValueError("prompt: a decoder without a tokenizer takes token ids, got a string")
        check_text(prompt)
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        return ids

    def _check_prompt(self, request: Request) -> None:
        ids, vocab = request.prompt_ids, self.target.vocab_size
        if not ids:
            raise ValueError("prompt must hold at least one token, got none")
        foreign = next((token for token in ids if not 0 <= token < vocab), None)
        if foreign is not None:
            raise ValueError(f"prompt ids must be in [0, {vocab}), got {foreign}")
        context, wanted = self.target.context, request.params.max_tokens
        if context is not None and len(ids) + wanted > context:
            raise ValueError(
                f"prompt and max_tokens must fit the target's context of {context} tokens, "
                f"got {len(ids)} + {wanted}; shorten the prompt or lower max_tokens"
            )


def has_static_rounds(target: CausalModel) -> bool:
    """Whether a target is decoded by rounds that are captured, and of which the host reads nothing."""
    return target.device.type == "cuda"
