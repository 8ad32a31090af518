#pragma once

#include "common/cuda/queue.h"
#include "verify/chain_job.h"

namespace pearl {

constexpr int kMostCudaWidth = 64;  // the longest chain

// As `verify` and `advance` of the CPU; all pointers are to memory of the queue's device. Queues the work and returns at
// once: null, or what the CUDA runtime says went wrong. Throws std::bad_alloc where the device lacks memory and nothing was
// queued.
const char* judge_chains_cuda(const ChainJob& chains, const CudaQueue& queue);

// Once for each device, before `judge_chains_cuda`: see `load` in common/cuda/launch.cuh.
const char* load_chains_cuda(int device);

}  // namespace pearl
