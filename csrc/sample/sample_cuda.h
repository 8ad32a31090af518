#pragma once

#include "common/types.h"

namespace pearl {

// As SampleArgs, with every row greedy; all pointers are to memory of `device`, and `stream` is one of its streams.
struct GreedyCudaArgs {
  LogitsView logits;
  int64_t batch;
  int device;
  void* stream;

  int64_t* tokens;
  float* threshold;
  float* lse;
  int32_t* status;
};

// Launches and returns at once: null, or what the CUDA runtime says went wrong.
const char* sample_greedy_cuda(const GreedyCudaArgs& args);

}  // namespace pearl
