#pragma once

#include "common/cuda/queue.h"
#include "sample/sample.h"

namespace pearl {

// As `sample` in sample.h; all pointers are to memory of the queue's device. Queues the work and returns at once: null,
// or what the CUDA runtime says went wrong. Throws std::bad_alloc where the device lacks memory and nothing was queued.
const char* sample_cuda(const SampleArgs& args, const CudaQueue& queue);

// Once for each device, before `sample_cuda`: see `load` in common/cuda/launch.cuh.
const char* load_sample_cuda(int device);

}  // namespace pearl
