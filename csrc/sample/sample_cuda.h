#pragma once

#include "common/cuda/queue.h"
#include "sample/sample.h"

namespace pearl {

// As `sample` in sample.h; all pointers are to memory of the queue's device. Queues the work and returns at once: null,
// or what the CUDA runtime says went wrong.
const char* sample_cuda(const SampleArgs& args, const CudaQueue& queue);

// What keeps this binary's kernels from running on a device: null, or what the CUDA runtime says, as of a device or a
// driver that is older than they are.
const char* cuda_problem(int device);

}  // namespace pearl
