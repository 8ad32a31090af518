"""Time `window_linear` beside torch's own products and reading the weights once.

    python bench/bench_linear.py [--threads N] [--json FILE]

A case is OUTPUTSxINPUTSxDTYPE, the type the weights are stored in. "transformers" is what its models compute in
float32: torch's product with weights widened beforehand, so twice the bytes for a 16-bit type. "torch, 16 bit" is
torch's product where the rows are rounded to the weights' type as well. "cpu" has its weights packed, as decoders pack
them, "cpu, not packed" has them as torch does. Beside int8, as drafts are stored, stands "cpu, bfloat16": ours before
the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
from report import measure
from torch import Tensor
from torch.nn.functional import linear

import pearl_kernels
from pearl_kernels import Linear

CASES = {
    "cpu": "1536x576xbfloat16,576x1536xbfloat16,49152x576xbfloat16,4096x4096xbfloat16,4096x4096xfloat32,"
    "1536x576xint8,49152x576xint8"
}
WIDTHS = (1, 2, 5, 9, 17)


def ours(x: Tensor, layer: Linear, backend: str) -> Callable[[], Tensor]:
    return lambda: pearl_kernels.window_linear(x, *layer, backend=backend)


def torchs(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: linear(x, weight)


def stored_as(weight: Tensor, dtype: torch.dtype) -> Linear:
    if dtype is not torch.int8:
        return Linear(weight.to(dtype))
    rounded, scale = pearl_kernels.quantized(weight)
    return Linear(rounded, None, scale)


def bench_case(case: str, repeats: int) -> list[Row]:
    outputs, inputs, name = case.split("x")
    dtype = torch.int8 if name == "int8" else DTYPES[name]
    generator = torch.Generator().manual_seed(0)
    count = num_inputs(int(outputs) * int(inputs) * dtype.itemsize, "cpu")
    given = [torch.randn(int(outputs), int(inputs), generator=generator) for _ in range(count)]
    stored = [stored_as(weight, dtype) for weight in given]
    together = [layer.packed() for layer in stored]
    wide = [layer.widened() for layer in stored]
    rows = []
    for width in WIDTHS:
        x = torch.randn(width, int(inputs), generator=generator)
        contenders = [
            Contender("cpu", [ours(x, layer, "cpu") for layer in together]),
            Contender("cpu, not packed", [ours(x, layer, "cpu") for layer in stored]),
            Contender(TRANSFORMERS, [torchs(x, weight) for weight in wide]),
            Contender(REFERENCE, [ours(x, layer, REFERENCE) for layer in stored]),
        ]
        for contender in contenders:
            torch.testing.assert_close(contender.calls[0](), x @ wide[0].T, rtol=1e-4, atol=1e-3, msg=contender.name)
        if dtype is torch.int8:
            halves = [stored_as(weight, torch.bfloat16).packed() for weight in given]
            contenders.append(Contender("cpu, bfloat16", [ours(x, layer, "cpu") for layer in halves]))
        elif dtype is not torch.float32:
            rounded = x.to(dtype)
            contenders.append(Contender("torch, 16 bit", [torchs(rounded, layer.weight) for layer in stored]))
        floor = Contender(FLOOR, [read_once([layer.weight]) for layer in stored])
        rows += compare(case, f"width {width}", time_us([floor, *contenders], repeats), stored[0].weight.nbytes)
    return rows


def main() -> None:
    parsed = arguments(__doc__ or "", CASES)
    measure("window_linear", [partial(bench_case, case, parsed.repeats) for case in parsed.cases.split(",")], parsed)


if __name__ == "__main__":
    main()
