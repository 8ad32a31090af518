#include "common/draw.h"

#include <cfloat>
#include <cmath>

#include "common/noise.h"

namespace pearl::PEARL_SIMD {
namespace {

// Slack for float32 rounding in the tests that decide which ids are looked at in double.
constexpr float kSlack = 1e-4f;

// Mass this far (in nats) below the maximum is left out: for any vocabulary it is under half a unit of float32.
constexpr float kNegligible = 32.0f;

// log of the smallest possible -log(u), at u = 1 - 2^-24, less some slack.
constexpr double kLogSmallestWait = -16.6355323334 - 1e-3;

// A Gumbel-argmax race: id v's score is log(weight(v)) + gumbel(v), that is, weight(v) / -log(u(v)) in logs.
//
// Since -log(u) >= 1 - u, only ids with weight > rate * (1 - u), rate being the best weight / -log(u) so far, can still
// win; nearly all fail this test, which needs no logarithm. The few others get their score in double.
class Race {
 public:
  // Weights are given as logs; those that the test sees are relative to `log_unit`.
  Race(const NoiseKey& key, double log_unit) : key_(key), noise_(key), log_unit_(log_unit) {}

  int64_t winner() const { return winner_; }

  // The log weight below which no id can win any more.
  double hopeless() const { return best_score_ + kLogSmallestWait; }

  // True if `id` leads now.
  bool enter(int64_t id, double log_weight) {
    const double score = log_weight - std::log(-std::log(unit_from_word(philox_word(key_, id))));
    if (!(score > best_score_) && !(score == best_score_ && id < winner_)) return false;
    best_score_ = score;
    winner_ = id;
    rate_ = static_cast<float>(std::exp(score - log_unit_)) * (1.0f - kSlack);
    return true;
  }

  // Calls visit(id) for each of kChunk ids that can still win, where weight_bound gives upper bounds of the weights of
  // a vector of logits, rising with the logits.
  template <typename WeightBound, typename Visit>
  PEARL_INLINE void for_contenders(int64_t begin, const Chunk& logits, const WeightBound& weight_bound,
                                   const Visit& visit) {
    const ChunkNoise::Words words = noise_.words(begin);
    // Nearly always, not even the largest logit with the shortest wait of the chunk would do.
    const Word largest = max(max(words.w[0], words.w[1]), max(words.w[2], words.w[3]));
    if (!any(greater(weight_bound(maximum(logits)), one_minus_unit(largest) * rate_))) return;
    for (int v = 0; v < kChunkVectors; ++v) {
      const Float bound = weight_bound(logits.x[v]), wait = one_minus_unit(words.w[v]);
      for (uint32_t bits = to_bits(greater(bound, wait * rate_)); bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        if (bound[lane] > wait[lane] * rate_) visit(begin + v * kLanes + lane);
      }
    }
  }

 private:
  NoiseKey key_;
  ChunkNoise noise_;
  double log_unit_;
  double best_score_ = -HUGE_VAL;
  float rate_ = 0.0f;
  int64_t winner_ = kNoToken;
};

// At or above exp(x) - by at most 6 per cent - for x in [-86, 0]: 2^n * (1 + f) in place of 2^n * 2^f.
PEARL_INLINE Float exp_upper_bound(Float x) {
  const Float bits =
      fma(max(x, broadcast(kSmallestExponent)), broadcast(0x1p23f * 1.44269504f), broadcast(0x1p23f * 127.0f));
  return (Float) __builtin_convertvector(bits, Int);
}

// Upper bounds of exp(scaled logit - log_unit), for logits where that is at most 1.
PEARL_INLINE Float weight_bound(Float logits, const RowStats& stats, float log_unit) {
  return exp_upper_bound(fma(logits, broadcast(stats.inverse_temperature), broadcast(-log_unit)));
}

// Calls visit(begin, chunk) for every chunk of the row that holds a logit at or above `cut`, which may rise meanwhile.
template <typename Visit>
PEARL_INLINE void for_chunks_above(const Row& row, const RowStats& stats, const float& cut, const Visit& visit) {
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (!any(greater_equal(stats.block_maxima[block], broadcast(cut)))) continue;
    for (int64_t i = block * kBlock; i < end_of_block(row, block); i += kChunk) {
      const Chunk c = load_chunk(row, i);
      if (any(greater_equal(maximum(c), broadcast(cut)))) visit(i, c);
    }
  }
}

float smallest_kept_logit(const RowStats& stats) { return stats.threshold > -FLT_MAX ? stats.threshold : -FLT_MAX; }

// The raw logit of a scaled one, rounded down.
float logit_below(double scaled, const RowStats& stats) {
  const double logit = scaled / stats.inverse_temperature;
  return static_cast<float>(logit - 1e-6 * std::fabs(logit));
}

}  // namespace

