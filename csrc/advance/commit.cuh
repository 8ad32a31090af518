#pragma once

#include "verify/judge.cuh"

// What a decision does to its sequence.
namespace pearl::cuda {

enum Finished : int32_t { kRunning = 0, kStop = 1, kLength = 2, kError = 3 };

__device__ __forceinline__ bool is_eos(const AdvanceArgs& state, int64_t b, int64_t token) {
  const int64_t* ids = state.eos_ids + b * state.eos_count;
  bool found = false;
  for (int64_t i = 0; i < state.eos_count; ++i) found |= ids[i] >= 0 && ids[i] == token;
  return found;
}

// Commits up to `end`, or less where an end-of-sequence token or max_len comes first; returns how many are new. token(at):
// of the sequence. By a whole warp, which looks at 32 tokens at a time; all lanes get the result.
template <typename Token>
__device__ __forceinline__ int32_t commit_until(const AdvanceArgs& state, int64_t b, int64_t begin, int64_t end,
                                                const Token& token) {
  const int64_t limit = state.max_len[b];
  int32_t finished = end >= limit ? kLength : kRunning;
  end = min(end, max(limit, begin));
  for (int64_t first = begin; first < end; first += kWarp) {
    const int64_t at = first + lane_index();
    const unsigned ends = __ballot_sync(kAllLanes, at < end && is_eos(state, b, token(at)));
    if (ends == 0) continue;
    end = first + __ffs(static_cast<int>(ends));
    finished = kStop;
  }
  if (lane_index() == 0) {
    state.committed[b] = end;
    state.finished[b] = finished;
    state.num_emitted[b] = static_cast<int32_t>(end - begin);
    state.window[b] = 0;
  }
  return static_cast<int32_t>(end - begin);
}

__device__ __forceinline__ void advance_sequence(const AdvanceArgs& state, int64_t b, const Chain& chain,
                                                 const Decision& decision) {
  const bool leads = lane_index() == 0;
  if (leads) state.state_status[b] |= decision.status;
  if (decision.status & (kTargetInvalid | kEmptyDistribution)) {
    if (!leads) return;
    state.window[b] = 0;
    state.num_emitted[b] = 0;
    state.num_accepted[b] = 0;
    state.finished[b] = kError;
    return;
  }
  const bool all_accepted = decision.num_accepted == chain.length;
  int64_t* const tokens = state.tokens + b * state.tokens_stride;
  const int64_t corrected = chain.position + decision.num_accepted;
  if (!all_accepted && leads) tokens[corrected] = decision.next_token;
  const int64_t end = all_accepted ? corrected : corrected + 1;
  const int32_t emitted = commit_until(state, b, chain.position, end,
                                       [&](int64_t at) { return at == corrected ? decision.next_token : tokens[at]; });
  if (!leads) return;
  const bool goes_on = all_accepted && state.finished[b] == kRunning;
  if (goes_on) state.window[b] = state.next_window;
  state.num_accepted[b] = min(decision.num_accepted, emitted);
}

// Hands out a whole decision. By a whole warp, all lanes of which have it.
__device__ __forceinline__ void commit(const Job& job, int64_t b, const Chain& chain, const Decision& decision) {
  if (job.chains.advances) {
    advance_sequence(job.chains.state, b, chain, decision);
    return;
  }
  if (lane_index() != 0) return;
  job.chains.args.num_accepted[b] = decision.num_accepted;
  job.chains.args.next_token[b] = decision.next_token;
  job.chains.args.status[b] = decision.status;
}

}  // namespace pearl::cuda
