#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulation.h"

// The part of CUDA's language, of its intrinsics and of its runtime that the kernels use, for a C++ compiler. Like CUDA,
// it has no overloads for mixtures of types that nvcc would refuse.

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local  // an OS thread runs one block at a time
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

// Barriers and warps.

#define EMULATION_SITE emulation::Site site = emulation::Site::here()

inline void __syncthreads(EMULATION_SITE) { emulation::meet_block(emulation::Op::kSyncthreads, false, site); }
inline int __syncthreads_or(int vote, EMULATION_SITE) {
  return emulation::meet_block(emulation::Op::kSyncthreadsOr, vote != 0, site) != 0;
}
inline int __syncthreads_and(int vote, EMULATION_SITE) {
  return emulation::meet_block(emulation::Op::kSyncthreadsAnd, vote != 0, site) == blockDim.x;
}
inline int __syncthreads_count(int vote, EMULATION_SITE) {
  return static_cast<int>(emulation::meet_block(emulation::Op::kSyncthreadsCount, vote != 0, site));
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_SITE) {
  emulation::meet_warp(emulation::Op::kSyncwarp, mask, 0, 0, site);
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMULATION_SITE) {
  return static_cast<unsigned>(emulation::meet_warp(emulation::Op::kBallot, mask, vote != 0, 0, site));
}
inline int __any_sync(unsigned mask, int vote, EMULATION_SITE) {
  return emulation::meet_warp(emulation::Op::kAny, mask, vote != 0, 0, site) != 0;
}
inline int __all_sync(unsigned mask, int vote, EMULATION_SITE) {
  return emulation::meet_warp(emulation::Op::kAll, mask, vote != 0, 0, site) == mask;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, EMULATION_SITE) {
  return static_cast<unsigned>(emulation::meet_warp(emulation::Op::kReduceAdd, mask, value, 0, site));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, EMULATION_SITE) {
  return static_cast<unsigned>(emulation::meet_warp(emulation::Op::kReduceMin, mask, value, 0, site));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATION_SITE) {
  return static_cast<unsigned>(emulation::meet_warp(emulation::Op::kReduceMax, mask, value, 0, site));
}

namespace emulation {

template <typename T>
T shuffle(Op op, unsigned mask, T value, unsigned source, Site site) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8, "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet_warp(op, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulation

// Lanes that a shuffle would look for outside of their group of `width` get their own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMULATION_SITE) {
  const int lane = threadIdx.x % warpSize, group = lane & ~(width - 1);
  return emulation::shuffle(emulation::Op::kShfl, mask, value, group | (source & (width - 1)), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, EMULATION_SITE) {
  const int lane = threadIdx.x % warpSize, source = lane ^ lanes;
  const bool beyond = source / width > lane / width;
  return emulation::shuffle(emulation::Op::kShflXor, mask, value, beyond ? lane : source, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATION_SITE) {
  const int lane = threadIdx.x % warpSize, inside = lane & (width - 1);
  const bool beyond = static_cast<int>(delta) > inside;
  return emulation::shuffle(emulation::Op::kShflUp, mask, value, beyond ? lane : lane - delta, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATION_SITE) {
  const int lane = threadIdx.x % warpSize, inside = lane & (width - 1);
  const bool beyond = inside + static_cast<int>(delta) >= width;
  return emulation::shuffle(emulation::Op::kShflDown, mask, value, beyond ? lane : lane + delta, site);
}

// Memory. Atomics are atomic among the OS threads that run blocks.

inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  emulation::maybe_yield();
}
inline void __threadfence_block() { __threadfence(); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}

namespace emulation {

// Puts update(old) in place of old, which is returned.
template <typename T, typename Update>
T atomic_update(T* address, const Update& update) {
  maybe_yield();
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, update(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  maybe_yield();
  return old;
}

}  // namespace emulation

#define EMULATION_ATOMIC(name, T, result)                                    \
  inline T name(T* address, T value) {                                       \
    return emulation::atomic_update(address, [&](T old) { return result; }); \
  }
#define EMULATION_ATOMICS(T)                                                                        \
  EMULATION_ATOMIC(atomicExch, T, ((void)old, value))                                               \
  EMULATION_ATOMIC(atomicAdd, T, static_cast<T>(old + value))                                       \
  EMULATION_ATOMIC(atomicAnd, T, old& value)                                                        \
  EMULATION_ATOMIC(atomicOr, T, old | value)                                                        \
  EMULATION_ATOMIC(atomicMin, T, old < value ? old : value)                                         \
  EMULATION_ATOMIC(atomicMax, T, old > value ? old : value)                                         \
  inline T atomicCAS(T* address, T expected, T value) {                                             \
    return emulation::atomic_update(address, [&](T old) { return old == expected ? value : old; }); \
  }
EMULATION_ATOMICS(int)
EMULATION_ATOMICS(unsigned)
EMULATION_ATOMICS(unsigned long long)
EMULATION_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)

// Arithmetic.

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Macros, as the C library declares functions of these names.
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)

#define EMULATION_MIN_MAX(Result, A, B)                                                                       \
  constexpr Result min(A a, B b) {                                                                            \
    return static_cast<Result>(a) < static_cast<Result>(b) ? static_cast<Result>(a) : static_cast<Result>(b); \
  }                                                                                                           \
  constexpr Result max(A a, B b) {                                                                            \
    return static_cast<Result>(a) > static_cast<Result>(b) ? static_cast<Result>(a) : static_cast<Result>(b); \
  }
#define EMULATION_MIN_MAX_INTEGERS(T)                   \
  EMULATION_MIN_MAX(T, T, T)                            \
  EMULATION_MIN_MAX(unsigned T, unsigned T, unsigned T) \
  EMULATION_MIN_MAX(unsigned T, T, unsigned T)          \
  EMULATION_MIN_MAX(unsigned T, unsigned T, T)
EMULATION_MIN_MAX_INTEGERS(int)
EMULATION_MIN_MAX_INTEGERS(long)
EMULATION_MIN_MAX_INTEGERS(long long)
// Of a number and NaN, the number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

#include "emulated_runtime.h"
