"""Time `window_linear` beside torch's own products and reading the weights once.

    python bench/bench_linear.py [--threads N] [--json FILE]

A case is OUTPUTSxINPUTSxDTYPE, the type the weights are stored in. "transformers" is what its models compute in
float32: torch's product with weights widened beforehand, so twice the bytes for a 16-bit type. "torch, 16 bit" is
torch's product where the rows are rounded to the weights' type as well.
"""

from __future__ import annotations

from collections.abc import Callable

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
    num_inputs,
    read_once,
    time_us,
)
from report import report
from torch import Tensor
from torch.nn.functional import linear

import pearl_kernels

CASES = {"cpu": "1536x576xbfloat16,576x1536xbfloat16,49152x576xbfloat16,4096x4096xbfloat16,4096x4096xfloat32"}
WIDTHS = (1, 2, 5, 9, 17)


def ours(x: Tensor, weight: Tensor, backend: str) -> Callable[[], Tensor]:
    return lambda: pearl_kernels.window_linear(x, weight, backend=backend)


def torchs(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: linear(x, weight)


def bench_case(case: str, repeats: int) -> list[Row]:
    outputs, inputs, dtype = case.split("x")
    generator = torch.Generator().manual_seed(0)
    count = num_inputs(int(outputs) * int(inputs) * DTYPES[dtype].itemsize, "cpu")
    wide = [torch.randn(int(outputs), int(inputs), generator=generator) for _ in range(count)]
    stored = [weight.to(DTYPES[dtype]) for weight in wide]
    wide = [weight.float() for weight in stored]
    rows = []
    for width in WIDTHS:
        x = torch.randn(width, int(inputs), generator=generator)
        contenders = [
            Contender("cpu", [ours(x, weight, "cpu") for weight in stored]),
            Contender(TRANSFORMERS, [torchs(x, weight) for weight in wide]),
            Contender(REFERENCE, [ours(x, weight, REFERENCE) for weight in stored]),
        ]
        for contender in contenders:
            torch.testing.assert_close(contender.calls[0](), x @ wide[0].T, rtol=1e-4, atol=1e-3, msg=contender.name)
        if stored[0].dtype is not torch.float32:
            rounded = x.to(stored[0].dtype)
            contenders.append(Contender("torch, 16 bit", [torchs(rounded, weight) for weight in stored]))
        floor = Contender(FLOOR, [read_once([weight]) for weight in stored])
        rows += compare(case, f"width {width}", time_us([floor, *contenders], repeats), stored[0].nbytes)
    return rows


def main() -> None:
    parsed = arguments(__doc__ or "", CASES)
    rows = [row for case in parsed.cases.split(",") for row in bench_case(case, parsed.repeats)]
    report("window_linear", rows, parsed)


if __name__ == "__main__":
    main()
