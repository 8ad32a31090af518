"""The laws see it when the CUDA sources are broken: arithmetic, noise, tiles, and what only schedules show."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.emulation import build, plug
from tests.emulation.test_memory import check_turns
from tests.kernels.advance_checks import check_commits, check_stories, stories_of_every_ending
from tests.kernels.cases import peaked_logits, verify_case
from tests.kernels.test_agreement import assert_agrees
from tests.kernels.test_row_stats import stats_of
from tests.kernels.vocabulary_checks import check_last_token_is_drawn
from tests.mutants import Mutant, memory_of_nonsense

pytestmark = plug.needs_emulation


def agrees(rule: str, batch: int = 600, vocab: int = 24) -> Callable[[], None]:
    """Token for token with the reference, on chains of three."""
    return lambda: assert_agrees(verify_case(batch, 3, vocab, rule=rule, seed=1), "cuda")


def commits() -> None:
    """Many ragged chains beside each other, so that blocks that have nothing to do come late."""
    for _ in range(5):
        check_stories(stories_of_every_ending(corrected=False), next_window=3, backend="cuda")
        check_commits("token", "cuda", one_hot=True)


def filters() -> None:
    """top_k is exact; what top_p keeps is as much as it has to be, and no more."""
    logits = peaked_logits((6, 9000), torch.Generator().manual_seed(0))
    for k in (1, 5, 12):
        stats, kept = stats_of(logits, "cuda", top_k=k), logits.topk(k).values
        assert torch.equal(stats.threshold, kept[:, -1])
        torch.testing.assert_close(stats.lse, kept.logsumexp(-1))
    # Many small ones, each too small to be kept, decide that the second is.
    small = torch.full((1, 9000), -10.7)
    small[0, 0], small[0, 1] = 0.0, -1.2
    assert stats_of(small, "cuda", top_p=0.75).threshold == small[0, 1]
    probs, threshold = logits.double().softmax(-1), stats_of(logits, "cuda", top_p=0.75).threshold[:, None]
    assert (probs.masked_fill(logits < threshold, 0).sum(-1) >= 0.75 - 1e-6).all()
    assert (probs.masked_fill(logits <= threshold, 0).sum(-1) < 0.75 + 1e-6).all()


@dataclass(frozen=True)
class CudaMutant(Mutant):
    multiprocessors: int = plug.MULTIPROCESSORS


MUTANTS = {
    "residual shares the draft's noise": CudaMutant(
        "verify/chain_cuda.cu",
        "const NoiseKey noise = job.noise(b, chain, Purpose::kResidual, i);",
        "const NoiseKey noise = job.noise(b, chain, Purpose::kDraft, i);",
        agrees("token"),
    ),
    "accepts without dividing by the draft": CudaMutant(
        "verify/judge.cuh",
        "job.accept_draw(b, chain, i) * now.draft_prob < now.target_prob",
        "job.accept_draw(b, chain, i) < now.target_prob",
        agrees("token"),
    ),
    "residual of the wrong weight": CudaMutant(
        "verify/judge.cuh",
        "return {now.own, accepted_weight, accepted, decision.status, next, decision.length};",
        "return {now.own, 1.0, accepted, decision.status, next, decision.length};",
        agrees("block"),
    ),
    "last slice skipped": CudaMutant(
        "common/cuda/row_task.cuh",
        "return min(slices, (block + 1) * slices_per_block);",
        "return min(slices > 1 ? slices - 1 : slices, (block + 1) * slices_per_block);",
        lambda: check_last_token_is_drawn(4097, "cuda"),
    ),
    "chain one too short": CudaMutant(
        "verify/judge.cuh", "const int64_t length = args.chain_len[b];",
        "const int64_t length = max(1, args.chain_len[b] - 1);", agrees("greedy"),
    ),
    "idle blocks not waited for": CudaMutant(
        "verify/chain_cuda.cu",
        "looked_at * finishers + (sides * args.width - looked_at) * blocks",
        "looked_at * finishers",
        commits,
        multiprocessors=1 << 20,
    ),
    "chain goes on past a refusal": CudaMutant(
        "verify/in_turn.cuh",
        "} while (i < chain.length && decision.num_accepted == i);",
        "} while (i < chain.length);",
        agrees("token"),
    ),
    "chain ends before its last row": CudaMutant(
        "verify/in_turn.cuh",
        "} while (i < chain.length && decision.num_accepted == i);",
        "} while (i + 1 < chain.length && decision.num_accepted == i);",
        agrees("coupled"),
    ),
    "counters start as anything": CudaMutant(
        "common/cuda/memory.cu",
        "if (error == cudaSuccess) error = cudaMemsetAsync(begin, 0, static_cast<size_t>(counters_bytes), stream);",
        "",
        agrees("token"),
        multiprocessors=1 << 20,
    ),
    "threads of a stream do not take turns": CudaMutant(
        "common/cuda/memory.cu", "    turn_ = std::unique_lock(slot->turn);\n", "", check_turns,
    ),
    "counters not left at zero": CudaMutant(
        "common/cuda/block.cuh",
        "atomicInc(counter, most)",
        "atomicAdd(counter, 1u)",
        commits,
    ),
    "tile of the threshold skipped": CudaMutant(
        "common/cuda/held.cuh",
        "__ldcg(&parts[own / kTile].highest) >= floor",
        "__ldcg(&parts[own / kTile].highest) > floor",
        filters,
    ),
    "rest of the row weighs nothing": CudaMutant(
        "common/cuda/threshold.cuh",
        "const uint64_t target = quota.wanted(total + rest);",
        "const uint64_t target = quota.wanted(total);",
        filters,
    ),
    "words that win are ruled out": CudaMutant(
        "common/cuda/race.cuh", "rest * 0x1p32f", "rest * 0x1p31f", agrees("coupled"),
    ),
    "groups read before they are written": CudaMutant(
        "common/cuda/race.cuh", "  __syncwarp();\n  uint64_t own", "  uint64_t own",
        agrees("coupled", batch=60, vocab=3000),
    ),
    "block read before it is written": CudaMutant(
        "common/cuda/block.cuh",
        "  if (lane_index() == 0) of_warp[warp_index()] = value;\n  __syncthreads();\n  uint64_t most",
        "  if (lane_index() == 0) of_warp[warp_index()] = value;\n  uint64_t most",
        agrees("token"),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _memory_holds_nonsense() -> Iterator[None]:
    with memory_of_nonsense():
        yield


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_kernel_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(build.ROOT / "csrc", csrc)
    mutant.break_in(csrc)
    plug.plug_in(monkeypatch, build.build_extension(csrc), mutant.multiprocessors)
    with pytest.raises((AssertionError, RuntimeError)):
        mutant.check()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_same_check_passes_for_the_kernel_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plug.plug_in(monkeypatch, plug.emulated_extension(), MUTANTS[name].multiprocessors)
    MUTANTS[name].check()
