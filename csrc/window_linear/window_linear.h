#pragma once

#include <cstdint>

#include "common/types.h"

namespace pearl {

struct LinearLayer {
  const void* weight;  // (outputs, inputs), each row contiguous
  DType dtype;
  int64_t outputs;
  int64_t weight_stride;
  const float* bias;  // (outputs), or null
  float* out;         // (rows, outputs), contiguous
};

// For each layer out[r, n] = sum over k of x[r, k] * weight[n, k], plus bias[n]. Last dimensions are contiguous, strides
// count elements.
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
