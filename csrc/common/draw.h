#pragma once

#include "common/draft_row.h"
#include "common/philox.h"
#include "common/row_stats.h"

namespace pearl::PEARL_SIMD {

constexpr int64_t kNoToken = -1;

// The lowest id whose logit is the row's maximum.
int64_t argmax(const Row& row, const RowStats& stats);

// A Gumbel-argmax draw from the row's probabilities, `excluded` left out; kNoToken if nothing else has any. Ties fall
// to the lowest id. Needs no lse.
int64_t draw(const Row& row, const RowStats& stats, const NoiseKey& key, int64_t excluded = kNoToken);

// The same from max(weight * target_probs - draft_probs, 0); kNoToken if that is nowhere positive.
int64_t draw_residual(const Row& target, const RowStats& target_stats, const DraftRow& draft, double weight,
                      const NoiseKey& key);

// The sum of max(weight * target_probs - draft_probs, 0).
double residual_mass(const Row& target, const RowStats& target_stats, DraftRow& draft, double weight);

}  // namespace pearl::PEARL_SIMD
