#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// What each lane of one warp gets out of each operation, a row of 32 each.
namespace {

__global__ void warp_operations(int* out) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x), odd = lane % 2;
  int row = 0;
  const auto put = [&](int value) { out[32 * row++ + lane] = value; };
  put(__shfl_sync(kAll, lane, 35));
  put(__shfl_sync(kAll, lane, 3, 8));
  put(__shfl_up_sync(kAll, lane, 2));
  put(__shfl_up_sync(kAll, lane, 2, 8));
  put(__shfl_down_sync(kAll, lane, 2));
  put(__shfl_down_sync(kAll, lane, 2, 8));
  put(__shfl_xor_sync(kAll, lane, 5));
  put(static_cast<int>(__shfl_xor_sync(kAll, lane + 0.5, 1) * 2));
  put(static_cast<int>(__ballot_sync(kAll, odd)));
  put(static_cast<int>(odd ? __ballot_sync(0xaaaaaaaau, lane > 15) : __ballot_sync(0x55555555u, lane > 15)));
  put(__any_sync(kAll, lane == 9));
  put(__all_sync(kAll, lane != 9));
  put(static_cast<int>(__reduce_min_sync(kAll, lane + 3)));
  put(static_cast<int>(__reduce_max_sync(kAll, lane + 3)));
  put(static_cast<int>(__reduce_add_sync(kAll, lane + 3)));
  put(__syncthreads_or(lane == 9));
  put(__syncthreads_and(lane != 9));
  put(__syncthreads_count(odd));
}

// Shared memory that nobody has written.
__global__ void uninitialised(unsigned* seen) {
  __shared__ unsigned garbage[64];
  seen[blockIdx.x] = garbage[7];
  __syncthreads();
  garbage[threadIdx.x] = 0;
}

template <typename... Parameters, typename... Arguments>
const char* launch(unsigned blocks, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(32);
  return cudaGetErrorString(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace

extern "C" {

const char* run_warp_operations(int* out) { return launch(1, warp_operations, out); }
const char* run_uninitialised(unsigned blocks, unsigned* seen) { return launch(blocks, uninitialised, seen); }

// All 65536 values of both types.
void widen(float* bfloat16, float* float16) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    bfloat16[bits] = __bfloat162float({static_cast<uint16_t>(bits)});
    float16[bits] = __half2float({static_cast<uint16_t>(bits)});
  }
}
}
