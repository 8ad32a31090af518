#pragma once

#include <cstdint>

namespace pearl::PEARL_SIMD {

// The largest value t with weight{v >= t} >= target, or the smallest value if there is none. A weight of 1 each if
// `weights` is null. values must be finite, count at least 1, target positive. Both arrays are overwritten, and read up
// to a vector past their ends.
float select_by_weight(float* values, float* weights, int64_t count, double target);

}  // namespace pearl::PEARL_SIMD
