#pragma once

#include "common/cuda/row_result.cuh"
#include "common/cuda/workspace.cuh"
#include "verify/chain_job.h"

// What is known of one chain's rows, and what follows from it.
namespace pearl::cuda {

constexpr int32_t kNoToken = -1;

// One request's drafted tokens; row i judges the token at absolute position `position + i`.
struct Chain {
  const int64_t* tokens;
  int32_t length;
  int64_t position;
  bool active;  // false: the sequence has ended
};

struct Job {
  ChainJob chains;
  Workspace workspace;

  // Tells the compiler that a kernel is for rule greedy alone: what other rules take is then not in it.
  template <bool kGreedy>
  __device__ __forceinline__ void assume_greedy() {
    if (kGreedy) chains.args.rule = Rule::kGreedy;
  }

  __device__ Chain chain(int64_t b) const {
    const VerifyArgs& args = chains.args;
    const int64_t width = args.width;
    if (!chains.advances) {
      const int64_t length = args.chain_len[b];
      return {args.draft_tokens + b * width, static_cast<int32_t>(max(int64_t{0}, min(length, width))),
              args.positions[b], true};
    }
    const AdvanceArgs& state = chains.state;
    const int64_t committed = state.committed[b], length = int64_t{1} + state.window[b];
    return {state.tokens + b * state.tokens_stride + committed,
            static_cast<int32_t>(max(int64_t{0}, min(length, width))), committed, state.finished[b] == 0};
  }

  __device__ bool has_draft_probs() const { return chains.args.draft.logits.data != nullptr; }
  __device__ Row target_row(int64_t b, int32_t i) const { return row_of(chains.args.target, b, i); }
  __device__ Row draft_row(int64_t b, int32_t i) const { return row_of(chains.args.draft.logits, b, i); }
  __device__ NoiseKey noise(int64_t b, const Chain& chain, Purpose purpose, int32_t i) const {
    return make_noise_key(chains.args.params.seed[b], chain.position + i, purpose, 0);
  }
  // The chain's first position goes into these draws: `block` looks at draws of tokens that are judged again next
  // round.
  __device__ double accept_draw(int64_t b, const Chain& chain, int32_t i) const {
    return uniform(make_noise_key(chains.args.params.seed[b], chain.position + i, Purpose::kAccept, chain.position));
  }

  // Accept while the drafted token is the target's own.
  __device__ bool by_equality(const Filter& filter) const {
    return chains.args.rule == Rule::kGreedy || chains.args.rule == Rule::kCoupled || filter.greedy();
  }

  // Whether a filter changes any of a request's rows.
  __device__ bool filters(const Filter& filter) const {
    if (chains.args.rule == Rule::kGreedy || filter.greedy()) return false;
    const bool keeps_all = filter.keeps_all(static_cast<uint32_t>(chains.args.target.vocab));
    const uint32_t draft_vocab = static_cast<uint32_t>(chains.args.draft.logits.vocab);
    return !keeps_all || (has_draft_probs() && !filter.keeps_all(draft_vocab));
  }

