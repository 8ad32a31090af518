#include "common/select.h"

#include "common/simd/simd.h"

namespace pearl::PEARL_SIMD {
namespace {

// Vectors whose weights are added in float32 lanes before they go to double.
constexpr int64_t kFlush = 32 * kLanes;

struct Range {
  float low, high;
};

Mask lanes_before(int64_t i, int64_t count) { return first_lanes(count - i < kLanes ? count - i : kLanes); }

Range range_of(const float* values, int64_t count) {
  const Float any = broadcast(values[0]);
  Float low = any, high = any;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Float v = choose(lanes_before(i, count), load_float32(values + i), any);
    low = min(low, v);
    high = max(high, v);
  }
  return {-reduce_max(-low), reduce_max(high)};
}

double weight_from(float pivot, const float* values, const float* weights, int64_t count) {
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kFlush) {
    const int64_t end = begin + kFlush < count ? begin + kFlush : count;
    Float sum{};
    for (int64_t i = begin; i < end; i += kLanes) {
      const Mask above = greater_equal(load_float32(values + i), broadcast(pivot)) & lanes_before(i, count);
      sum += zero_unless(above, weights ? load_float32(weights + i) : broadcast(1.0f));
    }
    total += reduce_add(sum);
  }
  return total;
}

// Keeps the values in [low, high), with their weights, and returns how many there are.
int64_t keep(Range range, float* values, float* weights, int64_t count) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Float v = load_float32(values + i);
    const Mask inside =
        greater_equal(v, broadcast(range.low)) & greater(broadcast(range.high), v) & lanes_before(i, count);
    if (weights) compress(weights + kept, load_float32(weights + i), inside);
    kept += compress(values + kept, v, inside);
  }
  return kept;
}

}  // namespace

// Halves the range of values until it is empty, keeping the half with the answer.
float select_by_weight(float* values, float* weights, int64_t count, double target) {
  for (;;) {
    const Range range = range_of(values, count);
    if (range.low == range.high) return range.low;
    const float middle = static_cast<float>(0.5 * range.low + 0.5 * static_cast<double>(range.high));
    const float pivot = middle > range.low ? middle : range.high;
    const double above = weight_from(pivot, values, weights, count);
    const bool answer_above = above >= target;
    if (!answer_above) target -= above;
    count = keep(answer_above ? Range{pivot, __builtin_inff()} : Range{range.low, pivot}, values, weights, count);
  }
}

}  // namespace pearl::PEARL_SIMD
