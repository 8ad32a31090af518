#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd/simd.h"
#include "window_linear/window_linear.h"

namespace pearl::PEARL_SIMD {

// Inputs [begin, end) of a layer.
struct Part {
  int64_t begin, end;
  bool first, last;
};

// Adds what was summed of earlier parts, and after the last one scales and shifts. At most `count` lanes are outputs.
static PEARL_INLINE void finish(const LinearLayer& layer, const Part& part, int64_t output, int64_t row, Float sum,
                                int64_t count) {
  float* out = layer.out + row * layer.outputs + output;
  const auto finished = [&](const float* earlier, const float* scale, const float* bias) {
    if (!part.first) sum += load_float32(earlier);
    if (part.last && scale) sum *= load_float32(scale);
    if (part.last && bias) sum += load_float32(bias);
    return sum;
  };
  const float* scale = layer.scale ? layer.scale + output : nullptr;
  const float* bias = layer.bias ? layer.bias + output : nullptr;
  if (count >= kLanes) return store_float32(out, finished(out, scale, bias));
  float padded[3][kLanes] = {};
  if (!part.first) std::copy_n(out, count, padded[0]);
  if (scale) std::copy_n(scale, count, padded[1]);
  if (bias) std::copy_n(bias, count, padded[2]);
  store_float32(padded[0], finished(padded[0], scale ? padded[1] : nullptr, bias ? padded[2] : nullptr));
  std::copy_n(padded[0], count, out);
}

}  // namespace pearl::PEARL_SIMD
