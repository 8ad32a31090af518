#pragma once

#include <cstdint>

#include "common/macros.h"

namespace pearl {

// The numbers are part of the Python side's contract: pearl_kernels/types.py and _pointers.py.
enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum class Purpose : uint32_t { kSample = 0, kAccept = 1, kResidual = 2, kDraft = 3 };
enum Status : int32_t { kOk = 0, kTargetInvalid = 1, kDraftInvalid = 2, kEmptyDistribution = 4 };

// Shape: (batch, rows, vocab). Strides count elements; the last dimension is contiguous.
struct LogitsView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t vocab = 0;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
};

// Shape of each: (batch,)
struct SamplingParams {
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seed;
};

// 1 / temperature, of at least the smallest normal number, whose inverse still is one.
static PEARL_HOST_DEVICE float inverse_of(float temperature) {
  constexpr float kSmallest = 0x1p-126f;
  return 1.0f / (temperature > kSmallest ? temperature : kSmallest);
}

}  // namespace pearl
