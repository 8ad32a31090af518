"""Time `sample` beside its reference, transformers' own sampling, and reading the logits once.

    python bench/bench_sample.py [--json FILE]

A case is BATCHxVOCABxDTYPE. transformers samples as its `generate` does: to float32, warpers, softmax, multinomial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import (
    DTYPES,
    FLOOR,
    REFERENCE,
    TRANSFORMERS,
    Contender,
    Row,
    arguments,
    compare,
    native_backend,
    num_inputs,
    peaked_logits,
    read_once,
    report,
)
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import pearl_kernels
from pearl_kernels import SamplingTensors

CASES = "1x49152xfloat32,8x128256xbfloat16"
SETTINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.95},
    "min_p": {"min_p": 0.05},
    "all": {"temperature": 0.7, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
}

WARPERS: dict[str, Any] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}


def transformers_sampling(logits: Tensor, setting: dict[str, float]) -> Callable[[], object]:
    if setting.get("temperature") == 0.0:
        return lambda: logits.float().argmax(-1)
    warpers = LogitsProcessorList()
    for name, warper in WARPERS.items():
        if name in setting:
            warpers.append(warper(setting[name]))
    no_tokens: Any = torch.zeros(len(logits), 1, dtype=torch.int64)
    scores: Any = logits
    return lambda: torch.multinomial(warpers(no_tokens, scores.float()).softmax(-1), 1)


def sampling(logits: Tensor, params: SamplingTensors, positions: Tensor, backend: str) -> Callable[[], object]:
    return lambda: pearl_kernels.sample(logits, params, positions, backend=backend)


def check(logits: Tensor, params: SamplingTensors, positions: Tensor, backend: str) -> None:
    """A fast wrong answer is not worth timing."""
    got, wanted = (pearl_kernels.sample(logits, params, positions, backend=name) for name in (backend, REFERENCE))
    if not torch.equal(got.tokens, wanted.tokens):
        raise SystemExit(f"{backend} drew {got.tokens.tolist()}, the reference {wanted.tokens.tolist()}")
    # Where the nucleus' mass comes within rounding of top_p it may end a token earlier or later.
    torch.testing.assert_close(got.stats.lse, wanted.stats.lse, atol=1e-3, rtol=0)


def bench_case(case: str, repeats: int) -> list[Row]:
    batch, vocab, dtype = case.split("x")
    shape = int(batch), int(vocab)
    generator = torch.Generator().manual_seed(0)
    count = num_inputs(shape[0] * shape[1] * DTYPES[dtype].itemsize)
    inputs = [peaked_logits(*shape, generator=generator).to(DTYPES[dtype]) for _ in range(count)]
    positions = torch.arange(shape[0])
    rows = []
    for name, setting in SETTINGS.items():
        params = SamplingTensors.make(shape[0], **setting, seed=range(shape[0]))  # type: ignore[arg-type]
        contenders = [Contender(FLOOR, [read_once([logits]) for logits in inputs])]
        if (backend := native_backend()) is not None:
            for logits in inputs:
                check(logits, params, positions, backend)
            contenders.append(Contender(backend, [sampling(x, params, positions, backend) for x in inputs]))
        contenders += [
            Contender(REFERENCE, [sampling(logits, params, positions, REFERENCE) for logits in inputs]),
            Contender(TRANSFORMERS, [transformers_sampling(logits, setting) for logits in inputs]),
        ]
        rows += compare(case, name, contenders, inputs[0].nbytes, repeats)
    return rows


def main() -> None:
    parsed = arguments(__doc__ or "", CASES)
    report("sample", [row for case in parsed.cases.split(",") for row in bench_case(case, parsed.repeats)], parsed)


if __name__ == "__main__":
    main()
