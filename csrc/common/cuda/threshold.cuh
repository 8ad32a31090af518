#pragma once

#include "common/cuda/row_task.cuh"

// The logit that top_k, top_p and min_p let through, found by one block for a whole row.
namespace pearl::cuda {

constexpr int kBins = 1024;
constexpr float kBinsPerNat = 32.0f;

// Adds up `weights` of bins until `wanted` is reached: that bin, and the sum of those before it. If it never is, the
// last bin. All threads of the block call it.
struct Found {
  int bin;
  uint64_t before;
};
__device__ __forceinline__ Found find_bin(const unsigned long long* weights, uint64_t wanted) {
  constexpr int kOwn = kBins / kThreads > 0 ? kBins / kThreads : 1;
  __shared__ uint64_t of_warp[kWarps];
  __shared__ Found found;
  const int first = static_cast<int>(threadIdx.x) * kOwn;
  uint64_t own = 0;
  for (int i = 0; i < kOwn && first + i < kBins; ++i) own += weights[first + i];
  uint64_t through = own;  // sum over this warp's lanes up to this one
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint64_t below = __shfl_up_sync(kAllLanes, static_cast<unsigned long long>(through), offset);
    if (lane_index() >= offset) through += below;
  }
  if (threadIdx.x == 0) found = {kBins - 1, 0};
  if (lane_index() == kWarp - 1) of_warp[warp_index()] = through;
  __syncthreads();
  uint64_t before = through - own;
  for (int w = 0; w < warp_index(); ++w) before += of_warp[w];
  if (before < wanted && wanted <= before + own) {
    int bin = first;
    while (before + weights[bin] < wanted) before += weights[bin++];
    found = {bin, before};
  }
  __syncthreads();
  return found;
}

// The largest value t with weight{v >= t} >= wanted(total weight), over logits at or above `floor`; -inf if there is
// none. weight(x) is an integer, so that sums do not depend on the order.
//
// The first histogram is linear in the logit, which spreads out what models give; the bin it finds is then divided by
// the float's own order, until one value is left.
template <typename Weight, typename Wanted>
__device__ __forceinline__ float select_threshold(const Row& row, float floor, float highest, float inverse_temperature,
                                                  const Weight& weight, const Wanted& wanted) {
  __shared__ unsigned long long bins[kBins];
  __shared__ unsigned long long total;
  __shared__ uint32_t lowest_word, highest_word;
  const float scale = fminf(inverse_temperature * kBinsPerNat, 1e30f);
  const auto linear_bin = [&](float x) { return static_cast<int>(fminf((highest - x) * scale, kBins - 1)); };
  const auto counts = [&](float x) { return x >= floor && x > -INFINITY; };
  const auto clear = [&] {
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
    if (threadIdx.x == 0) total = 0, lowest_word = 0xffffffffu, highest_word = 0;
    __syncthreads();
  };

  clear();
  unsigned long long own = 0;
  for_tiles(row, [&](uint32_t, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!counts(tile.x[i])) continue;
      const unsigned long long w = weight(tile.x[i]);
      atomicAdd(&bins[linear_bin(tile.x[i])], w);
      own += w;
    }
  });
  own = warp_sum(own);
  if (lane_index() == 0) atomicAdd(&total, own);
  __syncthreads();
  const uint64_t target = wanted(static_cast<uint64_t>(total));
  if (target > total) return -INFINITY;
  Found found = find_bin(bins, target);
  uint64_t left = target - found.before;

  uint32_t low = 0xffffffffu, high = 0;
  for_tiles(row, [&](uint32_t, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!counts(tile.x[i]) || linear_bin(tile.x[i]) != found.bin) continue;
      low = min(low, ordered(tile.x[i]));
      high = max(high, ordered(tile.x[i]));
    }
  });
  low = __reduce_min_sync(kAllLanes, low);
  high = __reduce_max_sync(kAllLanes, high);
  if (lane_index() == 0) {
    atomicMin(&lowest_word, low);
    atomicMax(&highest_word, high);
  }
  __syncthreads();
  low = lowest_word, high = highest_word;
  while (low < high) {
    const uint32_t step = (high - low) / kBins + 1;
    clear();
    for_tiles(row, [&](uint32_t, const Tile& tile) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const uint32_t word = ordered(tile.x[i]);
        if (word < low || word > high) continue;
        atomicAdd(&bins[(high - word) / step], static_cast<unsigned long long>(weight(tile.x[i])));
      }
    });
    __syncthreads();
    found = find_bin(bins, left);
    left -= found.before;
    high -= static_cast<uint32_t>(found.bin) * step;
    low = high - low < step ? low : high - step + 1;
  }
  return from_ordered(high);
}

// The row's threshold under a filter that does not keep all. All threads of the block call it.
__device__ __forceinline__ float find_threshold(const Row& row, const Filter& filter, float highest) {
  float threshold = -INFINITY;
  if (filter.limits_count(row.size)) {
    threshold = select_threshold(
        row, -INFINITY, highest, filter.inverse_temperature, [](float) { return uint64_t{1}; },
        [&](uint64_t) { return static_cast<uint64_t>(filter.top_k); });
  }
  if (filter.limits_mass()) {
    const float scale = filter.inverse_temperature * kLog2E;
    const double share = filter.top_p;
    threshold = select_threshold(
        row, threshold, highest, filter.inverse_temperature,
        [&](float x) { return static_cast<uint64_t>(exp2f((x - highest) * scale) * 0x1p40f); },
        [&](uint64_t total) {
          const uint64_t wanted = static_cast<uint64_t>(ceil(share * static_cast<double>(total)));
          return wanted > 0 ? wanted : uint64_t{1};
        });
  }
  if (filter.min_p > 0.0f) {
    const double cut =
        static_cast<double>(highest) + static_cast<double>(filter.temperature) * log(static_cast<double>(filter.min_p));
    threshold = fmaxf(threshold, static_cast<float>(cut));
  }
  return threshold;
}

}  // namespace pearl::cuda