  __device__ RowTask task(int64_t b, const Chain& chain, int32_t i) const {
    const Filter filter = filter_of(chains.args.params, b);
    const int64_t token = chain.tokens[i];
    const bool greedy = chains.args.rule == Rule::kGreedy || filter.greedy();
    const bool inside = token >= 0 && token < chains.args.target.vocab;
    if (chains.args.rule == Rule::kCoupled || !inside) {
      return {filter, greedy, !greedy, noise(b, chain, Purpose::kSample, i), kNoId};
    }
    // Without draft probabilities the residual is the row without the token, so its draw need not wait.
    const bool draws = !greedy && !has_draft_probs();
    return {filter, greedy, draws, noise(b, chain, Purpose::kResidual, i), static_cast<uint32_t>(token)};
  }
};

// What `finish_row` and the draft say of one token of a chain.
struct Judged {
  double target_prob, draft_prob;
  double weight;                  // `block`: of the tokens before this one
  float lse, threshold, highest;  // of the target row
  uint32_t own;                   // the target's token in place of this one, where `task` draws or takes the best
  uint32_t best;
  int32_t row_status, draft_status;
};
static_assert(sizeof(Judged) <= Workspace::kJudgedBytes, "");

__device__ __forceinline__ Judged judged_row(const RowTask& task, const RowResult& row) {
  Judged judged{};
  judged.lse = row.lse;
  judged.threshold = row.threshold;
  judged.highest = row.highest;
  judged.own = task.greedy ? row.best : row.drawn;
  judged.best = row.best;
  judged.row_status = row.status;
  return judged;
}

// What is left to do about a request.
enum class Next : int32_t {
  kCommit,    // nothing: the verdict is whole
  kRedraw,    // draw token num_accepted from its target row: what the draft says of it is no distribution
  kMasses,    // `block`: the mass each row's residual has
  kResidual,  // draw token num_accepted from its residual
};

struct Decision {
  int64_t next_token;
  double weight;  // of target_probs in the residual
  int32_t num_accepted;
  int32_t status;
  Next next;
  int32_t length;  // `block`: tokens before the first that cannot be judged
};
static_assert(sizeof(Decision) <= Workspace::kDecisionBytes, "");

__device__ __forceinline__ double probability(float logit, float threshold, float lse, float inverse_temperature) {
  if (!(logit >= threshold)) return 0.0;
  return exp(static_cast<double>(logit) * inverse_temperature - lse);
}

// Where `id` is in d2t, strictly increasing; -1 if it is not. By a whole warp, 32 steps at a time.
__device__ __forceinline__ int64_t warp_find(const int64_t* d2t, int64_t size, int64_t id) {
  int64_t begin = 0, end = size;
  while (end - begin > 0) {
    const int64_t step = (end - begin + kWarp - 1) / kWarp, at = begin + lane_index() * step;
    const unsigned not_above = __ballot_sync(kAllLanes, at < end && d2t[at] <= id);
    if (not_above == 0) return -1;
    begin += (__popc(not_above) - 1) * step;
    end = min(end, begin + step);
    if (step == 1) return d2t[begin] == id ? begin : -1;
  }
  return -1;
}

// The draft's logit of a target id.
__device__ __forceinline__ float draft_logit(const Row& row, const int64_t* d2t, uint32_t id) {
  if (!d2t) return id < row.size ? row.at(id) : -INFINITY;
  uint32_t low = 0, high = row.size;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (d2t[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < row.size && d2t[low] == id ? row.at(low) : -INFINITY;
}

struct DraftStats {
  float threshold, lse;
};
__device__ __forceinline__ DraftStats draft_stats(const Job& job, int64_t b, int32_t i) {
  const DraftSide& draft = job.chains.args.draft;
  const int64_t at = b * job.chains.args.width + i;
  if (draft.lse) return {draft.threshold[at], draft.lse[at]};
  return {__ldcg(&job.workspace.draft_threshold[at]), __ldcg(&job.workspace.draft_lse[at])};
}

// What the draft says of a token that is in the target's vocabulary, and the target's probability of it. By a whole warp;
// all lanes get the result.
struct Drafted {
  double target_prob = 0.0, draft_prob = 1.0;
  int32_t status = kOk;
};
__device__ __forceinline__ Drafted look_at_draft(const Job& job, int64_t b, int32_t i, int64_t token,
                                                 const Judged& judged) {
  const VerifyArgs& args = job.chains.args;
  const float inverse_temperature = filter_of(args.params, b).inverse_temperature;
  Drafted drafted;
  if (job.has_draft_probs()) {
    const Row row = job.draft_row(b, i);
    const DraftStats stats = draft_stats(job, b, i);
    const int64_t at = args.draft.d2t ? warp_find(args.draft.d2t, row.size, token) : token < row.size ? token : -1;
    const float logit = at < 0 ? -INFINITY : row.at(static_cast<uint32_t>(at));
    const bool good = isfinite(stats.lse) && !isnan(logit) && logit != INFINITY;
    drafted.status = good ? kOk : kDraftInvalid;
    drafted.draft_prob = probability(logit, stats.threshold, stats.lse, inverse_temperature);
  }
  const float logit = job.target_row(b, i).at(static_cast<uint32_t>(token));
  drafted.target_prob = probability(logit, judged.threshold, judged.lse, inverse_temperature);
  return drafted;
}

// Completes what is known of token i, in shared memory. By a whole warp.
__device__ __forceinline__ void judge(const Job& job, int64_t b, const Chain& chain, int32_t i, Judged& judged) {
  const int64_t token = chain.tokens[i];
  Drafted drafted;
  if (token >= 0 && token < job.chains.args.target.vocab) drafted = look_at_draft(job, b, i, token, judged);
  if (lane_index() != 0) return;
  judged.target_prob = drafted.target_prob;
  judged.draft_prob = drafted.draft_prob;
  judged.draft_status = drafted.status;
}

__device__ __forceinline__ bool is_refused(const Job& job, int64_t token, const Judged& judged) {
  return token < 0 || token >= job.chains.args.target.vocab || judged.draft_status != kOk;
}

// The decision that token i is the target's own draw, without regard to the draft's probabilities.
__device__ __forceinline__ Decision take_own(const Job& job, int64_t token, int32_t i, const Judged& judged,
                                             int32_t status) {
  if (judged.row_status != kOk) return {0, 1.0, 0, status | judged.row_status, Next::kCommit, i};
  const bool drawn = token < 0 || token >= job.chains.args.target.vocab;
  return {judged.own, 1.0, i, status, drawn ? Next::kCommit : Next::kRedraw, i};
}

// The decision on a chain whose tokens before i are accepted, for rules that stop at the first refusal: that the chain
// ends at i, or, where num_accepted is i + 1, goes on.
__device__ __forceinline__ Decision decide_equal(const Chain& chain, int32_t i, const Judged& now) {
  if (now.row_status != kOk) return {0, 1.0, i, now.row_status, Next::kCommit, i};
  if (now.own != chain.tokens[i]) return {now.own, 1.0, i, kOk, Next::kCommit, i};
  return {kNoToken, 1.0, i + 1, kOk, Next::kCommit, i + 1};
}

// The same by Leviathan et al. 2023, Algorithm 1, for given drafted tokens.
__device__ __forceinline__ Decision decide_token(const Job& job, int64_t b, const Chain& chain, int32_t i,
                                                 const Judged& now) {
  const int64_t token = chain.tokens[i];
  if (now.row_status != kOk) return {0, 1.0, i, now.draft_status | now.row_status, Next::kCommit, i};
  if (is_refused(job, token, now)) return take_own(job, token, i, now, now.draft_status);
  if (job.accept_draw(b, chain, i) * now.draft_prob < now.target_prob) {
    return {kNoToken, 1.0, i + 1, kOk, Next::kCommit, i + 1};
  }
  return {now.own, 1.0, i, kOk, job.has_draft_probs() ? Next::kResidual : Next::kCommit, i};
}

__device__ __forceinline__ Decision decide_next(const Job& job, int64_t b, const Chain& chain, int32_t i,
                                                const Judged& now, bool by_equality) {
  return by_equality ? decide_equal(chain, i, now) : decide_token(job, b, chain, i, now);
}

// Sun et al. 2024, Algorithm 2, for a chain with no target row past its last token. First part: the weights.
__device__ __forceinline__ Decision weigh_block(const Job& job, const Chain& chain, Judged* judged) {
  Decision decision{0, 1.0, 0, kOk, Next::kCommit, 0};
  for (; decision.length < chain.length; ++decision.length) {
    const Judged& now = judged[decision.length];
    decision.status |= now.draft_status;
    if (is_refused(job, chain.tokens[decision.length], now)) break;
  }
  bool needs_masses = false;
  double weight = 1.0;
  for (int32_t i = 0; i < decision.length; ++i) {
    Judged& now = judged[i];
    decision.status |= now.row_status;
    if (now.row_status != kOk) return decision;
    now.weight = weight;
    needs_masses |= i > 0 && weight != 1.0;
    // A token that the target cannot emit is never mended by what follows: 0 stays 0.
    weight = weight == 0 || now.target_prob == 0 ? 0.0 : fmin(1.0, weight * now.target_prob / now.draft_prob);
  }
  decision.next = needs_masses && job.has_draft_probs() ? Next::kMasses : Next::kResidual;
  decision.weight = weight;
  return decision;
}

// Second part: the longest prefix that passes. mass(i) is that of max(weight * target_probs - draft_probs, 0) at row i,
// asked for where weight < 1; `decision` is of `weigh_block`.
template <typename Mass>
__device__ __forceinline__ Decision decide_block(const Job& job, int64_t b, const Chain& chain, const Judged* judged,
                                                 Decision decision, const Mass& mass) {
  const double last_weight = decision.weight;
  int32_t accepted = 0;
  double accepted_weight = 1.0;
  for (int32_t i = 0; i < decision.length; ++i) {
    const bool is_last = i + 1 == decision.length;
    const double weight = is_last ? last_weight : judged[i + 1].weight;
    double pass = weight;
    if (!is_last) {
      const double excess = weight == 1.0 ? 0.0 : mass(i + 1);
      pass = weight == 1.0 ? 1.0 : excess / (excess + 1.0 - weight);
    }
    if (!(job.accept_draw(b, chain, i) <= pass)) continue;
    accepted = i + 1;
    accepted_weight = weight;
  }
  if (accepted == chain.length) return {kNoToken, 1.0, accepted, decision.status, Next::kCommit, decision.length};
  const Judged& now = judged[accepted];
  if (accepted == decision.length) return take_own(job, chain.tokens[accepted], accepted, now, decision.status);
  const Next next = job.has_draft_probs() ? Next::kResidual : Next::kCommit;
  return {now.own, accepted_weight, accepted, decision.status, next, decision.length};
}

}  // namespace pearl::cuda
