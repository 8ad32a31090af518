"""Time `sample` beside its reference, transformers' own sampling, and reading the logits once.

    python bench/bench_sample.py [--device cuda] [--json FILE] [--plot FILE.png]

A case is BATCHxVOCABxDTYPE. transformers samples as its `generate` does: to float32, warpers, softmax, multinomial.
On a GPU the measurement is that of bench_verify.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import (
    DTYPES,
    FLOOR,
    JUDGED,
    REFERENCE,
    TRANSFORMERS,
    Contender,
    Row,
    arguments,
    compare,
    is_large,
    native_backends,
    num_inputs,
    peaked_logits,
    read_once,
    time_us,
)
from report import measure
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import pearl_kernels
from pearl_kernels import SampleOutput, SamplingTensors

CASES = {
    "cpu": "1x128256xbfloat16,32x128256xbfloat16,256x128256xbfloat16,1x151936xbfloat16,1x49152xbfloat16",
    "cuda": "1x128256xbfloat16,32x128256xbfloat16,256x128256xbfloat16,32x32000xbfloat16,32x151936xbfloat16,"
    "1x49152xfloat32",
}
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
    no_tokens: Any = torch.zeros(len(logits), 1, dtype=torch.int64, device=logits.device)
    scores: Any = logits
    return lambda: torch.multinomial(warpers(no_tokens, scores.float()).softmax(-1), 1)


def sampling(logits: Tensor, params: SamplingTensors, positions: Tensor, backend: str) -> Callable[[], SampleOutput]:
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
    count = num_inputs(shape[0] * shape[1] * DTYPES[dtype].itemsize, "cpu")
    inputs = [peaked_logits(*shape, generator=generator).to(DTYPES[dtype]) for _ in range(count)]
    positions = torch.arange(shape[0])
    large = is_large(case, shape[0] * shape[1], "cpu")
    judged = min(JUDGED, shape[0]) if large else shape[0]
    rows = []
    for name, setting in SETTINGS.items():
        params, judged_params = (
            SamplingTensors.make(rows_of, **setting, seed=range(rows_of))  # type: ignore[arg-type]
            for rows_of in (shape[0], judged)
        )
        contenders = [Contender(FLOOR, [read_once([logits]) for logits in inputs])]
        for backend in native_backends("cpu"):
            for logits in inputs:
                check(logits[:judged], judged_params, positions[:judged], backend)
            contenders.append(Contender(backend, [sampling(x, params, positions, backend) for x in inputs]))
        if not large:
            contenders.append(Contender(REFERENCE, [sampling(x, params, positions, REFERENCE) for x in inputs]))
            contenders.append(Contender(TRANSFORMERS, [transformers_sampling(x, setting) for x in inputs]))
        rows += compare(case, name, time_us(contenders, repeats), inputs[0].nbytes)
    return rows


def bench_case_on_gpu(case: str, repeats: int, peers_found: dict[str, str]) -> list[Row]:
    import gpu
    import peers

    batch, vocab, dtype = case.split("x")
    shape = int(batch), int(vocab)
    generator = torch.Generator("cuda").manual_seed(0)
    count = num_inputs(shape[0] * shape[1] * DTYPES[dtype].itemsize, "cuda")
    inputs = peaked_logits(count, *shape, generator=generator).to(DTYPES[dtype]).unbind()
    positions = torch.arange(shape[0], device="cuda")
    backends = native_backends("cuda")
    rows = []
    for name, setting in SETTINGS.items():
        params = SamplingTensors.make(shape[0], **setting, seed=range(shape[0]), device="cuda")  # type: ignore[arg-type]
        calls = {each: [sampling(x, params, positions, each) for x in inputs] for each in (*backends, REFERENCE)}
        answers = {each: [call() for call in calls[each]] for each in backends}
        answers[REFERENCE] = [call() for call in calls[REFERENCE][:JUDGED]]
        gpu.agreed({each: [(out.tokens, out.status) for out in outs] for each, outs in answers.items()}, name)
        contenders = [gpu.read_once(inputs[0].nbytes, count, generator.device)]
        contenders += [Contender(backend, calls[backend]) for backend in calls]
        contenders.append(Contender(TRANSFORMERS, [transformers_sampling(x, setting) for x in inputs]))
        contenders += peers.contenders(peers.SAMPLE, [(x, setting) for x in inputs], peers_found)
        rows += compare(case, name, gpu.time_us(contenders, repeats, graphs=(FLOOR, *backends)), inputs[0].nbytes)
    return rows


def main() -> None:
    parsed = arguments(__doc__ or "", CASES)
    cases = parsed.cases.split(",")
    if parsed.device == "cpu":
        measure("sample", [partial(bench_case, case, parsed.repeats) for case in cases], parsed)
        return
    import gpu

    found: dict[str, str] = {}
    works = [partial(bench_case_on_gpu, case, parsed.repeats, found) for case in cases]
    measure("sample", works, parsed, gpu.describe(torch.device("cuda"), found))


if __name__ == "__main__":
    main()
