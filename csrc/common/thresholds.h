#pragma once

#include "common/row_stats.h"

namespace pearl::PEARL_SIMD {

// The threshold that top_k, then top_p on what it keeps, then min_p leave, from the row's maxima; log_mass is that of
// the whole row, and needed for top_p without top_k only.
float threshold_of(const Row& row, const Filter& filter, const RowStats& stats, double log_mass);

}  // namespace pearl::PEARL_SIMD
