#pragma once

#include "common/scratch.h"
#include "common/sweep.h"

namespace pearl::PEARL_SIMD {

// How one row is sampled.
struct Filter {
  float temperature;
  float inverse_temperature;
  int64_t top_k;
  float top_p;
  float min_p;

  bool greedy() const { return temperature == 0.0f; }
  bool limits_count(int64_t vocab) const { return top_k > 0 && top_k < vocab; }
  bool limits_mass() const { return top_p < 1.0f; }
  bool needs_whole_mass(int64_t vocab) const { return limits_mass() && !limits_count(vocab); }
  bool keeps_all(int64_t vocab) const { return !limits_count(vocab) && !limits_mass() && !(min_p > 0.0f); }
};

static PEARL_INLINE Filter filter_of(const SamplingParams& params, int64_t batch) {
  const float temperature = params.temperature[batch];
  return {temperature, inverse_of(temperature), params.top_k[batch], params.top_p[batch], params.min_p[batch]};
}

// What makes probabilities out of a row of logits: prob(v) = exp(scaled(v) - lse) where logit(v) >= threshold.
struct RowStats {
  int32_t status = kOk;
  float inverse_temperature = 1.0f;
  float max_logit = -kInfinity;
  float shift = -kInfinity;  // max_logit, scaled
  float threshold = -kInfinity;
  float lse = 0.0f;
  Float* block_maxima = nullptr;  // one per lane; live until the next statistics in the same slot
};

enum class Need { kMaximum, kThreshold, kProbabilities };

RowStats row_stats(const Row& row, const Filter& filter, Need need, Scratch slot = Scratch::kBlockMaxima);

static PEARL_INLINE float scaled_logit(float logit, const RowStats& stats) { return logit * stats.inverse_temperature; }

static PEARL_INLINE double probability(float logit, const RowStats& stats) {
  if (!(logit >= stats.threshold)) return 0.0;
  return std::exp(static_cast<double>(scaled_logit(logit, stats)) - static_cast<double>(stats.lse));
}

}  // namespace pearl::PEARL_SIMD
