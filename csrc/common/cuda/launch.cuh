#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifndef PEARL_CUDA_THREADS
#define PEARL_CUDA_THREADS 256
#endif

namespace pearl::cuda {

constexpr int kThreads = PEARL_CUDA_THREADS;  // of every block of every kernel

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

// Queues a kernel whose only argument is `args`. Nothing is waited for.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), int64_t blocks, void* stream, const Args& args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace pearl::cuda
