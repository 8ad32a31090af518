#pragma once

#include "common/cuda/row_task.cuh"

// Some of a row's logits, taken out of it into shared memory, and walks that skip the tiles where there are none.
namespace pearl::cuda {

constexpr uint32_t kMostHeld = 4096;

struct Held {
  float values[kMostHeld];  // in no order
  uint32_t count;
};

// Calls visit(begin, tile) for every tile whose peak reaches `floor`, as `for_tiles` does for all, until `done`, which is
// the same in all lanes of a warp, is true. parts: of the row's tiles; null: every tile is visited.
template <typename Visit>
__device__ __forceinline__ void for_tiles_until(const bool& done, const Row& row, const TilePart* parts, float floor,
                                                const Visit& visit) {
  for (uint32_t first = warp_index() * kTile; first < row.size && !done; first += kWarp * kSlice) {
    // Peaks of as many tiles as there are lanes: one alone would take as long to come.
    const uint32_t own = first + lane_index() * kSlice;
    const bool reaches = own < row.size && (parts == nullptr || __ldcg(&parts[own / kTile].highest) >= floor);
    for (unsigned left = __ballot_sync(kAllLanes, reaches); left != 0 && !done; left &= left - 1) {
      const uint32_t begin = first + (__ffs(static_cast<int>(left)) - 1) * kSlice;
      Tile tile;
      load_tile(row, begin, tile);
      visit(begin, tile);
    }
  }
}

template <typename Visit>
__device__ __forceinline__ void for_tiles_from(const Row& row, const TilePart* parts, float floor, const Visit& visit) {
  for_tiles_until(false, row, parts, floor, visit);
}

// Calls visit(x) for what is held, or, where that is null, for the logits of all tiles whose peak reaches `floor`.
template <typename Visit>
__device__ __forceinline__ void for_values(const Row& row, const TilePart* parts, float floor, const Held* held,
                                           const Visit& visit) {
  if (held != nullptr) {
    for (uint32_t i = threadIdx.x; i < held->count; i += kThreads) visit(held->values[i]);
    return;
  }
  for_tiles_from(row, parts, floor, [&](uint32_t, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) visit(tile.x[i]);
  });
}

// Holds the logits that take(x) is true of, if they fit; false if not, and then take(x) was not asked of all. Tiles whose
// peak is below `floor` are passed over. All threads of the block call it.
template <typename Take>
__device__ __forceinline__ bool hold_values(const Row& row, const TilePart* parts, float floor, Held& held,
                                            const Take& take) {
  __syncthreads();
  if (threadIdx.x == 0) held.count = 0;
  __syncthreads();
  bool full = false;
  for_tiles_until(full, row, parts, floor, [&](uint32_t, const Tile& tile) {
    uint32_t taken = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) taken |= static_cast<uint32_t>(take(tile.x[i])) << i;
    const int own = __popc(taken);
    int through = own;  // of the lanes up to this one
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int below = __shfl_up_sync(kAllLanes, through, offset);
      if (lane_index() >= offset) through += below;
    }
    const uint32_t all = __shfl_sync(kAllLanes, through, kWarp - 1);
    if (all == 0) return;
    uint32_t at = lane_index() == 0 ? atomicAdd(&held.count, all) : 0;
    at = __shfl_sync(kAllLanes, at, 0);
    full = at + all > kMostHeld;
    if (full) return;
    at += through - own;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (taken >> i & 1) held.values[at++] = tile.x[i];
    }
  });
  __syncthreads();
  return held.count <= kMostHeld;
}

// The `rank`-th highest of the tiles' peaks, which so many logits reach at least; -inf where tiles are fewer, or too many
// to compare. All threads of the block call it, and `store` is written to.
__device__ __forceinline__ float peak_of_rank(const Row& row, const TilePart* parts, uint32_t rank, Held& store) {
  constexpr uint32_t kMostTiles = 512;
  static_assert(kMostTiles <= kMostHeld, "");
  __shared__ float found;
  const uint32_t tiles = (row.size + kTile - 1) / kTile;
  if (tiles < rank || tiles > kMostTiles) return -INFINITY;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < tiles; i += kThreads) store.values[i] = __ldcg(&parts[i].highest);
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < tiles; i += kThreads) {
    const float peak = store.values[i];
    uint32_t before = 0;
    for (uint32_t j = 0; j < tiles; ++j) {
      const float other = store.values[j];
      before += other > peak || (other == peak && j < i);
    }
    if (before == rank - 1) found = peak;
  }
  __syncthreads();
  return found;
}

}  // namespace pearl::cuda
