#pragma once

#include "common/cuda/launch.cuh"

// What threads of a warp, a block and a grid do together.
namespace pearl::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kWarps <= kWarp, "one warp merges what the others found");

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// What the processor has an instruction for. exp2f also scales what is below 2^-126, with a branch that takes more
// registers and time than the rest; here that is 0, and as good.
__device__ __forceinline__ float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// Adds in the same order whatever the schedule; the sum is in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

__device__ __forceinline__ uint64_t warp_max(uint64_t value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(value), offset);
    value = other > value ? other : value;
  }
  return value;
}

// Calls visit(load(i)) for all i below `count` that are this lane's of the warp, in order. Loads from as far as the
// second-level cache are asked for several at a time.
template <typename Load, typename Visit>
__device__ __forceinline__ void for_lane(uint32_t count, const Load& load, const Visit& visit) {
  constexpr int kAtOnce = 4;
  for (uint32_t first = lane_index(); first < count; first += kAtOnce * kWarp) {
    decltype(load(first)) found[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k * kWarp < count) found[k] = load(first + k * kWarp);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k * kWarp < count) visit(found[k]);
    }
  }
}

// All threads of the block call it, and all get the result.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T of_warp[kWarps];
  value = warp_sum(value);
  __syncthreads();
  if (lane_index() == 0) of_warp[warp_index()] = value;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w];
  return sum;
}

__device__ __forceinline__ uint64_t block_max(uint64_t value) {
  __shared__ uint64_t of_warp[kWarps];
  value = warp_max(value);
  __syncthreads();
  if (lane_index() == 0) of_warp[warp_index()] = value;
  __syncthreads();
  uint64_t most = of_warp[0];
  for (int w = 1; w < kWarps; ++w) most = of_warp[w] > most ? of_warp[w] : most;
  return most;
}

// Counts one more, and from `most` on to zero; what there was before. Whoever does so sees what those before it wrote:
// one ordered atomic, where fences around a plain one would each wait for the whole device.
__device__ __forceinline__ uint32_t count_in_order(uint32_t* counter, uint32_t most) {
#ifdef __CUDA_ARCH__
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(most) : "memory");
  return before;
#else
  __threadfence();
  const uint32_t before = atomicInc(counter, most);
  __threadfence();
  return before;
#endif
}

// True in the last of `count` blocks to come here, which then sees what all of them wrote before: a barrier puts what a
// block's threads wrote before the atomic of one, and another what they read later behind it. The counter is left at zero
// for the next time. All threads of the block call it.
__device__ __forceinline__ bool arrive(uint32_t* counter, uint32_t count) {
  __shared__ bool is_last;
  __syncthreads();
  if (count == 1) return true;
  if (threadIdx.x == 0) is_last = count_in_order(counter, count - 1) == count - 1;
  __syncthreads();
  return is_last;
}

}  // namespace pearl::cuda
