#pragma once

// The part of CUDA's language and of its intrinsics that the kernels use, for a C++ compiler. Types and the functions of
// the runtime are of CUDA's own header. No overloads take mixtures of types, which nvcc would refuse, or convert.

#include <cuda_runtime_api.h>
#include <math.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#undef __shared__
#define __shared__ static thread_local  // an OS thread runs one block at a time
#define __launch_bounds__(...)

inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

using Lanes = std::array<uint64_t, warpSize>;
using Site = std::source_location;  // in the kernel, to be told where threads stand still

// Waits for all threads of the block.
void meet_block(const char* op, Site site);

// Waits for all lanes of the warp; what each of them came with. All must come with the same operation, and with a mask of
// all lanes. Valid until the lane comes to the next.
const Lanes& meet_warp(unsigned mask, uint64_t bits, const char* op, Site site);

// A place where another thread of the block may go on instead. Does nothing most times.
void maybe_yield();

// Runs what a thread does for each thread of the grid: what went wrong, or an empty text.
std::string run(unsigned blocks, unsigned threads, const std::function<void()>& thread);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread);

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, const char* op, Site site) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8, "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  std::memcpy(&value, &meet_warp(mask, bits, op, site)[source % warpSize], sizeof value);
  return value;
}

// Puts update(old) in place of old, which is returned. Atomic among the OS threads that run blocks.
template <typename T, typename Update>
T atomic_update(T* address, const Update& update) {
  maybe_yield();
  std::atomic_ref<T> shared(*address);
  T old = shared.load(std::memory_order_relaxed);
  while (!shared.compare_exchange_weak(old, update(old), std::memory_order_relaxed)) {
  }
  maybe_yield();
  return old;
}

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulation::launch(*config, reinterpret_cast<const void*>(kernel),
                           [kernel, copies = std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)] {
                             std::apply(kernel, copies);
                           });
}

// What threads do together.

#define EMULATION_SITE emulation::Site site = emulation::Site::current()

inline void __syncthreads(EMULATION_SITE) { emulation::meet_block(__func__, site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_SITE) { emulation::meet_warp(mask, 0, __func__, site); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, EMULATION_SITE) {
  return emulation::shuffle(mask, value, source, __func__, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, EMULATION_SITE) {
  return emulation::shuffle(mask, value, threadIdx.x ^ lanes, __func__, site);
}
// Lanes whose source would be before the first get their own value.
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, EMULATION_SITE) {
  const unsigned lane = threadIdx.x % warpSize;
  return emulation::shuffle(mask, value, delta > lane ? lane : lane - delta, __func__, site);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, EMULATION_SITE) {
  return static_cast<unsigned>(std::ranges::min(emulation::meet_warp(mask, value, __func__, site)));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATION_SITE) {
  return static_cast<unsigned>(std::ranges::max(emulation::meet_warp(mask, value, __func__, site)));
}
inline int __any_sync(unsigned mask, int vote, EMULATION_SITE) {
  return std::ranges::max(emulation::meet_warp(mask, vote != 0, __func__, site)) != 0;
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMULATION_SITE) {
  const emulation::Lanes& all = emulation::meet_warp(mask, vote != 0, __func__, site);
  unsigned votes = 0;
  for (int lane = 0; lane < warpSize; ++lane) votes |= static_cast<unsigned>(all[lane]) << lane;
  return votes;
}

// Memory.

inline void __threadfence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  emulation::maybe_yield();
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
T atomicAdd(T* address, T value) {
  return emulation::atomic_update(address, [=](T old) { return old + value; });
}
template <typename T>
T atomicMin(T* address, T value) {
  return emulation::atomic_update(address, [=](T old) { return std::min(old, value); });
}
template <typename T>
T atomicMax(T* address, T value) {
  return emulation::atomic_update(address, [=](T old) { return std::max(old, value); });
}
inline unsigned atomicInc(unsigned* address, unsigned most) {
  return emulation::atomic_update(address, [=](unsigned old) { return old >= most ? 0 : old + 1; });
}

// Arithmetic.

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return ffs(x); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

// Of a number and NaN, the number.
template <typename T>
T min(T a, T b) {
  return b < a || a != a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b || a != a ? b : a;
}
