#include "common/select.h"

namespace pearl::PEARL_SIMD {
namespace {

constexpr int kBins = 256;

// Bins of equal width from the smallest to the largest value; monotone, and those two never share a bin.
struct Binning {
  double low, scale;

  int of(float value) const {
    const int bin = static_cast<int>((static_cast<double>(value) - low) * scale);
    return bin < kBins ? bin : kBins - 1;
  }
};

int64_t keep_bin(float* values, float* weights, int64_t count, const Binning& binning, int bin) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (binning.of(values[i]) != bin) continue;
    values[kept] = values[i];
    if (weights) weights[kept] = weights[i];
    ++kept;
  }
  return kept;
}

}  // namespace

float select_by_weight(float* values, float* weights, int64_t count, double target) {
  for (;;) {
    float low = values[0], high = values[0];
    for (int64_t i = 1; i < count; ++i) {
      low = values[i] < low ? values[i] : low;
      high = values[i] > high ? values[i] : high;
    }
    if (low == high) return low;

    const Binning binning{low, kBins / (static_cast<double>(high) - low)};
    double weight_of_bin[kBins] = {};
    for (int64_t i = 0; i < count; ++i) weight_of_bin[binning.of(values[i])] += weights ? weights[i] : 1.0;

    int bin = kBins - 1;
    for (; bin > 0 && weight_of_bin[bin] < target; --bin) target -= weight_of_bin[bin];
    count = keep_bin(values, weights, count, binning, bin);
  }
}

}  // namespace pearl::PEARL_SIMD
