#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// What the emulation is tested with.
namespace {

__device__ unsigned block_sum(unsigned value) {
  __shared__ unsigned of_warp[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  value = lane < warps ? of_warp[lane] : 0;
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

__global__ void sum_blocks(const unsigned* values, unsigned* sums) {
  const unsigned sum = block_sum(values[blockIdx.x * blockDim.x + threadIdx.x]);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The last block adds what all blocks found.
__global__ void sum_grid(const unsigned* values, unsigned* sums, unsigned* counter, unsigned* total) {
  __shared__ bool is_last;
  const unsigned sum = block_sum(values[blockIdx.x * blockDim.x + threadIdx.x]);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  unsigned own = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) own += __ldcg(sums + i);
  __syncthreads();
  own = block_sum(own);
  if (threadIdx.x == 0) *total = own;
}

// Each thread reads what its neighbour writes.
__global__ void shift(bool with_barrier, const unsigned* values, unsigned* shifted) {
  __shared__ unsigned staged[1024];
  staged[threadIdx.x] = values[threadIdx.x];
  if (with_barrier) __syncthreads();
  shifted[threadIdx.x] = staged[(threadIdx.x + 1) % blockDim.x];
}

// What each lane of one warp gets out of each operation, a row of 32 each.
__global__ void warp_operations(int* out) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x);
  int row = 0;
  const auto put = [&](int value) { out[32 * row++ + lane] = value; };
  put(__shfl_sync(kAll, lane, 35));
  put(__shfl_up_sync(kAll, lane, 2));
  put(__shfl_xor_sync(kAll, lane, 5));
  put(static_cast<int>(__shfl_xor_sync(kAll, lane + 0.5, 1) * 2));
  put(static_cast<int>(__ballot_sync(kAll, lane % 2)));
  put(__any_sync(kAll, lane == 9));
  put(__any_sync(kAll, lane == 40));
  put(static_cast<int>(__reduce_min_sync(kAll, lane + 3)));
  put(static_cast<int>(__reduce_max_sync(kAll, lane + 3)));
}

// Shared memory that nobody has written.
__global__ void uninitialised(unsigned* seen) {
  __shared__ unsigned garbage[64];
  seen[blockIdx.x] = garbage[7];
  __syncthreads();
  garbage[threadIdx.x] = 0;
}

// These can not end.

__global__ void half_of_the_block_leaves() {
  if (blockIdx.x != 5 || threadIdx.x < 32) __syncthreads();
}

__global__ void lanes_at_two_operations() {
  if (threadIdx.x % 32 < 8) {
    __any_sync(0xffffffffu, 1);
  } else {
    __ballot_sync(0xffffffffu, 1);
  }
}

__global__ void a_lane_has_left() {
  if (threadIdx.x != 7) __shfl_xor_sync(0xffffffffu, 1, 16);
}

// What went wrong, or "no error".
template <typename... Parameters, typename... Arguments>
const char* launch(unsigned blocks, unsigned threads, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  return cudaGetErrorString(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace

extern "C" {

const char* run_sum_blocks(unsigned blocks, unsigned threads, const unsigned* values, unsigned* sums) {
  return launch(blocks, threads, sum_blocks, values, sums);
}
const char* run_sum_grid(unsigned blocks, unsigned threads, const unsigned* values, unsigned* sums, unsigned* counter,
                         unsigned* total) {
  return launch(blocks, threads, sum_grid, values, sums, counter, total);
}
const char* run_shift(bool with_barrier, unsigned threads, const unsigned* values, unsigned* shifted) {
  return launch(1, threads, shift, with_barrier, values, shifted);
}
const char* run_warp_operations(int* out) { return launch(1, 32, warp_operations, out); }
const char* run_uninitialised(unsigned blocks, unsigned* seen) { return launch(blocks, 32, uninitialised, seen); }
const char* run_half_of_the_block_leaves() { return launch(9, 64, half_of_the_block_leaves); }
const char* run_lanes_at_two_operations() { return launch(9, 64, lanes_at_two_operations); }
const char* run_a_lane_has_left() { return launch(9, 64, a_lane_has_left); }

// All 65536 values of both types.
void widen(float* bfloat16, float* float16) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    bfloat16[bits] = __bfloat162float({static_cast<uint16_t>(bits)});
    float16[bits] = __half2float({static_cast<uint16_t>(bits)});
  }
}
}
