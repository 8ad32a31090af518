#pragma once

#include <cstdint>

namespace pearl {

// The numbers are those of pearl_kernels/window_linear/_native.py.
enum class WeightType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

constexpr int kBlockOutputs = 32;  // that lie together in a packed weight

struct LinearLayer {
  // Packed: (outputs / kBlockOutputs, inputs, kBlockOutputs), contiguous. Of bfloat16 two inputs' weights for an output lie
  // side by side, (inputs / 2, kBlockOutputs, 2), those of a last odd one by themselves. Otherwise (outputs, inputs), each
  // row contiguous.
  const void* weight;
  WeightType type;
  int64_t outputs;
  int64_t weight_stride;  // between outputs, if not packed
  bool packed;
  const float* bias;   // (outputs), or null
  const float* scale;  // (outputs), of int8 weights, or null
  float* out;          // (rows, outputs), contiguous
};

// For each layer out[r, n] = sum over k of x[r, k] * weight[n, k], times scale[n], plus bias[n]. Last dimensions are
// contiguous, strides count elements.
struct LinearArgs {
  const float* x;  // (rows, inputs)
  int64_t rows;
  int64_t x_stride;
  int64_t inputs;
  const LinearLayer* layers;
  int64_t count;  // of layers
  int threads;
};

}  // namespace pearl
