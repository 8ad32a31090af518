"""How the microbenchmarks measure on a GPU: by its events, as calls and as graphs, beside reading and copying."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import triton
import triton.language as tl
from harness import FEWEST_REPEATS, FLOOR, GRAPH, Contender
from torch import Tensor

STREAMED_BYTES = 1 << 30  # read and copied once for the rates
SAMPLE_US = 500.0  # short calls are timed several at a time, about so long together
MOST_CALLS = 16
MOST_US = 1.5e6  # for one contender; slow ones are timed less often
AHEAD_CYCLES = 200_000  # of the device's clock, some 0.1 ms: as long as the host needs to launch a graph, and longer


@triton.jit
def _read(source, sink, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = tl.max(tl.load(source + at, at < size, 0), 0)
    if found == -1:  # never: the load must only look needed
        tl.store(sink, found)


def reading(memory: Tensor) -> Callable[[], object]:
    """Read this memory and do nothing with it. memory: contiguous, a multiple of 4 bytes"""
    words = memory.view(-1).view(torch.int32)
    sink = torch.zeros(1, dtype=torch.int32, device=memory.device)
    block = 4096
    grid = (triton.cdiv(words.numel(), block),)
    return lambda: _read[grid](words, sink, words.numel(), BLOCK=block, num_warps=8)


def read_once(needed_bytes: float, count: int, device: torch.device) -> Contender:
    """Read so many bytes, other ones in each of `count` calls: no kernel that needs them can be faster."""
    size = max(64, int(needed_bytes) // 64 * 64)  # of a multiple of 16 words Triton knows that vectors fit
    memory = torch.zeros(count, size, dtype=torch.uint8, device=device)
    return Contender(FLOOR, [reading(row) for row in memory])


def time_us(contenders: Sequence[Contender], repeats: int, graphs: Sequence[str] = ()) -> dict[str, list[float]]:
    """Microseconds of a call, by turns. Those named in `graphs` are timed a second time, replayed from a graph.

    A call includes what the host does to launch it, where that takes longer than the work. In a graph, all of a
    contender's calls follow each other, and the launch of the graph is not in their time.
    """
    samplers: dict[str, Callable[[], float]] = {}
    for contender in contenders:
        samplers[contender.name] = _called(contender)
        if contender.name in graphs:
            samplers[contender.name + GRAPH] = _replayed(contender)
    times: dict[str, list[float]] = {name: [] for name in samplers}
    wanted = {name: max(FEWEST_REPEATS, min(repeats, int(MOST_US / sample()))) for name, sample in samplers.items()}
    names = list(samplers)
    for turn in range(repeats):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            if turn < wanted[name]:
                times[name].append(samplers[name]())
    return times


def _timed_us(work: Callable[[], object], *, launched_ahead: bool = False) -> float:
    """launched_ahead: the device is kept busy until the host has launched the work, which then begins at once"""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if launched_ahead:
        torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * start.elapsed_time(end)


def _called(contender: Contender) -> Callable[[], float]:
    """Times the next few calls, and says how long one took; warmed up."""
    calls, used = contender.calls, 0

    def several(count: int) -> None:
        nonlocal used
        for _ in range(count):
            calls[used % len(calls)]()
            used += 1

    several(1)
    one = min(_timed_us(lambda: several(1)) for _ in range(3))
    count = max(1, min(MOST_CALLS, int(SAMPLE_US / one)))
    return lambda: _timed_us(lambda: several(count)) / count


def _replayed(contender: Contender) -> Callable[[], float]:
    """Times a graph of all calls, and says how long one of them took."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in contender.calls:
            call()
    for _ in range(2):
        graph.replay()
    return lambda: _timed_us(graph.replay, launched_ahead=True) / len(contender.calls)


def agreed(outputs: dict[str, list[Any]], what: str) -> list[Any]:
    """The first backend's outputs, once all others gave the same: a fast wrong answer is not worth timing.

    As in the tests, one row in 2,000 may lie within rounding of a boundary, and one in any case.
    outputs: by backend, for each input a tuple of (batch,) tensors; the others' may be of the first inputs alone
    """
    (first, wanted), *others = outputs.items()
    for name, got in others:
        differ = [
            torch.stack([x != y for x, y in zip(a, b, strict=True)]).any(0) for a, b in zip(got, wanted, strict=False)
        ]
        differing, rows = sum(int(each.sum()) for each in differ), sum(each.numel() for each in differ)
        if differing > max(1, rows // 2000):
            raise SystemExit(f"{what}: {first} and {name} differ in {differing} of {rows} rows")
    return wanted


def describe(device: torch.device, peers: dict[str, str]) -> dict[str, Any]:
    """Device, versions and the rates of this run, for the report. peers: what was found of each, or why nothing."""
    memory = torch.zeros(2, STREAMED_BYTES, dtype=torch.uint8, device=device)
    read_us, copy_us = (
        sorted(_timed_us(work, launched_ahead=True) for _ in range(10))[5]
        for work in (reading(memory[0]), lambda: memory[1].copy_(memory[0]))
    )
    read, copied = STREAMED_BYTES / read_us / 1e3, 2 * STREAMED_BYTES / copy_us / 1e3
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "read_gb_per_s": read,
        "copy_gb_per_s": copied,
        "rates": f"1 GiB is read with {read:.0f} GB/s and copied with {copied:.0f} GB/s, read and written",
        "peers": peers,
    }


def installed(distribution: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown: no nvidia-smi"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    return (done.stdout.strip() or done.stderr.strip()).splitlines()[0] if done.returncode == 0 else "unknown"
