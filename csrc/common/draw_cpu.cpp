#include "common/draw.h"

#include <cfloat>
#include <cmath>

#include "common/noise.h"

namespace pearl::PEARL_SIMD {
namespace {

// Slack for float32 rounding in the tests that decide which ids are looked at in double.
constexpr float kSlack = 1e-4f;

// log of the smallest possible -log(u), at u = 1 - 2^-24, less some slack.
constexpr double kLogSmallestWait = -16.6355323334 - 1e-3;

// A Gumbel-argmax race: id v's score is log(weight(v)) + gumbel(v), that is, weight(v) / -log(u(v)) in logs.
//
// Since -log(u) >= 1 - u, only ids with weight > rate * (1 - u), rate being the best weight / -log(u) so far,
// can still win; nearly all fail this test, which needs no logarithm. The few others get their score in
// double.
class Race {
 public:
  explicit Race(const NoiseKey& key) : key_(key) {}

  int64_t winner() const { return winner_; }
  double best_score() const { return best_score_; }

  // True if `id` leads now.
  bool enter(int64_t id, double log_weight) {
    const double score = log_weight - std::log(-std::log(unit_from_word(philox_word(key_, id))));
    if (!(score > best_score_) && !(score == best_score_ && id < winner_)) return false;
    best_score_ = score;
    winner_ = id;
    return true;
  }

