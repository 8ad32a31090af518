#pragma once

#include "verify/judge.cuh"

// What a decision does to its sequence.
namespace pearl::cuda {

enum Finished : int32_t { kRunning = 0, kStop = 1, kLength = 2, kError = 3 };

__device__ __forceinline__ bool is_eos(const AdvanceArgs& state, int64_t b, int64_t token) {
  const int64_t* ids = state.eos_ids + b * state.eos_count;
  for (int64_t i = 0; i < state.eos_count; ++i) {
    if (ids[i] >= 0 && ids[i] == token) return true;
  }
  return false;
}

// Commits up to `end`, or less where an end-of-sequence token or max_len comes first. By one thread.
__device__ __forceinline__ void commit_until(const AdvanceArgs& state, int64_t b, int64_t end) {
  const int64_t* tokens = state.tokens + b * state.tokens_stride;
  const int64_t begin = state.committed[b], limit = state.max_len[b];
  const bool reaches_limit = end >= limit;
  if (reaches_limit) end = max(limit, begin);

  int32_t finished = reaches_limit ? kLength : kRunning;
  for (int64_t i = begin; i < end; ++i) {
    if (!is_eos(state, b, tokens[i])) continue;
    end = i + 1;
    finished = kStop;
    break;
  }
  state.committed[b] = end;
  state.finished[b] = finished;
  state.num_emitted[b] = static_cast<int32_t>(end - begin);
}

__device__ __forceinline__ void advance_sequence(const AdvanceArgs& state, int64_t b, const Chain& chain,
                                                 const Decision& decision) {
  state.state_status[b] |= decision.status;
  state.window[b] = 0;
  state.num_emitted[b] = 0;
  state.num_accepted[b] = 0;
  if (decision.status & (kTargetInvalid | kEmptyDistribution)) {
    state.finished[b] = kError;
    return;
  }
  const bool all_accepted = decision.num_accepted == chain.length;
  const int64_t committed = chain.position;
  if (!all_accepted) state.tokens[b * state.tokens_stride + committed + decision.num_accepted] = decision.next_token;
  commit_until(state, b, committed + decision.num_accepted + (all_accepted ? 0 : 1));
  if (all_accepted && state.finished[b] == kRunning) state.window[b] = state.next_window;
  state.num_accepted[b] = min(decision.num_accepted, state.num_emitted[b]);
}

// Hands out a whole decision. By one thread.
__device__ __forceinline__ void commit(const Job& job, int64_t b, const Chain& chain, const Decision& decision) {
  if (job.chains.advances) {
    advance_sequence(job.chains.state, b, chain, decision);
    return;
  }
  job.chains.args.num_accepted[b] = decision.num_accepted;
  job.chains.args.next_token[b] = decision.next_token;
  job.chains.args.status[b] = decision.status;
}

}  // namespace pearl::cuda
