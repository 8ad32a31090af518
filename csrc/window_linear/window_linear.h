#pragma once

#include <cstdint>

#include "common/types.h"

namespace pearl {

// out[r, n] = sum over k of x[r, k] * weight[n, k], plus bias[n]. Last dimensions are contiguous, strides count elements.
struct LinearArgs {
  const float* x;  // (rows, inputs)
  int64_t rows;
  int64_t x_stride;
  const void* weight;  // (outputs, inputs), each row contiguous
  DType dtype;
  int64_t outputs;
  int64_t inputs;
  int64_t weight_stride;
  const float* bias;  // (outputs), or null
  float* out;         // (rows, outputs), contiguous
  int threads;
};

}  // namespace pearl
