#pragma once

#include "verify/chain_cuda.h"
#include "verify/follow.cuh"

// The rows of a chain by one block, which reads a row only if all tokens before it were accepted.
namespace pearl::cuda {

// Whether to go through chains in turn: for rules that stop at the first refusal, where memory is busy even with one block
// for each request, so that rows not read are time won. With fewer, all rows at once keep more of it busy, and the longest
// chain, one row after the other, takes longer than they. A block has a slice on its way at a time, 12 KiB of 16-bit logits
// or 24 KiB of float32; a multiprocessor's share of the memory's bandwidth, 14 to 25 bytes a nanosecond on what there is
// with HBM, times the microsecond that a slice takes to come and to be looked at, is about 20 KiB. That is reached, of 132
// multiprocessors, by 220 requests, or by 110 of float32; there must be one for each. By arithmetic: not yet measured.
inline bool goes_in_turn(const VerifyArgs& args, int multiprocessors) {
  constexpr int64_t kBytesToKeepBusy = 20 << 10;  // on their way to each multiprocessor
  const int64_t slice_bytes = kSlice * int64_t{args.target.dtype == DType::kFloat32 ? 4 : 2};
  return args.rule != Rule::kBlock && args.width > 1 && args.batch >= multiprocessors &&
         args.batch * slice_bytes >= multiprocessors * kBytesToKeepBusy;
}

// All there is to know of a row. All threads of the block call it, and all get the result.
__device__ __forceinline__ RowResult look_at_row(const Row& row, const RowTask& task, uint32_t slices,
                                                 const RowScratch& scratch) {
  for (uint32_t slice = 0; slice < slices; ++slice) {
    const uint32_t begin = slice * kSlice + warp_index() * kTile;
    if (begin >= row.size) break;
    const RowPart part = look_at_tile(row, task, begin, scratch.peaks);
    if (lane_index() == 0) scratch.parts[begin / kTile] = part;
  }
  __syncthreads();
  return finish_row(row, task, scratch);
}

// Looks at target row i, and at the draft's where its statistics are wanted and did not come with it.
__device__ __forceinline__ void look_at_token(const Job& job, int64_t b, const Chain& chain, int32_t i,
                                              bool by_equality, Judged& judged) {
  __shared__ Row row;  // for all that is done with a row, more than registers hold
  __shared__ RowTask task;
  const VerifyArgs& args = job.chains.args;
  const int64_t token = chain.tokens[i];
  const bool inside = token >= 0 && token < args.target.vocab;
  const bool wants_draft = !by_equality && job.has_draft_probs() && !args.draft.lse && inside;
  const RowScratch scratch = job.workspace.row_scratch(b * args.width);
  for (int side = 0; side < (wants_draft ? 2 : 1); ++side) {
    const bool of_draft = side == 1;
    __syncthreads();  // the row before is done with its task
    if (threadIdx.x == 0) {
      row = of_draft ? job.draft_row(b, i) : job.target_row(b, i);
      task = of_draft ? RowTask{filter_of(args.params, b), false, false, {}, kNoId} : job.task(b, chain, i);
    }
    __syncthreads();
    const RowResult result = look_at_row(row, task, job.workspace.slices, scratch);
    if (threadIdx.x != 0) continue;
    if (of_draft) {
      keep_draft_stats(job, b, i, result);
    } else {
      judged = judged_row(task, result);
    }
  }
  __syncthreads();
  if (!by_equality && warp_index() == 0) judge(job, b, chain, i, judged);
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 2) in_turn_kernel(Job job) {
  take_over();
  __shared__ Judged judged[kMostCudaWidth];
  __shared__ Decision decision;
  const int64_t b = blockIdx.x;
  __shared__ Chain chain;
  if (threadIdx.x == 0) chain = job.chain(b);
  __syncthreads();
  if (close_empty(job, b, chain)) return;
  const bool by_equality = job.by_equality(filter_of(job.chains.args.params, b));
  int32_t i = 0;
  do {
    look_at_token(job, b, chain, i, by_equality, judged[i]);
    if (threadIdx.x == 0) decision = decide_next(job, b, chain, i, judged[i], by_equality);
    __syncthreads();
    ++i;
  } while (i < chain.length && decision.num_accepted == i);
  follow(job, b, chain, judged, i, decision);
}

}  // namespace pearl::cuda