 private:
  NoiseKey key_;
  double best_score_ = -HUGE_VAL;
  int64_t winner_ = kNoToken;
};

int64_t first_at_maximum(const Row& row, const RowStats& stats) {
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

// At or above exp(x) - by at most 6 per cent - for x in [-86, 0]: 2^n * (1 + f) in place of 2^n * 2^f.
PEARL_INLINE Float exp_upper_bound(Float x) {
  const Float bits = fma(max(x, broadcast(kSmallestExponent)), broadcast(0x1p23f * 1.44269504f),
                         broadcast(0x1p23f * 127.0f));
  return (Float) __builtin_convertvector(bits, Int);
}

bool any_at_least(const Chunk& c, Float cut) {
  Mask mask = greater_equal(c.x[0], cut);
  for (int v = 1; v < kChunkVectors; ++v) mask |= greater_equal(c.x[v], cut);
  return any(mask);
}

// Calls visit(begin, chunk) for every chunk of the row that holds a logit at or above cut(), which may rise
// meanwhile.
template <typename Cut, typename Visit>
PEARL_INLINE void for_chunks_above(const Row& row, const RowStats& stats, const Cut& cut,
                                   const Visit& visit) {
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (!any(greater_equal(stats.block_maxima[block], broadcast(cut())))) continue;
    const int64_t end = row.size < (block + 1) * kBlock ? row.size : (block + 1) * kBlock;
    for (int64_t i = block * kBlock; i < end; i += kChunk) {
      const Chunk c = load_chunk(row, i);
      if (any_at_least(c, broadcast(cut()))) visit(i, c);
    }
  }
}

float smallest_kept_logit(const RowStats& stats) {
  return stats.threshold > -FLT_MAX ? stats.threshold : -FLT_MAX;
}

// The raw logit of a scaled one, rounded down.
float logit_below(double scaled, const RowStats& stats) {
  const double logit = scaled / stats.inverse_temperature;
  return static_cast<float>(logit - 1e-6 * std::fabs(logit));
}

}  // namespace

int64_t argmax(const Row& row, const RowStats& stats) {
  return first_at_maximum(row, stats);
}

int64_t draw(const Row& row, const RowStats& stats, const NoiseKey& key, int64_t excluded) {
  Race race(key);
  float cut = smallest_kept_logit(stats);
  float rate = 0.0f;
  const auto enter = [&](int64_t id) {
    if (id == excluded || !race.enter(id, scaled_logit(row.at(id), stats))) return;
    const double lead = race.best_score() - stats.shift;
    rate = static_cast<float>(std::exp(lead)) * (1.0f - kSlack);
    const float hopeless = logit_below(race.best_score() + kLogSmallestWait, stats);
    cut = hopeless > cut ? hopeless : cut;
  };

  enter(first_at_maximum(row, stats));
  const ChunkNoise noise(key);
  for_chunks_above(
      row, stats, [&] { return cut; },
      [&](int64_t begin, const Chunk& c) {
        const ChunkNoise::Words words = noise.words(begin);
        for (int v = 0; v < kChunkVectors; ++v) {
          const Float bound = exp_upper_bound(c.x[v] * stats.inverse_temperature - stats.shift);
          const uint32_t contenders = to_bits(greater_equal(c.x[v], broadcast(cut))) &
                                      to_bits(greater(bound, one_minus_unit(words.w[v]) * rate));
          for (uint32_t bits = contenders; bits != 0; bits &= bits - 1) {
            enter(begin + v * kLanes + __builtin_ctz(bits));
          }
        }
      });
  return race.winner();
}

int64_t draw_residual(const Row& target, const RowStats& target_stats, DraftRow& draft, double weight,
                      const NoiseKey& key) {
  Race race(key);
  float cut = smallest_kept_logit(target_stats);
  float rate = 0.0f;
  const auto enter = [&](int64_t id) {
    const double mass =
        weight * probability(target.at(id), target_stats) - probability(draft.logit(id), draft.stats());
    if (!(mass > 0) || !race.enter(id, std::log(mass))) return;
    rate = static_cast<float>(std::exp(race.best_score())) * (1.0f - kSlack);
    const double least_log_prob = race.best_score() + kLogSmallestWait - std::log(weight);
    const float hopeless = logit_below(least_log_prob + target_stats.lse, target_stats);
    cut = hopeless > cut ? hopeless : cut;
  };

  const float most = static_cast<float>(weight) * (1.0f + kSlack), least = 1.0f - kSlack;
  const ChunkNoise noise(key);
  draft.rewind();
  for_chunks_above(
      target, target_stats, [&] { return cut; },
      [&](int64_t begin, const Chunk& c) {
        const Chunk draft_probs = draft.probabilities(begin);
        const ChunkNoise::Words words = noise.words(begin);
        for (int v = 0; v < kChunkVectors; ++v) {
          const Float target_probs = exp(c.x[v] * target_stats.inverse_temperature - target_stats.lse);
          const Float bound = target_probs * most - draft_probs.x[v] * least;
          const uint32_t contenders = to_bits(greater_equal(c.x[v], broadcast(cut))) &
                                      to_bits(greater(bound, one_minus_unit(words.w[v]) * rate));
          for (uint32_t bits = contenders; bits != 0; bits &= bits - 1) {
            enter(begin + v * kLanes + __builtin_ctz(bits));
          }
        }
      });
  return race.winner();
}

double residual_mass(const Row& target, const RowStats& target_stats, DraftRow& draft, double weight) {
  const float kept = smallest_kept_logit(target_stats);
  const float negligible = (target_stats.lse - kNegligible) / target_stats.inverse_temperature;
  const float cut = negligible > kept ? negligible : kept;
  const float target_weight = static_cast<float>(weight);
  Float sum[kChunkVectors] = {};
  draft.rewind();
  for_chunks_above(
      target, target_stats, [&] { return cut; },
      [&](int64_t begin, const Chunk& c) {
        const Chunk draft_probs = draft.probabilities(begin);
        for (int v = 0; v < kChunkVectors; ++v) {
          const Float target_probs = exp(c.x[v] * target_stats.inverse_temperature - target_stats.lse);
          const Float mass = max(target_probs * target_weight - draft_probs.x[v], broadcast(0.0f));
          sum[v] += zero_unless(greater_equal(c.x[v], broadcast(kept)), mass);
        }
      });
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

}  // namespace pearl::PEARL_SIMD
