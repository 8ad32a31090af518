"""How the microbenchmarks measure: contenders in turn on rotating inputs, medians, and ratios within one run.

What is particular to GPUs is in gpu.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pearl_kernels

FLOOR, REFERENCE, TRANSFORMERS = "read once", "reference", "transformers"
GRAPH = ", graph"  # ends the name of a contender that is replayed rather than called
BACKENDS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # to put beside the reference
ROTATED_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # several times the cache of a core, or of a GPU
MOST_INPUTS_BYTES = 256 << 20  # on a CPU: one input of more leaves every cache by itself
FEWEST_INPUTS = {"cpu": 4, "cuda": 2}
LARGE = {
    "cpu": 24 << 20,
    "cuda": 32 << 20,
}  # logits: above that the reference and whatever goes row by row are left out
JUDGED = 8  # requests on a CPU, inputs on a GPU, that the reference answers of a large case before anything is timed
MOST_S = 3.0  # on a CPU, for one contender of a case; slow ones are timed less often
FEWEST_REPEATS = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Contender:
    """Something to time. calls: the same work on each of the rotating inputs."""

    name: str
    calls: Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One line of the table and of the JSON file."""

    case: str
    work: str
    contender: str
    p20_us: float
    p50_us: float
    p80_us: float
    needed_bytes: float  # logits that the work has to read, mean over the inputs
    gb_per_s: float
    times_read_floor: float | None
    faster_than_transformers: float | None
    faster_than_reference: float | None


def num_inputs(bytes_each: int, device: str) -> int:
    """How many inputs to rotate, so that each has left the second-level cache before it comes round again."""
    if device == "cpu" and bytes_each > MOST_INPUTS_BYTES:
        return 1
    return max(FEWEST_INPUTS[device], -(-ROTATED_BYTES[device] // bytes_each))


def is_large(case: str, logits: int, device: str) -> bool:
    """Whether the slow contenders are left out of a case, which is then said."""
    large = logits > LARGE[device]
    if large:
        print(f"{case}: without {REFERENCE} and {TRANSFORMERS}, which are not timed above {LARGE[device]:,} logits")
    return large


def time_us(contenders: Sequence[Contender], repeats: int, warmup: int = 3) -> dict[str, list[float]]:
    """Microseconds of each call. The contenders take turns, so that a slow moment of the machine is shared out, each at
    another one of the inputs, so that none finds in a cache what the one before has just read.
    """
    places = {contender.name: place / len(contenders) for place, contender in enumerate(contenders)}
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    spent_s = dict.fromkeys(times, 0.0)
    for turn in range(-warmup, repeats):
        first = turn % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            own = times[contender.name]
            if spent_s[contender.name] > MOST_S and (turn < 0 or len(own) >= FEWEST_REPEATS):
                continue
            calls = contender.calls
            call = calls[(turn + int(places[contender.name] * len(calls))) % len(calls)]
            start = time.perf_counter_ns()
            call()
            elapsed = time.perf_counter_ns() - start
            spent_s[contender.name] += elapsed / 1e9
            if turn >= 0:
                own.append(elapsed / 1e3)
    return times


def compare(case: str, work: str, times_us: dict[str, list[float]], needed_bytes: float) -> list[Row]:
    """A row for each contender, from the microseconds of its calls in this run."""
    quantiles = {
        name: torch.tensor(values).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist() for name, values in times_us.items()
    }
    median: dict[str, float] = {name: p50 for name, (_, p50, _) in quantiles.items()}

    def times(name: str, other: str, *, slower: bool = False) -> float | None:
        if name.endswith(GRAPH):
            other += GRAPH
        if other not in median or name == other or name.startswith(FLOOR):
            return None
        ratio = median[other] / median[name]
        return 1 / ratio if slower else ratio

    return [
        Row(
            case=case,
            work=work,
            contender=name,
            p20_us=p20,
            p50_us=p50,
            p80_us=p80,
            needed_bytes=needed_bytes,
            gb_per_s=needed_bytes / p50 / 1e3,
            times_read_floor=times(name, FLOOR, slower=True),
            faster_than_transformers=times(name, TRANSFORMERS),
            faster_than_reference=times(name, REFERENCE),
        )
        for name, (p20, p50, p80) in quantiles.items()
    ]


def read_once(rows: Sequence[Tensor]) -> Callable[[], object]:
    """Read these rows of logits and do nothing with them: no kernel can be faster."""
    try:
        from pearl_kernels import _C
    except ImportError:
        return lambda: [row.view(torch.int16).sum() for row in rows]
    return lambda: [_C.read_bytes(row.data_ptr(), row.nbytes) for row in rows]


def peaked_logits(*shape: int, generator: torch.Generator) -> Tensor:
    """Logits as peaked as a language model gives: a Zipf law over a random order of the vocabulary."""
    on = {"generator": generator, "device": generator.device}
    ranks = torch.rand(shape, **on).argsort(-1)
    return 12.0 - 1.6 * (ranks + 1.0).log() + 0.2 * torch.randn(shape, **on)


def native_backends(device: str) -> list[str]:
    """The backends to put beside the reference, if there are any on this machine."""
    states = pearl_kernels.backends()
    return [name for name in BACKENDS[device] if states[name].available]


def arguments(doc: str, default_cases: dict[str, str]) -> argparse.Namespace:
    """default_cases: by device"""
    return parse(parser_of(doc, default_cases), default_cases)


def parser_of(doc: str, default_cases: dict[str, str]) -> argparse.ArgumentParser:
    """Of the arguments that all microbenchmarks take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", choices=list(default_cases), default="cpu")
    parser.add_argument("--cases", help=f"sizes and dtypes (default: {default_cases})")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--plot", type=Path, help="draw time against batch and vocabulary there; needs matplotlib")
    parser.add_argument("--threads", type=int, default=1, help="torch's, and the cpu backend's (default: 1)")
    parser.add_argument("--json", type=Path, help="write versions and rows there")
    return parser


def parse(parser: argparse.ArgumentParser, default_cases: dict[str, str]) -> argparse.Namespace:
    """What was given, with torch set to it."""
    parsed = parser.parse_args()
    parsed.cases = parsed.cases or default_cases[parsed.device]
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if parsed.plot and find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is not installed")
    torch.set_num_threads(parsed.threads)
    return parsed


def describe_machine() -> dict[str, Any]:
    """Processor and versions, for the file of results."""
    state = pearl_kernels.backends()["cpu"]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "pearl_kernels": version("pearl-kernels"),
        "cpu_backend": state.reason,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
