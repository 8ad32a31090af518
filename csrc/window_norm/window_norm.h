#pragma once

#include <cstdint>

namespace pearl {

// out[r, n] = x[r, n] / sqrt(mean of x[r]^2 + eps) * (weight[n] + offset). All contiguous.
struct NormArgs {
  const float* x;  // (rows, size)
  int64_t rows;
  int64_t size;
  const float* weight;  // (size)
  float offset;
  float eps;
  float* out;  // (rows, size)
};

}  // namespace pearl
