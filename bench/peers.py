"""Kernels of others that do on a GPU what `verify` or `sample` do, where they are installed.

Each gets what suits it: the draft's probabilities are there already, as our draft's statistics are, and where it wants
the target's too, the softmax is timed with it. Their chains are one token shorter, as their last row is for a bonus
token, and that token is given to those who do not draw it themselves. They know the rule `token` alone; SGLang's kernel
does not look at the draft's probabilities.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from gpu import installed
from harness import Contender
from torch import Tensor

Call = Callable[[], object]
# Builds one call of a peer, or raises ImportError where the peer is not installed.
Builder = Callable[..., Call]


def flashinfer_verify(target: Tensor, draft: Tensor, tokens: Tensor) -> Call:
    from flashinfer import sampling

    (batch, width, vocab), chain = target.shape, target.shape[1] - 1
    draft_probs = draft[:, :chain].float().softmax(-1).contiguous()
    ids = tokens[:, :chain].int().contiguous()

    def call() -> object:
        probs = sampling.softmax(target.reshape(batch * width, vocab)).view(batch, width, vocab)
        return sampling.chain_speculative_sampling(draft_probs, ids, probs)

    return call


def vllm_verify(target: Tensor, draft: Tensor, tokens: Tensor) -> Call:
    from vllm.v1.sample.rejection_sampler import rejection_sample

    (batch, _, vocab), chain, device = target.shape, target.shape[1] - 1, target.device
    draft_probs = draft[:, :chain].float().softmax(-1).reshape(-1, vocab)
    ids = tokens[:, :chain].int().reshape(-1)
    lengths = [chain] * batch
    ends = torch.arange(1, batch + 1, dtype=torch.int32, device=device) * chain
    bonus = tokens[:, -1:].int().contiguous()
    sampling = SimpleNamespace(
        all_greedy=False, all_random=True, temperature=torch.ones(batch, device=device), generators={}
    )
    rows = target[:, :chain].reshape(-1, vocab)
    takes_logits = "target_logits" in inspect.signature(rejection_sample).parameters

    def call() -> object:
        given = rows.float() if takes_logits else rows.softmax(-1, dtype=torch.float32)
        return rejection_sample(ids, lengths, chain, ends, draft_probs, given, bonus, sampling)

    return call


def sglang_verify(target: Tensor, draft: Tensor, tokens: Tensor) -> Call:
    from sgl_kernel import tree_speculative_sampling_target_only

    (batch, width, _), device = target.shape, target.device
    numbers = torch.arange(batch * width, dtype=torch.int64, device=device).view(batch, width)
    following = torch.arange(1, width + 1, dtype=torch.int64, device=device).repeat(batch, 1)
    following[:, -1] = -1
    candidates = torch.cat([tokens.new_zeros(batch, 1), tokens[:, : width - 1]], 1)
    out = [torch.zeros(shape, dtype=torch.int32, device=device) for shape in ((batch * width,), (batch, width), batch)]
    draft_probs = torch.zeros(target.shape, device=device)
    uniform, last = torch.rand(batch, width, device=device), torch.rand(batch, device=device)

    def call() -> object:
        probs = target.softmax(-1, dtype=torch.float32)
        tree_speculative_sampling_target_only(
            *out, candidates, numbers, following, torch.full_like(following, -1), uniform, last, probs, draft_probs,
            1.0, 1.0, True,
        )  # fmt: skip
        return out

    return call


def flashinfer_sample(logits: Tensor, setting: dict[str, float]) -> Call:
    from flashinfer import sampling

    temperature = setting.get("temperature", 1.0)

    def call() -> object:
        if temperature == 0.0:
            return logits.argmax(-1)  # it has no kernel of its own for this
        probs = sampling.softmax(logits, temperature=temperature)
        if "min_p" in setting and len(setting) == 1:
            return sampling.min_p_sampling_from_probs(probs, setting["min_p"])
        if "min_p" in setting:
            probs = sampling.top_p_renorm_probs(sampling.top_k_renorm_probs(probs, setting["top_k"]), setting["top_p"])
            return sampling.min_p_sampling_from_probs(probs, setting["min_p"])
        if "top_k" in setting:
            return sampling.top_k_sampling_from_probs(probs, setting["top_k"])
        if "top_p" in setting:
            return sampling.top_p_sampling_from_probs(probs, setting["top_p"])
        return sampling.sampling_from_probs(probs)

    return call


VERIFY: dict[str, tuple[str, Builder]] = {
    "flashinfer": ("flashinfer-python", flashinfer_verify),
    "vllm": ("vllm", vllm_verify),
    "sglang": ("sgl-kernel", sglang_verify),
}
SAMPLE: dict[str, tuple[str, Builder]] = {"flashinfer": ("flashinfer-python", flashinfer_sample)}


def contenders(
    builders: dict[str, tuple[str, Builder]], inputs: Sequence[tuple[Any, ...]], found: dict[str, str]
) -> list[Contender]:
    """The peers that run here. found: is told of each its version, or why it is not among them."""
    tried = [_tried(name, *builder, inputs, found) for name, builder in builders.items()]
    return [contender for contender in tried if contender is not None]


def _tried(
    name: str, distribution: str, build: Builder, inputs: Sequence[tuple[Any, ...]], found: dict[str, str]
) -> Contender | None:
    try:
        calls = [build(*arguments) for arguments in inputs]
        calls[0]()
        torch.cuda.synchronize()
    except ImportError as error:
        found.setdefault(name, f"absent: {error}")
    except Exception as error:  # another version of it, most likely: a report without it beats none
        found.setdefault(name, f"{installed(distribution)}, did not run: {type(error).__name__}: {error}")
    else:
        found[name] = installed(distribution) or "version unknown"
        return Contender(name, calls)
    return None
