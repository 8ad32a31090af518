#pragma once

#include "common/types.h"

namespace pearl {

// A token and its statistics for each row of (batch, 1, vocab) logits. All other arrays are (batch,), contiguous.
struct SampleArgs {
  LogitsView logits;
  SamplingParams params;
  const int64_t* positions;
  const int64_t* epochs;  // null: 0 for every row
  Purpose purpose;
  int64_t batch;

  int64_t* tokens;
  float* threshold;
  float* lse;
  int32_t* status;
};

}  // namespace pearl
