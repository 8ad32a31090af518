#pragma once

#include <algorithm>

#include "common/cuda/memory.h"
#include "common/cuda/row_task.cuh"

namespace pearl::cuda {

// An operation's memory, shared out. A row is one of (sides, batch, width): the target's, then the draft's where those are
// looked at beside them.
struct Workspace {
  uint32_t slices;            // of a row
  uint32_t slices_per_block;  // more where rows are many; what is found does not depend on it
  uint32_t blocks;            // of a row
  uint32_t* row_counters;
  uint32_t* request_counters;
  RowPart* parts;          // (sides, batch, width, slices, kWarps)
  float* peaks;            // (sides, batch, width, slices, kWarps)
  float* draft_lse;        // (batch, width), of a draft that came without statistics; NaN: a bad row
  float* draft_threshold;  // (batch, width)
  void* judged;            // (batch, width) and (batch,): see verify/judge.cuh
  void* decisions;

  static constexpr int64_t kJudgedBytes = 64, kDecisionBytes = 48;

  // With no memory, to know how much there has to be.
  Workspace(const Memory& memory, int64_t sides, int64_t batch, int64_t width, int64_t vocab) {
    constexpr int64_t kEnoughBlocks = 1024, kMostPerBlock = 8;
    const int64_t tokens = batch * width, rows = sides * tokens;
    slices = static_cast<uint32_t>((vocab + kSlice - 1) / kSlice);
    const int64_t per_block = std::min(kMostPerBlock, std::max(int64_t{1}, rows * slices / kEnoughBlocks));
    slices_per_block = static_cast<uint32_t>(std::min<int64_t>(per_block, slices));
    blocks = (slices + slices_per_block - 1) / slices_per_block;
    char* next = static_cast<char*>(memory.scratch);
    const auto take = [&](int64_t bytes) {
      char* const begin = next;
      next += (bytes + 15) / 16 * 16;
      return static_cast<void*>(begin);
    };
    row_counters = memory.counters;
    request_counters = memory.counters + rows;
    parts = static_cast<RowPart*>(take(rows * slices * kWarps * static_cast<int64_t>(sizeof(RowPart))));
    peaks = static_cast<float*>(take(rows * slices * kWarps * 4));
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
    return {parts + at * slices * kWarps, peaks + at * slices * kWarps};
  }

  // Calls visit(slice) for the slices of the row's block number `block`.
  template <typename Visit>
  __device__ __forceinline__ void for_slices(uint32_t block, const Visit& visit) const {
    const uint32_t end = min(slices, (block + 1) * slices_per_block);
    for (uint32_t slice = block * slices_per_block; slice < end; ++slice) visit(slice);
  }
};

// Lets run(workspace) queue an operation on (batch, width, vocab) logits of one or two sides. Null, or what the CUDA runtime
// says went wrong.
template <typename Run>
const char* with_workspace(const CudaQueue& queue, int64_t sides, int64_t batch, int64_t width, int64_t vocab,
                           const Run& run) {
  const DeviceScope scope(queue.device);
  if (scope.error() != cudaSuccess) return cudaGetErrorString(scope.error());
  const Workspace needed({}, sides, batch, width, vocab);
  const MemoryHold hold(queue, needed.counters_bytes, needed.scratch_bytes);
  if (hold.error()) return hold.error();
  const cudaError_t error = run(Workspace(hold.memory(), sides, batch, width, vocab));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace pearl::cuda
