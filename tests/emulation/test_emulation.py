"""The emulation does what CUDA does where that is defined, and shows what a GPU may do where it is not."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.emulation import build, plug

SEEDS = range(20)

pytestmark = plug.needs_emulation


class Library:
    """Calls run_<name>; arrays are passed by address. An error is raised."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))

    def run(self, name: str, *arguments: Any) -> None:
        function = self.functions[f"run_{name}"]
        function.restype = ctypes.c_char_p
        message = function(*(address(a) if isinstance(a, np.ndarray) else a for a in arguments)).decode()
        if message != "no error":
            raise RuntimeError(message)


def address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(scope="session")
def kernels() -> Library:
    return Library(build.build_library([build.HERE / "kernels.cu"]))


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    number: int = request.param
    monkeypatch.setenv("PEARL_EMULATION_SEED", str(number))
    return number


def values(count: int, seed: int) -> NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 1000, count, dtype=np.uint32)


@pytest.mark.parametrize("threads", [32, 64, 512, 1024])
def test_blocks_sum_by_shuffles_and_shared_memory(kernels: Library, seed: int, threads: int) -> None:
    of_threads, sums = values(7 * threads, seed), np.zeros(7, np.uint32)
    kernels.run("sum_blocks", 7, threads, of_threads, sums)
    np.testing.assert_array_equal(sums, of_threads.reshape(7, threads).sum(1))


@pytest.mark.parametrize("blocks", [1, 2, 50])
def test_the_last_block_sees_what_all_wrote(kernels: Library, seed: int, blocks: int) -> None:
    of_threads = values(blocks * 64, seed)
    sums, counter, total = np.zeros(blocks, np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    for _ in range(3):  # the counter has to be left at zero
        total[:] = 0
        kernels.run("sum_grid", blocks, 64, of_threads, sums, counter, total)
        assert total[0] == of_threads.sum()
        assert counter[0] == 0


def shifted(kernels: Library, *, with_barrier: bool) -> NDArray[np.uint32]:
    of_threads, out = np.arange(1, 65, dtype=np.uint32), np.zeros(64, np.uint32)
    kernels.run("shift", with_barrier, 64, of_threads, out)
    return out


def test_with_a_barrier_every_schedule_gives_the_same(kernels: Library, seed: int) -> None:
    np.testing.assert_array_equal(shifted(kernels, with_barrier=True), np.roll(np.arange(1, 65), -1))


def test_a_missing_barrier_shows_in_every_schedule_and_differently(
    kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = set()
    for seed in SEEDS:
        monkeypatch.setenv("PEARL_EMULATION_SEED", str(seed))
        out = shifted(kernels, with_barrier=False)
        assert (out != np.roll(np.arange(1, 65), -1)).any()
        results.add(out.tobytes())
    assert len(results) > len(SEEDS) // 2


def test_shared_memory_starts_as_garbage(kernels: Library) -> None:
    seen = np.zeros(64, np.uint32)
    kernels.run("uninitialised", 64, seen)
    assert len(np.unique(seen)) > 32


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("half_of_the_block_leaves", r"^block 5 of 9: .*; 32 exited .*; 32 in __syncthreads at .*kernels\.cu:\d+"),
        ("lanes_at_two_operations", r"^block \d of 9: .*; 16 in __any_sync at .*; 48 in __ballot_sync at "),
        ("a_lane_has_left", r"^block \d of 9: .*; 33 exited .*thread 7.*; 31 in __shfl_xor_sync at "),
    ],
)
def test_what_can_not_end_is_reported(kernels: Library, seed: int, kernel: str, message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        kernels.run(kernel)
    assert re.search(message, str(caught.value)), caught.value
    # and the next launch is as good as the first
    np.testing.assert_array_equal(shifted(kernels, with_barrier=True), np.roll(np.arange(1, 65), -1))


def test_only_what_a_gpu_takes_is_launched(kernels: Library) -> None:
    nothing = np.zeros(1, np.uint32)
    for blocks, threads in ((0, 32), (1, 0), (1, 48), (1, 2048)):
        with pytest.raises(RuntimeError, match=r"^invalid configuration argument$"):
            kernels.run("sum_blocks", blocks, threads, nothing, nothing)


def test_lanes_get_what_cuda_says(kernels: Library, seed: int) -> None:
    lane = np.arange(32)
    wanted = [
        np.full(32, 3),
        np.where(lane < 2, lane, lane - 2),
        lane ^ 5,
        2 * (lane ^ 1) + 1,
        np.full(32, np.int64(0xAAAAAAAA)),
        np.full(32, 1),
        np.full(32, 0),
        np.full(32, 3),
        np.full(32, 34),
    ]
    out = np.zeros((len(wanted), 32), np.int32)
    kernels.run("warp_operations", out)
    np.testing.assert_array_equal(out.view(np.uint32), np.stack(wanted).astype(np.uint32))


def test_half_types_widen_exactly(kernels: Library) -> None:
    widened = np.zeros((2, 65536), np.float32)
    kernels.functions.widen(address(widened[0]), address(widened[1]))
    bits = torch.from_numpy(np.arange(65536).astype(np.uint16).view(np.int16))
    for got, dtype in zip(widened, (torch.bfloat16, torch.float16), strict=True):
        np.testing.assert_array_equal(got, bits.view(dtype).float().numpy())
