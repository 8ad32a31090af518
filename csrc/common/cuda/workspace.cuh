#pragma once

#include <algorithm>

#include "common/cuda/memory.h"
#include "common/cuda/row_task.cuh"

namespace pearl::cuda {

// So that the device holds the blocks of all rows at once, where rows are not more than that: a block takes longer to begin
// and to end than to look at a slice. held: blocks, by the whole device
inline Split split_of(uint32_t slices, int64_t rows, int64_t held) {
  const int64_t most = std::min<int64_t>(slices, std::max(int64_t{1}, held / std::max(int64_t{1}, rows)));
  const uint32_t slices_per_block = static_cast<uint32_t>((slices + most - 1) / most);
  return {slices, slices_per_block, (slices + slices_per_block - 1) / slices_per_block};
}

// An operation's memory, shared out. A row is one of (sides, batch, width): the target's, then the draft's where those are
// looked at beside them.
struct Workspace {
  uint32_t slices;    // of a row
  Split of_rows;      // where all rows are looked at
  Split of_requests;  // where one row of each request is
  uint32_t* row_counters;
  uint32_t* request_counters;
  TilePart* parts;         // (sides, batch, width, slices, kWarps)
  WarpBest* bests;         // (sides, batch, width, slices, kWarps), of which (blocks, kWarps) are used
  float* draft_lse;        // (batch, width), of a draft that came without statistics; NaN: a bad row
  float* draft_threshold;  // (batch, width)
  void* judged;            // (batch, width) and (batch,): see verify/judge.cuh
  void* decisions;

  static constexpr int64_t kJudgedBytes = 64, kDecisionBytes = 48;

  // With no memory, to know how much there has to be.
  Workspace(const Memory& memory, int64_t sides, int64_t batch, int64_t width, int64_t vocab, int64_t held)
      : slices(static_cast<uint32_t>((vocab + kSlice - 1) / kSlice)),
        of_rows(split_of(slices, sides * batch * width, held)),
        of_requests(split_of(slices, batch, held)) {
    const int64_t tokens = batch * width, rows = sides * tokens;
    char* next = static_cast<char*>(memory.scratch);
    const auto take = [&](int64_t bytes) {
      char* const begin = next;
      next += (bytes + 15) / 16 * 16;
      return static_cast<void*>(begin);
    };
    row_counters = memory.counters;
    request_counters = memory.counters + rows;
    parts = static_cast<TilePart*>(take(rows * slices * kWarps * static_cast<int64_t>(sizeof(TilePart))));
    bests = static_cast<WarpBest*>(take(rows * slices * kWarps * static_cast<int64_t>(sizeof(WarpBest))));
    draft_lse = static_cast<float*>(take(tokens * 4));
    draft_threshold = static_cast<float*>(take(tokens * 4));
    judged = take(tokens * kJudgedBytes);
    decisions = take(batch * kDecisionBytes);
    scratch_bytes = next - static_cast<char*>(memory.scratch);
    counters_bytes = (rows + batch) * 4;
  }

  int64_t counters_bytes, scratch_bytes;

  // Of row `at` of (sides, batch, width).
  __device__ __forceinline__ RowScratch row_scratch(int64_t at) const {
    return {parts + at * slices * kWarps, bests + at * slices * kWarps};
  }
};

// Lets run(workspace) queue an operation on (batch, width, vocab) logits of one or two sides. Null, or what the CUDA runtime
// says went wrong. Throws std::bad_alloc where there is no memory left for the workspace: then nothing was queued.
//
// blocks_held: of its kernels, by a multiprocessor
template <typename Run>
const char* with_workspace(const CudaQueue& queue, int blocks_held, int64_t sides, int64_t batch, int64_t width,
                           int64_t vocab, const Run& run) {
  const DeviceScope scope(queue.device);
  if (scope.error() != cudaSuccess) return cudaGetErrorString(scope.error());
  const int64_t held = int64_t{blocks_held} * queue.multiprocessors;
  const Workspace needed({}, sides, batch, width, vocab, held);
  const MemoryHold hold(queue, needed.counters_bytes, needed.scratch_bytes);
  if (hold.error()) return hold.error();
  const cudaError_t error = run(Workspace(hold.memory(), sides, batch, width, vocab, held));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace pearl::cuda
