#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/cuda/block.cuh"
#include "common/types.h"

// A row of logits, and how a block walks it: a warp at a time holds a tile of consecutive ids, each lane runs of eight.
// Which lane holds which id depends on nothing else, so sums come out the same to the last bit wherever the row lies.
namespace pearl::cuda {

constexpr int kRun = 8;
constexpr int kHeld = 24;  // ids a lane holds
constexpr uint32_t kTile = kWarp * kHeld;
constexpr uint32_t kSlice = kTile * kWarps;  // what a block holds at a time, a tile per warp

struct Row {
  const void* data;
  DType dtype;
  uint32_t size;

  __device__ __forceinline__ float at(uint32_t id) const {
    switch (dtype) {
      case DType::kFloat32: return static_cast<const float*>(data)[id];
      case DType::kBFloat16: return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[id]);
      default: return __half2float(static_cast<const __half*>(data)[id]);
    }
  }
};

__device__ __forceinline__ Row row_of(const LogitsView& view, int64_t batch, int64_t row) {
  const int64_t bytes = view.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t offset = (batch * view.batch_stride + row * view.row_stride) * bytes;
  return {static_cast<const char*>(view.data) + offset, view.dtype, static_cast<uint32_t>(view.vocab)};
}

// The id of the logit a lane holds at index `held` of the tile that starts at `begin`.
__device__ __forceinline__ uint32_t held_id(uint32_t begin, int held) {
  return begin + (held / kRun * kWarp + lane_index()) * kRun + held % kRun;
}

struct Tile {
  float x[kHeld];
};

// What a lane holds of a tile, as it is in memory.
template <typename Value>
struct alignas(sizeof(uint4)) RawTile {
  Value values[kHeld];
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

// Of -inf.
__device__ __forceinline__ uint32_t lowest_bits(float) { return 0xff800000u; }
__device__ __forceinline__ uint32_t lowest_bits(__nv_bfloat16) { return 0xff80u; }
__device__ __forceinline__ uint32_t lowest_bits(__half) { return 0xfc00u; }

// The logits of ids [begin, begin + kTile); -inf past the end of the row, which is of Values.
template <typename Value>
__device__ __forceinline__ void load_raw_tile(const Row& row, uint32_t begin, RawTile<Value>& tile) {
  constexpr int kPerLoad = sizeof(uint4) / sizeof(Value);
  const Value* const data = static_cast<const Value*>(row.data);
  if (begin + kTile <= row.size && reinterpret_cast<uintptr_t>(row.data) % sizeof(uint4) == 0) {
#pragma unroll
    for (int i = 0; i < kHeld; i += kPerLoad) {
      reinterpret_cast<uint4*>(tile.values)[i / kPerLoad] =
          __ldg(reinterpret_cast<const uint4*>(data + held_id(begin, i)));
    }
  } else {
    const uint32_t lowest = lowest_bits(Value{});
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const uint32_t id = held_id(begin, i);
      tile.values[i] = id < row.size ? data[id] : *reinterpret_cast<const Value*>(&lowest);
    }
  }
}

// The larger, or NaN if one is: of two, or of two pairs in words.
__device__ __forceinline__ float larger(float a, float b) {
#ifdef __CUDA_ARCH__
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
#else
  return a != a || b != b ? NAN : fmaxf(a, b);
#endif
}

#ifdef __CUDA_ARCH__
__device__ __forceinline__ uint32_t larger_pair(__nv_bfloat16, uint32_t a, uint32_t b) {
  uint32_t most;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
}

__device__ __forceinline__ uint32_t larger_pair(__half, uint32_t a, uint32_t b) {
  uint32_t most;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
}
#endif

// The highest logit that a lane holds, or NaN if one is.
template <typename Value>
__device__ __forceinline__ float highest_of(const RawTile<Value>& tile) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Value) == 2) {
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(tile.values);
    uint32_t most = words[0];
#pragma unroll
    for (int i = 1; i < kHeld / 2; ++i) most = larger_pair(Value{}, most, words[i]);
    const Value* const pair = reinterpret_cast<const Value*>(&most);
    return larger(to_float(pair[0]), to_float(pair[1]));
  }
#endif
  float most = to_float(tile.values[0]);
#pragma unroll
  for (int i = 1; i < kHeld; ++i) most = larger(most, to_float(tile.values[i]));
  return most;
}

// The logits of ids [begin, begin + kTile); -inf past the end of the row. Returns the highest that the lane holds, or NaN
// if one is.
__device__ __forceinline__ float load_tile(const Row& row, uint32_t begin, Tile& tile) {
  const auto load = [&](auto value) {
    RawTile<decltype(value)> raw;
    load_raw_tile(row, begin, raw);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) tile.x[i] = to_float(raw.values[i]);
    return highest_of(raw);
  };
  switch (row.dtype) {
    case DType::kFloat32: return load(float{});
    case DType::kBFloat16: return load(__nv_bfloat16{});
    default: return load(__half{});
  }
}

// Asks for what is in the row of the tile at `begin` to come to the second-level cache. By a whole warp.
__device__ __forceinline__ void prefetch_tile(const Row& row, uint32_t begin) {
#ifdef __CUDA_ARCH__
  constexpr uint32_t kLine = 128;  // bytes
  const uint32_t each = row.dtype == DType::kFloat32 ? 4 : 2, at = lane_index() * kLine;
  const uint64_t offset = uint64_t{begin} * each + at;
  if (at < kTile * each && offset < uint64_t{row.size} * each) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(row.data) + offset));
  }
#endif
}

// Calls visit(begin) for the warp's tile of every slice in [first, end), of which some lie past the row's end, and
// fetch(begin) a few slices before: a slice that has to come from memory takes longer to come than to be looked at.
template <typename Fetch, typename Visit>
__device__ __forceinline__ void for_slices(uint32_t first, uint32_t end, const Fetch& fetch, const Visit& visit) {
  constexpr uint32_t kAhead = 4;
  const uint32_t own = warp_index() * kTile;
  for (uint32_t slice = first; slice < min(first + kAhead, end); ++slice) fetch(slice * kSlice + own);
  for (uint32_t slice = first; slice < end; ++slice) {
    if (slice + kAhead < end) fetch((slice + kAhead) * kSlice + own);
    visit(slice * kSlice + own);
  }
}

// A word that grows with the float. -0 and 0 are one; not for NaN.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float from_ordered(uint32_t word) {
  return __uint_as_float(word & 0x80000000u ? word & 0x7fffffffu : ~word);
}

// A value and an id in one number: of equal values, the lower id is the larger. 0 is none.
__device__ __forceinline__ uint64_t pack(float value, uint32_t id) {
  return static_cast<uint64_t>(ordered(value)) << 32 | ~id;
}

__device__ __forceinline__ uint32_t packed_id(uint64_t packed) { return ~static_cast<uint32_t>(packed); }
__device__ __forceinline__ float packed_value(uint64_t packed) { return from_ordered(packed >> 32); }

}  // namespace pearl::cuda
