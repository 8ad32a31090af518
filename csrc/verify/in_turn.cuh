#pragma once

#include "verify/chain_cuda.h"
#include "verify/follow.cuh"

// The rows of a chain by one block, which reads a row only if all tokens before it were accepted.
namespace pearl::cuda {

// Whether to go through chains in turn: for rules that stop at the first refusal, where memory is busy even with one block
// for each request, so that rows not read are time won. With fewer, all rows at once keep more of it busy, and the longest
// chain, one row after the other, takes longer than they. On an H200 greedy chains of four took 90 us in turn with 256
// requests for 132 multiprocessors, and 22 us all at once with 32. By arithmetic, not measured: in turn takes no less with
// fewer requests, and all at once less than that with up to two for each multiprocessor.
inline bool goes_in_turn(const VerifyArgs& args, int multiprocessors) {
  return args.rule != Rule::kBlock && args.width > 1 && args.batch >= 2 * int64_t{multiprocessors};
}

// All there is to know of a row. All threads of the block call it, and all get the result.
__device__ __forceinline__ RowResult look_at_row(const Row& row, const RowTask& task, uint32_t slices,
                                                 const RowScratch& scratch) {
  look_at_slices(row, task, {slices, slices, 1}, 0, scratch);
  __syncthreads();
  return finish_row(row, task, scratch, 1);
}

// Looks at target row i, and at the draft's where its statistics are wanted and did not come with it.
template <bool kGreedy>
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
    const RowResult result = look_at_row(row, kGreedy ? kArgmax : task, job.workspace.slices, scratch);
    if (threadIdx.x != 0) continue;
    if (of_draft) {
      keep_draft_stats(job, b, i, result);
    } else {
      judged = judged_row(kGreedy ? kArgmax : task, result);
    }
  }
  __syncthreads();
  if (!by_equality && warp_index() == 0) judge(job, b, chain, i, judged);
  __syncthreads();
}

template <bool kGreedy>
__global__ void __launch_bounds__(kThreads, kGreedy ? kGreedyBlocksHeld : kBlocksHeld) in_turn_kernel(Job job) {
  take_over();
  job.assume_greedy<kGreedy>();
  __shared__ Judged judged[kMostCudaWidth];
  __shared__ Decision decision;
  const int64_t b = blockIdx.x;
  const uint32_t slices = job.workspace.slices;
  prefetch_first(job.target_row(b, 0), {slices, slices, 1}, 0);
  __shared__ Chain chain;
  if (threadIdx.x == 0) chain = job.chain(b);
  __syncthreads();
  if (close_empty(job, b, chain)) return;
  const bool by_equality = job.by_equality(filter_of(job.chains.args.params, b));
  int32_t i = 0;
  do {
    look_at_token<kGreedy>(job, b, chain, i, by_equality, judged[i]);
    if (threadIdx.x == 0) decision = decide_next(job, b, chain, i, judged[i], by_equality);
    __syncthreads();
    ++i;
  } while (i < chain.length && decision.num_accepted == i);
  follow(job, b, chain, judged, i, decision);
}

}  // namespace pearl::cuda
