#include "window_norm/window_norm.h"

#include <cmath>

#include "common/simd/simd.h"
#include "cpu_level.h"

namespace pearl::PEARL_SIMD {
namespace {

constexpr int kSums = 4;  // vectors: as many additions are under way at once

float mean_square(const float* x, int64_t size) {
  Float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= size; i += kSums * kLanes) {
    for (int s = 0; s < kSums; ++s) {
      const Float values = load_float32(x + i + s * kLanes);
      sums[s] = fma(values, values, sums[s]);
    }
  }
  float sum = reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < size; ++i) sum += x[i] * x[i];
  return sum / static_cast<float>(size);
}

}  // namespace

void window_norm(const NormArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* x = args.x + r * args.size;
    float* out = args.out + r * args.size;
    const float factor = 1.0f / std::sqrt(mean_square(x, args.size) + args.eps);
    for (int64_t i = 0; i < args.size; ++i) out[i] = x[i] * factor * (args.weight[i] + args.offset);
  }
}

}  // namespace pearl::PEARL_SIMD
