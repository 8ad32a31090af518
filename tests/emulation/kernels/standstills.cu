#include <cuda_runtime.h>

#include <stdexcept>

// Kernels that can not end.
namespace {

__global__ void half_of_the_block_leaves() {
  if (blockIdx.x != 5 || threadIdx.x < 32) __syncthreads();
}

__global__ void barriers_of_two_kinds() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads_or(1);
  }
}

__global__ void a_lane_of_the_mask_has_left(int* result) {
  if (threadIdx.x == 7) return;
  *result = __shfl_xor_sync(0xffffffffu, 1, 16);
}

__global__ void throws() {
  if (threadIdx.x == 40) throw std::runtime_error("thread 40 had enough");
  __syncthreads();
}

template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(9);
  config.blockDim = dim3(64);
  return cudaGetErrorString(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace

extern "C" {

const char* run_half_of_the_block_leaves() { return launch(half_of_the_block_leaves); }
const char* run_barriers_of_two_kinds() { return launch(barriers_of_two_kinds); }
const char* run_a_lane_of_the_mask_has_left() {
  static int result;
  return launch(a_lane_of_the_mask_has_left, &result);
}
const char* run_throws() { return launch(throws); }
}