int64_t argmax(const Row& row, const RowStats& stats) {
  const Float maximum = broadcast(stats.max_logit);
  int64_t block = 0;
  while (!any(greater_equal(stats.block_maxima[block], maximum))) ++block;
  for (int64_t i = block * kBlock;; i += kChunk) {
    const Chunk c = load_chunk(row, i);
    for (int v = 0; v < kChunkVectors; ++v) {
      const uint32_t bits = to_bits(greater_equal(c.x[v], maximum));
      if (bits != 0) return i + v * kLanes + __builtin_ctz(bits);
    }
  }
}

int64_t draw(const Row& row, const RowStats& stats, const NoiseKey& key, int64_t excluded) {
  Race race(key, stats.shift);
  const float kept = smallest_kept_logit(stats);
  float cut = kept;
  const auto enter = [&](int64_t id) {
    if (id == excluded || id >= row.size) return;
    const float logit = row.at(id);
    if (logit >= kept && race.enter(id, scaled_logit(logit, stats))) {
      cut = std::fmax(kept, logit_below(race.hopeless(), stats));
    }
  };

  enter(argmax(row, stats));
  for_chunks_above(row, stats, cut, [&](int64_t begin, const Chunk& logits) {
    race.for_contenders(begin, logits, [&](Float x) { return weight_bound(x, stats, stats.shift); }, enter);
  });
  return race.winner();
}

int64_t draw_residual(const Row& target, const RowStats& target_stats, const DraftRow& draft, double weight,
                      const NoiseKey& key) {
  Race race(key, std::log(weight));  // whose test sees target_probs
  const float kept = smallest_kept_logit(target_stats);
  float cut = kept;
  const auto enter = [&](int64_t id) {
    if (id >= target.size) return;
    const double target_mass = weight * probability(target.at(id), target_stats);
    const double mass = target_mass - probability(draft.logit(id), draft.stats());
    if (mass > 0 && race.enter(id, std::log(mass))) {
      cut = std::fmax(kept, logit_below(race.hopeless() - std::log(weight) + target_stats.lse, target_stats));
    }
  };

  enter(argmax(target, target_stats));
  for_chunks_above(target, target_stats, cut, [&](int64_t begin, const Chunk& logits) {
    race.for_contenders(begin, logits, [&](Float x) { return weight_bound(x, target_stats, target_stats.lse); }, enter);
  });
  return race.winner();
}

double residual_mass(const Row& target, const RowStats& target_stats, DraftRow& draft, double weight) {
  const float kept = smallest_kept_logit(target_stats);
  const float negligible = logit_below(target_stats.lse - kNegligible, target_stats);
  const bool filtered = target_stats.threshold > -kInfinity;
  Float sum[kChunkVectors] = {};
  draft.rewind();
  for_chunks_above(target, target_stats, std::fmax(kept, negligible), [&](int64_t begin, const Chunk& logits) {
    const Chunk draft_probs = draft.probabilities(begin);
    for (int v = 0; v < kChunkVectors; ++v) {
      const Float logit = logits.x[v];
      const Float target_probs =
          exp(fma(logit, broadcast(target_stats.inverse_temperature), broadcast(-target_stats.lse)));
      Float mass = max(fma(target_probs, broadcast(static_cast<float>(weight)), -draft_probs.x[v]), Float{});
      if (filtered) mass = zero_unless(greater_equal(logit, broadcast(kept)), mass);
      sum[v] += mass;
    }
  });
  return sum_of(sum);
}

}  // namespace pearl::PEARL_SIMD
