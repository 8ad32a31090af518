#include <cuda_runtime.h>

// Sums that are right whatever the schedule, and one that is not.
namespace {

__device__ unsigned block_sum(unsigned value) {
  __shared__ unsigned of_warp[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  return __reduce_add_sync(0xffffffffu, lane < warps ? of_warp[lane] : 0);
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

// Each thread writes what its neighbour reads, and nobody waits for anybody.
__global__ void shift_without_a_barrier(const unsigned* values, unsigned* shifted) {
  __shared__ unsigned staged[1024];
  staged[threadIdx.x] = values[threadIdx.x];
  shifted[threadIdx.x] = staged[(threadIdx.x + 1) % blockDim.x];
}

__global__ void shift(const unsigned* values, unsigned* shifted) {
  __shared__ unsigned staged[1024];
  staged[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  shifted[threadIdx.x] = staged[(threadIdx.x + 1) % blockDim.x];
}

template <typename... Parameters, typename... Arguments>
const char* launch(unsigned blocks, unsigned threads, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  return cudaGetErrorString(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace

// All return what went wrong, or "no error".
extern "C" {

const char* run_sum_blocks(unsigned blocks, unsigned threads, const unsigned* values, unsigned* sums) {
  return launch(blocks, threads, sum_blocks, values, sums);
}
const char* run_sum_grid(unsigned blocks, unsigned threads, const unsigned* values, unsigned* sums, unsigned* counter,
                         unsigned* total) {
  return launch(blocks, threads, sum_grid, values, sums, counter, total);
}
const char* run_shift(bool with_barrier, unsigned threads, const unsigned* values, unsigned* shifted) {
  return launch(1, threads, with_barrier ? shift : shift_without_a_barrier, values, shifted);
}
}
