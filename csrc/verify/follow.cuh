#pragma once

#include "advance/commit.cuh"

// From judged rows to a decision, and on to what it asks for. By whole blocks.
namespace pearl::cuda {

// The decision once `judged`, in shared memory, is known but for what the draft says. By all threads of a block.
__device__ __forceinline__ Decision decide(const Job& job, int64_t b, const Chain& chain, Judged* judged) {
  __shared__ Decision decision;
  const Filter filter = filter_of(job.chains.args.params, b);
  const bool by_equality = job.by_equality(filter);
  if (!by_equality) {
    for (int32_t i = warp_index(); i < chain.length; i += kWarps) judge(job, b, chain, i, judged[i]);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    if (by_equality || job.chains.args.rule == Rule::kToken) {
      for (int32_t i = 0; i < chain.length; ++i) {
        decision = decide_next(job, b, chain, i, judged[i], by_equality);
        if (decision.num_accepted <= i) break;
      }
    } else {
      decision = weigh_block(job, chain, judged);
      if (decision.next == Next::kResidual) {
        decision = decide_block(job, b, chain, judged, decision, [&](int32_t i) {
          return judged[i].weight * fmax(0.0, 1.0 - judged[i].target_prob);  // all of a one-hot draft is on its token
        });
      }
    }
  }
  __syncthreads();
  return decision;
}

// A draw from a whole target row by one block. All threads call it.
__device__ __forceinline__ uint32_t draw_alone(const Job& job, int64_t b, const Chain& chain, int32_t i,
                                               Purpose purpose, const Judged& judged) {
  const RowTask task{filter_of(job.chains.args.params, b), false, true, job.noise(b, chain, purpose, i), kNoId};
  return packed_id(sweep_row(job.target_row(b, i), task, nullptr, judged.threshold, judged.highest).winner);
}

// Does what a decision leaves to this block, or leaves it to the next kernel with the first `count` of `judged`.
__device__ __forceinline__ void follow(const Job& job, int64_t b, const Chain& chain, const Judged* judged,
                                       int32_t count, Decision decision) {
  Decision* const decisions = static_cast<Decision*>(job.workspace.decisions);
  Judged* const kept = static_cast<Judged*>(job.workspace.judged) + b * job.chains.args.width;
  if (job.chains.args.rule != Rule::kGreedy && decision.next == Next::kRedraw) {
    __shared__ Decision left;  // it would take registers beside a draw
    if (threadIdx.x == 0) left = decision;
    const int32_t i = decision.num_accepted;
    const uint32_t drawn = draw_alone(job, b, chain, i, Purpose::kSample, judged[i]);
    decision = left;
    decision.next_token = drawn;
    decision.next = Next::kCommit;
  }
  if (decision.next == Next::kCommit) {
    if (warp_index() == 0) commit(job, b, chain, decision);
    if (threadIdx.x == 0) decisions[b].next = Next::kCommit;
    return;
  }
  if (threadIdx.x == 0) decisions[b] = decision;
  for (int32_t i = threadIdx.x; i < count; i += kThreads) kept[i] = judged[i];
}

// Deals with a request that has no chain to judge; false where it has one. By a block that is alone in that.
__device__ __forceinline__ bool close_empty(const Job& job, int64_t b, const Chain& chain) {
  if (chain.active && chain.length > 0) return false;
  if (warp_index() != 0) return true;
  if (!job.chains.advances) commit(job, b, chain, {kNoToken, 1.0, 0, kOk, Next::kCommit, 0});
  if (lane_index() != 0) return true;
  static_cast<Decision*>(job.workspace.decisions)[b].next = Next::kCommit;
  if (job.chains.advances) {
    job.chains.state.num_emitted[b] = 0;
    job.chains.state.num_accepted[b] = 0;
  }
  return true;
}

// Keeps what was found of row i of the draft. By one thread.
__device__ __forceinline__ void keep_draft_stats(const Job& job, int64_t b, int32_t i, const RowResult& row) {
  const int64_t at = b * job.chains.args.width + i;
  job.workspace.draft_threshold[at] = row.threshold;
  job.workspace.draft_lse[at] = row.status == kOk ? row.lse : NAN;
}

}  // namespace pearl::cuda
