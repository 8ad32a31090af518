#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "common/cuda/queue.h"

#ifndef PEARL_CUDA_THREADS
#define PEARL_CUDA_THREADS 256
#endif

namespace pearl::cuda {

constexpr int kThreads = PEARL_CUDA_THREADS;  // of every block of every kernel
constexpr int kBlocksHeld = 2;                // by a multiprocessor at once, of the kernels that walk whole rows
constexpr int kGreedyBlocksHeld = 4;          // of those that want nothing but the best of each

// The device that launches go to, put back at the end of the scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = true;
    }
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_;
  int before_ = 0;
  bool changed_ = false;
};

// An operation's kernels follow each other closely: from Hopper on, the blocks of one are set up while the last of the
// kernel before it still run. Every kernel begins with this, and reads nothing of what others wrote before.
__device__ __forceinline__ void take_over() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

enum class Follows {
  kAnything,
  kOwnKernel
};  // what is queued right before: `take_over` began that, or it may be any work

// Loads kernels for a device. CUDA does so when one is first queued, and may then lack memory for it when those before it
// are at work already. Null, or what the CUDA runtime says went wrong, as of a device or a driver that is older than the
// kernels are.
inline const char* load(std::initializer_list<const void*> kernels, int device) {
  const DeviceScope scope(device);
  cudaError_t error = scope.error();
  cudaFuncAttributes attributes;
  for (const void* kernel : kernels) {
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Queues a kernel whose only argument is `args`. Nothing is waited for.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), int64_t blocks, const CudaQueue& queue, Follows follows, const Args& args) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  config.attrs = &overlap;
  config.numAttrs = follows == Follows::kOwnKernel && queue.capability >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace pearl::cuda
