#pragma once

#include "common/cuda/queue.h"
#include "verify/chain_job.h"

namespace pearl {

constexpr int kMostCudaWidth = 64;  // the longest chain

// As `verify` and `advance` of the CPU; all pointers are to memory of the queue's device. Queues the work and returns at
// once: null, or what the CUDA runtime says went wrong.
const char* judge_chains_cuda(const ChainJob& chains, const CudaQueue& queue);

}  // namespace pearl
